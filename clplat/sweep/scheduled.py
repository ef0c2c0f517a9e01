"""The runs of a sweep that are jobs of a scheduler: where they stand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from clplat.cluster import jobs
from clplat.sweep.grid import Planned
from clplat.sweep.state import is_done
from clplat.tracking import directory


@dataclass(frozen=True)
class Standing:
    """Where a run stands.

    Args:
        state: done, under way (it waits, runs or is about to run again, or another process runs it), failed or waiting.
        how: of one that failed what is said of it: the scheduler's word, or the run's own.
    """

    state: str
    how: str = ""


def standings(runs: Sequence[Planned]) -> dict[Path, Standing]:
    """Where each run stands, by its directory.

    Raises:
        ClplatError: a scheduler cannot be asked, or the record of a job cannot be read.
    """
    known = {run.path: job for run in runs if directory.is_run(run.path) and (job := jobs.read(run.path))}
    states = jobs.states(known.values())

    def standing(path: Path) -> Standing:
        job, told = known.get(path), states.get(path)
        if is_done(path):
            return Standing("done")
        if (told is not None and told.active) or directory.is_locked(path):
            return Standing("under way")
        status = directory.read_status(path)["status"]
        # What was started and neither saved nor said why it ended was killed, or could not even start its ranks.
        if status == "failed" or (job is not None and job.starts and status in ("created", "running")):
            return Standing("failed", str(told) if told is not None else f"status {status}")
        return Standing("waiting")

    return {run.path: standing(run.path) for run in runs}
