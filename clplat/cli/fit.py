"""``clplat fit``: train."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from clplat import config as configuration
from clplat.cli import flags
from clplat.cli.resume import go_on
from clplat.cluster import environment
from clplat.errors import UsageError
from clplat.tracking import continuation, directory

EPILOG = flags.examples(
    "clplat fit --strategy ewc",
    "clplat fit --strategy ewc+er --backbone gru --seed 1 strategy.ewc.importance=50",
    "clplat fit --config mine.yaml optimizer.lr=3e-4 trainer.max_epochs=10",
    "clplat fit --strategy ewc --resume auto --stop-after 3",
    "clplat fit --from runs/ewc-transformer-permuted-digits-s0 --start-from 3 strategy.importance=10",
    "clplat fit --strategy my_pkg.my_module:MyStrategy --dry-run",
)


def fit(
    ctx: typer.Context,
    overrides: flags.Overrides = None,
    strategy: flags.Strategy = None,
    backbone: flags.Backbone = None,
    scenario: flags.Scenario = None,
    optimizer: flags.Optimizer = None,
    trainer: flags.Trainer = None,
    logger: flags.Logger = None,
    preset: flags.Preset = None,
    config: flags.Config = None,
    config_dir: flags.ConfigDir = None,
    seed: flags.Seed = None,
    devices: flags.Devices = None,
    stop_after: flags.StopAfter = None,
    resume: Annotated[
        str | None,
        typer.Option("--resume", metavar="auto|RUN", help="Go on with a run; auto: what this command began."),
    ] = None,
    source: Annotated[
        Path | None, typer.Option("--from", metavar="RUN", help="A new run that starts from what RUN had learned.")
    ] = None,
    start_from: Annotated[
        int | None, typer.Option("--start-from", metavar="K", help="With --from: after its first K experiences.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Start again in an existing run.dir.")] = False,
    print_config: Annotated[bool, typer.Option("--print-config", help="Print the configuration and stop.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Build all, try a few steps, print sizes and times; write nothing.")
    ] = False,
    quiet: flags.Quiet = False,
    as_json: flags.JsonAtEnd = False,
    traceback: flags.Traceback = False,
) -> int:
    """Train on a stream of experiences.

    The run is recorded in a directory of its own, under run.root or at run.dir.
    """
    environment.adopt()
    _check_together(resume=resume, source=source, start_from=start_from, overwrite=overwrite)
    if as_json and (dry_run or print_config):
        raise UsageError("--json prints the results of a run, and --dry-run and --print-config make none")
    overrides = flags.shown(overrides, quiet, as_json)
    if source is not None:
        config = [source / "config.yaml", *(config or [])]
        overrides = ["run.dir=null", "run.stop_after=null", *overrides]
    resolved = flags.compose(
        overrides,
        preset,
        config,
        config_dir,
        strategy=strategy,
        backbone=backbone,
        scenario=scenario,
        optimizer=optimizer,
        trainer=trainer,
        logger=logger,
        seed=seed,
        devices=devices,
        **{"stop-after": stop_after},
    )
    if print_config:
        print(configuration.dump(resolved), end="")
        return 0
    if dry_run:
        from clplat import dryrun

        return dryrun.run(resolved)
    if resume is not None:
        run = continuation.find(resolved) if resume == "auto" else Path(resume)
        if run is not None:
            if resume != "auto" and not directory.is_run(run):
                raise UsageError(f"--resume {run}: not a run directory")
            before = configuration.load(run / "config.yaml")
            resolved["run"] |= {key: before["run"][key] for key in ("dir", "root")}
            return go_on(run, before, resolved)
    from clplat.cluster import local

    local.check_nodes(resolved)  # before a run directory is made
    if source is None:
        run_dir = _make_directory(resolved, ctx.obj, overwrite)
    else:
        run_dir = continuation.fork(source, start_from, resolved, ctx.obj)
    return local.launch(run_dir, resolved, resume=False)


def _check_together(*, resume: str | None, source: Path | None, start_from: int | None, overwrite: bool) -> None:
    """Flags that contradict each other, and a source that is none."""
    problems = []
    if start_from is not None and source is None:
        problems.append("--start-from needs --from RUN, the run whose first K experiences are to be kept")
    if source is not None and not directory.is_run(source):
        problems.append(f"--from {source}: not a run directory")
    if sum((resume is not None, source is not None, overwrite)) > 1:
        problems.append("only one of --resume, --from and --overwrite can be given")
    if source is not None and os.environ.get("WORLD_SIZE", "1") != "1":
        problems.append("--from makes a run directory, which ranks that are started from outside cannot do")
    if problems:
        raise UsageError(*problems)


def _make_directory(config: Mapping[str, Any], argv: Sequence[str], overwrite: bool) -> Path:
    """Make the run directory; of ranks that were started by torchrun or the like, rank 0 does and the others wait."""
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return directory.create(config, argv, overwrite=overwrite)
    if overwrite or not config["run"]["dir"]:
        raise UsageError(
            "ranks that are started from outside (WORLD_SIZE is set) need run.dir=DIR, which all share, "
            "and cannot --overwrite it"
        )
    if os.environ.get("RANK", "0") == "0":
        return directory.create(config, argv)
    run_dir = Path(config["run"]["dir"]).expanduser()
    continuation.wait_for(run_dir, config)
    return run_dir
