"""``clplat wandb``: what concerns Weights & Biases besides the logger."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from clplat.cli import flags
from clplat.errors import EXIT_FAILED, EXIT_OK, RunFailedError

app = typer.Typer(help="Send runs to Weights & Biases, and lay out a project there.", rich_markup_mode=None)
Project = Annotated[str, typer.Option("--project", metavar="NAME", help="The W&B project.")]
Entity = Annotated[str | None, typer.Option("--entity", metavar="NAME", help="The W&B user or team it belongs to.")]


@app.command("push", epilog=flags.examples("clplat wandb push runs --dry-run", "clplat wandb push runs/sweep"))
def push(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run directories, or folders with runs below.")],
    project: Project = "clplat",
    entity: Entity = None,
    offline: Annotated[
        bool, typer.Option("--offline", help="Write what would be sent into RUN/wandb; so does WANDB_MODE=offline.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be sent, and send nothing.")] = False,
    traceback: flags.Traceback = False,
) -> int:
    """Send runs that have ended, from their directories.

    For runs that had no logger, were offline, or have new metrics and probes since. Each run has one id for ever, so
    what is there already is not sent again.
    """
    from clplat.report.runs import find
    from clplat.tracking import push as pushing

    target = pushing.Target(project, entity, offline or os.environ.get("WANDB_MODE") == "offline")
    failed = False
    for run in find(runs):
        state = pushing.state(run, target)
        if state == "push" and not dry_run:
            try:
                pushing.push(run, target)
                state = "written" if target.offline else "pushed"
            except RunFailedError as error:
                failed = True
                print(f"error: {error}", file=sys.stderr)
                continue
        print(f"{run}: {'would be pushed' if state == 'push' else state}")
    return EXIT_FAILED if failed else EXIT_OK


@app.command(
    "workspace",
    epilog=flags.examples(
        "clplat wandb workspace --project clplat --print", "clplat wandb workspace --project clplat --entity my-team"
    ),
)
def workspace(
    project: Project = "clplat",
    entity: Entity = None,
    only_print: Annotated[bool, typer.Option("--print", help="Print its JSON, and send nothing.")] = False,
    traceback: flags.Traceback = False,
) -> None:
    """Lay out a project: forgetting, the matrix, strategies over seeds, costs."""
    from clplat.tracking import workspace as layouts

    made = layouts.build(project, entity or os.environ.get("WANDB_ENTITY", ""))
    if only_print:
        print(layouts.specification(made), end="")
        return
    try:
        made.save()
    except Exception as error:  # W&B's own errors are of many kinds
        raise RunFailedError(f"W&B did not take it: {(str(error).splitlines() or [''])[0]}") from error
    print(f"saved: {made.url}")
