"""A run as it stood at one of its checkpoints, to look at: nothing is written."""

from __future__ import annotations

import json
from pathlib import Path

from clplat import checkpoint, worker
from clplat import config as configuration
from clplat.build import build
from clplat.errors import RunFailedError, UsageError
from clplat.loop import Run
from clplat.ranks import Ranks


def restored(run_dir: Path, learned: int | None = None) -> tuple[Run, str]:
    """The run, and the name of the checkpoint that it stands at.

    Args:
        learned: at the end of that many experiences; None for the newest checkpoint.

    Raises:
        UsageError: no such checkpoint was kept.
        RunFailedError: there is none at all.
    """
    config = configuration.load(run_dir / "config.yaml")
    config["eval"] |= {"probes": [], "metrics": [], "options": {}}  # they are not taken here
    folder = run_dir / "checkpoints"
    ends = checkpoint.boundaries(folder)
    if learned is not None and learned not in ends:
        kept = f"it has those after {', '.join(map(str, ends))}" if ends else "it has none of any"
        raise UsageError(
            f"{run_dir} has no checkpoint from the end of {learned} experiences: {kept}; "
            "trainer.keep_boundaries=true keeps them all"
        )
    if not checkpoint.named(folder):
        raise RunFailedError(f"{run_dir} has no checkpoint yet")
    worker.set_threads(_threads(run_dir) or config["trainer"]["threads"])
    built = build(config, Ranks.from_environment(config["trainer"]["accelerator"]))
    job = Run(built.learner, built.scenario, eval_settings=built.eval_settings, run_dir=run_dir)
    built.learner.to(built.learner.ranks.device)
    name = job.restore(learned)
    assert name is not None
    return job, name


def _threads(run_dir: Path) -> int | None:
    """The number of threads that the run had: sums over another number of them may differ in the last digits."""
    try:
        threads = json.loads((run_dir / "environment.json").read_text(encoding="utf-8"))["threads"]
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return threads if isinstance(threads, int) and threads > 0 else None
