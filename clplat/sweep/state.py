"""Where the runs of a sweep stand, and the table that says so."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from clplat.cluster import jobs
from clplat.report.runs import RunData, load, text
from clplat.sweep.grid import Planned
from clplat.tracking import directory

HEAD = ("run", "state", "experience", "ACC", "seconds")
LAST_LINES = 5


@dataclass
class Progress:
    """The runs of a sweep while it goes on.

    Args:
        runs: all of them.
        jobs: how many go on at a time.
    """

    runs: Sequence[Planned]
    jobs: int
    active: dict[Path, float] = field(default_factory=dict)  # since when
    failed: dict[Path, int] = field(default_factory=dict)  # with which exit code
    spent: list[float] = field(default_factory=list)  # seconds that runs took from their start to their end

    def state(self, run: Planned) -> str:
        """done, running, elsewhere (by another process), failed, waiting, or to be continued."""
        path = run.path
        if path in self.active:
            return "running"
        if path in self.failed:
            return "failed"
        if not directory.is_run(path):
            return "waiting"
        if is_done(path):
            return "done"
        return "elsewhere" if directory.is_locked(path) else "waiting"

    def rows(self) -> list[tuple[str, ...]]:
        """One row for each run."""
        return [self._row(run) for run in self.runs]

    def _row(self, run: Planned) -> tuple[str, ...]:
        state = self.state(run)
        data = load(run.path) if directory.is_run(run.path) else RunData(run.path)
        some = data.baseline or next(iter(data.matrix), None)
        acc = data.summary.get("ACC")
        seconds = data.seconds
        if state == "running" and seconds is None:
            seconds = time.monotonic() - self.active[run.path]
        return (
            text(run.label),
            state,
            f"{len(data.matrix)}/{max(len(data.tests), len(some))}" if some else "-",
            "-" if acc is None else f"{acc:.4f}",
            "-" if seconds is None else f"{seconds:.0f}",
        )

    def remaining(self) -> str:
        """About how long it will take, by the mean of those that came to their end; empty while none is."""
        left = [run for run in self.runs if self.state(run) in ("waiting", "running")]
        if not self.spent or not left:
            return ""
        mean = statistics.fmean(self.spent)
        under_way = sum(min(time.monotonic() - since, mean) for since in self.active.values())
        seconds = max(0.0, (len(left) * mean - under_way) / self.jobs)
        return f"about {seconds / 60:.0f} min left" if seconds >= 90 else f"about {seconds:.0f} s left"


def is_done(path: Path) -> bool:
    """Whether a run has come to its end: of its stream, or where it was told to stop."""
    return directory.is_run(path) and directory.read_status(path)["status"] in ("done", "stopped")


def last_lines(path: Path) -> list[str]:
    """How a run that failed ended: the last lines of what it said, here or as a job, whichever was later."""
    job = jobs.read(path)
    printed = [file for file in (path / "output.log", *([job.log] if job else [])) if file.is_file()]
    printed.sort(key=lambda file: file.stat().st_mtime, reverse=True)
    for place in (*printed, path / "log.txt"):
        with contextlib.suppress(OSError), open(place, encoding="utf-8", errors="replace") as file:
            found = [text(line.rstrip("\n")) for line in deque(file, LAST_LINES)]
            if found:
                return found
    return ["it said nothing"]
