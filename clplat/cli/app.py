"""The commands put together, and the one place where errors become messages and exit codes."""

from __future__ import annotations

import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer

from clplat import __version__, signals
from clplat.cli import (
    cancel,
    compare,
    config,
    dashboard,
    doctor,
    evaluate,
    fit,
    flags,
    jobs,
    listing,
    logs,
    metrics,
    probe,
    report,
    resume,
    runs,
    show,
    submit,
    sweep,
    wandb,
)
from clplat.errors import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK, EXIT_USAGE, ClplatError, suggestion

app = typer.Typer(
    name="clplat",
    help="Continual learning on sequences: train, resume, compare, look things up.",
    epilog=flags.examples(
        "clplat fit --strategy ewc",
        "clplat report runs",
        "clplat list strategies",
        "clplat show ewc",
        "clplat fit --help",
    ),
    no_args_is_help=False,
    invoke_without_command=True,
    rich_markup_mode=None,  # plain help: the same on a terminal, in a pipe and in a CI log, and quicker
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("fit", epilog=fit.EPILOG)(fit.fit)
app.command("resume", epilog=resume.EPILOG)(resume.resume)
app.command("sweep", epilog=sweep.EPILOG)(sweep.sweep)
app.command("submit", epilog=submit.EPILOG)(submit.submit)
app.command("jobs", epilog=jobs.EPILOG)(jobs.jobs)
app.command("logs", epilog=logs.EPILOG)(logs.logs)
app.command("cancel", epilog=cancel.EPILOG)(cancel.cancel)
app.command("eval", epilog=evaluate.EPILOG)(evaluate.evaluate)
app.command("metrics", epilog=metrics.EPILOG)(metrics.metrics)
app.command("probe", epilog=probe.EPILOG)(probe.probe)
app.command("report", epilog=report.EPILOG)(report.report)
app.command("compare", epilog=compare.EPILOG)(compare.compare)
app.command("runs", epilog=runs.RUNS_EPILOG)(runs.runs)
app.command("diff", epilog=runs.DIFF_EPILOG)(runs.diff)
app.command("rm", epilog=runs.RM_EPILOG)(runs.rm)
app.command("dashboard", epilog=dashboard.EPILOG)(dashboard.dashboard)
app.command("list", epilog=listing.EPILOG)(listing.listing)
app.command("show", epilog=show.EPILOG)(show.show)
app.command("doctor", epilog=doctor.EPILOG)(doctor.doctor)
app.add_typer(config.app, name="config")
app.add_typer(wandb.app, name="wandb")

TRAINING = ("fit", "resume")  # they save what they have when a signal comes; the others just end

# The base class of all complaints about the command line; typer may or may not carry its own copy of click.
_ClickException: Any = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"clplat {__version__}")
        raise typer.Exit


@app.callback()
def top(
    ctx: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Continual learning on sequences: train, resume, compare, look things up."""
    if ctx.invoked_subcommand not in TRAINING:
        signals.ignore()
    if ctx.invoked_subcommand is None:
        print(ctx.get_help())


def run(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code, errors told in one line each unless a traceback is asked for."""
    words = list(sys.argv[1:] if argv is None else argv)
    return guarded(
        lambda: app(words, prog_name="clplat", standalone_mode=False, obj=words), debug="--traceback" in words
    )


def guarded(call: Callable[[], object], *, debug: bool = False) -> int:
    """Call something and return its exit code (0 unless it returns one); errors become messages and exit codes."""
    debug = debug or os.environ.get("CLPLAT_DEBUG", "0") not in ("", "0")
    try:
        code = call()
        sys.stdout.flush()  # a closed pipe shows here and not while Python shuts down
        return code if isinstance(code, int) else EXIT_OK
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except (KeyboardInterrupt, typer.Abort):
        return EXIT_INTERRUPTED
    except _ClickException as error:
        _tell(_complaint(error))
        return EXIT_USAGE
    except ClplatError as error:
        if debug:
            traceback.print_exc()
        for line in str(error).splitlines():
            _tell(line)
        return error.exit_code
    except Exception as error:
        if debug:
            traceback.print_exc()
        first = (str(error).splitlines() or [""])[0]
        _tell(f"{type(error).__name__}: {first} (run with --traceback; this is a bug)")
        return EXIT_FAILED


def _tell(line: str) -> None:
    print(f"error: {line}", file=sys.stderr)


def _complaint(error: Any) -> str:
    """Click's own message in one line, with a suggestion."""
    message = " ".join(error.format_message().split())
    ctx = getattr(error, "ctx", None)
    command = re.match(r"No such command ['\"]?([^'\"]*?)['\"]?\.", message)
    if command and ctx is not None:
        return f"there is no command '{command[1]}'.{suggestion(command[1], ctx.command.list_commands(ctx))}"
    option = re.match(r"No such option:? ['\"]?(-[^\s'\"]*?)['\"]?[.!]?(\s|$)", message)
    if option and ctx is not None:
        known = [name for parameter in ctx.command.params for name in parameter.opts if name.startswith("--")]
        hint = f"{suggestion(option[1], known)} Keys of the configuration are set as section.key=value."
        return f"there is no option '{option[1]}'.{hint}"
    return message
