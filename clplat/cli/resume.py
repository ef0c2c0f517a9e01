"""``clplat resume``: continue a run where its last checkpoint stands."""

from __future__ import annotations

import difflib
import json
import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from clplat.cli import flags
from clplat.errors import UsageError
from clplat.tracking import continuation, directory

EPILOG = flags.examples(
    "clplat resume runs/ewc-transformer-permuted-digits-s0",
    "clplat resume runs/ewc-transformer-permuted-digits-s0 scenario.experiences=10 --logger wandb",
)


_ONCE = ("quiet", "json")


def resume(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The run directory.")],
    overrides: flags.Overrides = None,
    logger: flags.Logger = None,
    devices: flags.Devices = None,
    stop_after: flags.StopAfter = None,
    quiet: flags.Quiet = False,
    as_json: flags.JsonAtEnd = False,
    traceback: flags.Traceback = False,
) -> int:
    """Continue a run where it stopped.

    It ends as if it had never stopped; a run that is done is left as it is. Settings that leave what was learned as it
    is may change: the logger, the devices, checkpoints, how many experiences there are.
    """
    from clplat import config
    from clplat.cluster import environment

    environment.adopt()
    if not directory.is_run(run):
        raise UsageError(f"{run} is not a run directory.{_similar(run)}")
    before = config.load(run / "config.yaml")
    given = {"logger": logger, "devices": devices, "stop-after": stop_after}
    asked = flags.shown(overrides, quiet, as_json)
    now = config.compose(asked, files=[run / "config.yaml"], flags=given)
    if not any(word.startswith("trainer.progress=") for word in asked) and now["trainer"]["progress"] in _ONCE:
        now["trainer"]["progress"] = "auto"  # that was for the command before
    stopped = directory.read_status(run)["status"] == "stopped"
    if stopped and now["run"]["stop_after"] == before["run"]["stop_after"]:
        now["run"]["stop_after"] = None  # it has been reached
    return go_on(run, before, now)


def go_on(run: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> int:
    """Continue a run with a configuration that may differ in what leaves its past as it is.

    Args:
        before: the run's own configuration.
        now: the one to go on with.

    Raises:
        UsageError: it differs in more; every such key is named.
    """
    from clplat import changes
    from clplat.cluster import local

    altering = changes.altering(before, now)
    if altering:
        raise UsageError(
            *(f"{run}: {change}; that would alter what it has learned" for change in altering),
            f"a new run with other settings: clplat fit --config {shlex.quote(str(run / 'config.yaml'))} run.dir=null "
            + " ".join(f"{change.key}={change.now}" for change in altering),
        )
    results = directory.results(run)
    if results is not None and results.get("status") == "done" and not changes.of_stream(before, now):
        if now["trainer"]["progress"] == "json":
            print(json.dumps({"run": str(run), **results}, indent=2))
        elif now["trainer"]["progress"] != "quiet":
            print(f"{run} is done already; its results are in {run / 'results.json'}")
        return 0
    if os.environ.get("RANK", "0") == "0":
        continuation.propose(run, now)
    else:
        continuation.wait_for(run, now)
    return local.launch(run, now, resume=True)


def _similar(run: Path) -> str:
    found = {
        path.name: path
        for root in (Path("runs"), run.parent)
        if root.is_dir()
        for path in sorted(root.iterdir())
        if directory.is_run(path)
    }
    close = difflib.get_close_matches(run.name, found, n=3, cutoff=0.4)
    return f" Did you mean {' or '.join(str(found[name]) for name in close)}?" if close else ""
