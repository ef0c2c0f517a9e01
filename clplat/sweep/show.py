"""What one sees while a sweep goes on: a table that lives on a terminal, and a line for each change elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from clplat.sweep import pool
from clplat.sweep.state import HEAD, Progress

if TYPE_CHECKING:
    from rich.table import Table


class Lines:
    """A line when a run begins and one when it ends."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.labels = {run.path: run.label for run in progress.runs}

    def started(self, path: Path) -> None:
        """A run begins."""
        self.progress.active[path] = time.monotonic()
        self._say(path, "started")

    def ended(self, path: Path, code: int) -> None:
        """A run ended."""
        since = self.progress.active.pop(path, None)
        if since is not None and not code:
            self.progress.spent.append(time.monotonic() - since)
        if code and not pool.stopped(code):
            self.progress.failed[path] = code
        self._say(path, "done" if not code else "stopped" if pool.stopped(code) else f"failed with exit code {code}")

    def refresh(self) -> None:
        """Called again and again."""

    def _say(self, path: Path, what: str) -> None:
        row = next(row for run, row in zip(self.progress.runs, self.progress.rows(), strict=True) if run.path == path)
        acc = f", ACC {row[3]}" if what == "done" else ""
        left = self.progress.remaining()
        print(f"{self.labels[path]}: {what}{acc}{f' ({left})' if left else ''}", file=sys.stderr, flush=True)


class Live(Lines):
    """The whole table, drawn anew every second."""

    def __init__(self, progress: Progress) -> None:
        super().__init__(progress)
        from rich.live import Live as Drawn

        self.drawn = Drawn(self._table(), auto_refresh=False, transient=False)
        self.last = time.monotonic()

    def refresh(self) -> None:
        if time.monotonic() - self.last > 1:
            self.drawn.update(self._table(), refresh=True)
            self.last = time.monotonic()

    def _say(self, path: Path, what: str) -> None:
        self.drawn.update(self._table(), refresh=True)

    def _table(self) -> Table:
        from rich import box
        from rich.table import Table
        from rich.text import Text

        table = Table(*HEAD, box=box.SIMPLE_HEAD, pad_edge=False, caption=self.progress.remaining())
        order = {"running": 0, "failed": 1, "waiting": 2, "elsewhere": 3, "done": 4}
        rows = sorted(self.progress.rows(), key=lambda row: order[row[1]])
        height = 30  # what fits on most screens: what is under way goes first
        for row in rows[:height]:
            table.add_row(*map(Text, row))
        if len(rows) > height:
            table.add_row(f"... and {len(rows) - height} more")
        return table


@contextlib.contextmanager
def live(progress: Progress) -> Iterator[Lines]:
    """The one that suits where it is read."""
    if not sys.stderr.isatty():
        yield Lines(progress)
        return
    show = Live(progress)
    with show.drawn:
        yield show
