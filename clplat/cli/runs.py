"""``clplat runs``, ``clplat diff`` and ``clplat rm``: what runs there are, where two differ, and away with some."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from clplat.cli import flags, output
from clplat.errors import EXIT_FAILED, EXIT_OK, RunFailedError, UsageError

RUNS_EPILOG = flags.examples(
    "clplat runs",
    "clplat runs runs/sweep --where strategy=ewc --where 'ACC>0.8' --sort ACC",
    "clplat runs --where status=failed --columns run,status,trainer.max_epochs",
)
DIFF_EPILOG = flags.examples(
    "clplat diff runs/naive-transformer-permuted-digits-s0 runs/ewc-transformer-permuted-digits-s0"
)
RM_EPILOG = flags.examples("clplat rm runs/ewc-transformer-permuted-digits-s0", "clplat rm runs --where status=failed")

Places = Annotated[
    list[Path] | None, typer.Argument(metavar="RUN...", help="Run directories, or folders with runs; runs/.")
]


def runs(
    places: Places = None,
    where: flags.Where = None,
    sort: Annotated[
        str | None, typer.Option("--sort", metavar="KEY", help="Largest first; -KEY for the smallest first.")
    ] = None,
    columns: Annotated[str | None, typer.Option("--columns", metavar="KEYS", help="What to show, with commas.")] = None,
    as_json: flags.Json = False,
    traceback: flags.Traceback = False,
) -> None:
    """List runs.

    A key is run, status, experiences, seconds or steps, a summary metric, or any key of the configuration.
    """
    from clplat.report.query import COLUMNS, check, lookup, query
    from clplat.report.runs import load_runs
    from clplat.report.tables import number

    loaded = load_runs(places or [Path("runs")])
    keys = [key.strip() for key in columns.split(",")] if columns is not None else list(COLUMNS)
    check(loaded, keys if columns is not None else ())
    found = query(loaded, where or (), sort)
    if as_json:
        rows = [{"path": str(run.path), **{key: lookup(run, key) for key in keys}} for run in found]
        print(json.dumps(rows, indent=2, allow_nan=False))
        return

    def cell(value: Any) -> str:
        if isinstance(value, float):
            return number(value)
        return "-" if value is None else str(value)

    output.table(keys, [[cell(lookup(run, key)) for key in keys] for run in found])


def diff(
    first: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")],
    second: Annotated[Path, typer.Argument(metavar="RUN", help="Another.")],
    as_json: flags.Json = False,
    traceback: flags.Traceback = False,
) -> None:
    """Show in what the configurations and the results of two runs differ."""
    from clplat.changes import changes
    from clplat.options import shown
    from clplat.report.runs import load, text
    from clplat.tracking import directory

    problems = [f"{path}: not a run directory" for path in (first, second) if not directory.is_run(path)]
    if problems:
        raise UsageError(*problems)
    one, two = load(first), load(second)
    of_config = [change for change in changes(one.config, two.config) if not change.key.startswith("run.")]
    names = [
        name for name in dict.fromkeys([*one.summary, *two.summary]) if one.summary.get(name) != two.summary.get(name)
    ]
    values = [(name, one.summary.get(name), two.summary.get(name)) for name in names]
    values += [("seconds", one.seconds, two.seconds)] if one.seconds != two.seconds else []
    if as_json:
        whole = {
            "config": [{"key": c.key, "first": c.before, "second": c.now} for c in of_config],
            "results": [{"key": name, "first": a, "second": b} for name, a, b in values],
        }
        print(json.dumps(whole, indent=2, allow_nan=False, default=str))
        return
    rows = [[text(c.key), text(shown(c.before)), text(shown(c.now)), ""] for c in of_config]
    rows += [[name, _number(a), _number(b), _difference(a, b)] for name, a, b in values]
    if not rows:
        print("no difference")
        return
    output.table(("key", text(first), text(second), "difference"), rows)


def rm(
    places: Annotated[
        list[Path], typer.Argument(metavar="RUN...", help="Run directories, or folders with runs below.")
    ],
    where: flags.Where = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    traceback: flags.Traceback = False,
) -> int:
    """Delete runs.

    What was not written by clplat stays, and so does a run that is going on.
    """
    from clplat.report.query import query
    from clplat.report.runs import load_runs
    from clplat.tracking import directory

    found = query(load_runs(places), where or ())
    busy = [run for run in found if directory.is_locked(run.path)]
    for run in busy:
        print(f"{run.path} is being run; it stays", file=sys.stderr)
    going = [run for run in found if run not in busy]
    if not going:
        print("nothing to delete")
        return EXIT_OK
    if not yes:
        for run in going:
            print(f"{run.path}  {run.state}")
        if not sys.stdin.isatty():
            raise UsageError(f"{len(going)} to be deleted: say --yes")
        typer.confirm(f"Delete {len(going)} runs?", abort=True)
    kept = [left for run in going if (left := _delete(run.path))]
    for path in kept:
        print(f"{path} holds files that are not ours; they stay", file=sys.stderr)
    print(f"deleted {len(going)} runs")
    return EXIT_FAILED if busy else EXIT_OK


def _delete(run: Path) -> Path | None:
    """Take away what we wrote; returns the directory if something is left in it."""
    from clplat.tracking import directory

    try:
        for name in (*directory.RECORDS, ".lock", "command.txt", "config.yaml", "status.json"):
            path = run / name
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        if any(run.iterdir()):
            return run
        run.rmdir()
    except OSError as error:
        raise RunFailedError(f"{run}: cannot be deleted: {error.strerror}") from None
    return None


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _difference(a: float | None, b: float | None) -> str:
    return "" if a is None or b is None else f"{b - a:+.4f}"
