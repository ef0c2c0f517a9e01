"""What one sees while a run goes on: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class Display(Protocol):
    """Shows where a run stands."""

    def phase(self, experience: int, experiences: int, name: str, position: int, total: int) -> None:
        """A training phase, or another stage with no known length (total 0), begins."""

    def advance(self, loss: float | None = None) -> None:
        """One optimiser step is done; the loss where it was measured."""

    def evaluated(self, experience: int, experiences: int, row: Mapping[int, float], seconds: float) -> None:
        """An experience is over; ``row`` holds the metric on each experience that was evaluated."""

    def close(self) -> None:
        """Nothing more will come."""


class Silent:
    """Shows nothing."""

    def phase(self, experience: int, experiences: int, name: str, position: int, total: int) -> None: ...

    def advance(self, loss: float | None = None) -> None: ...

    def evaluated(self, experience: int, experiences: int, row: Mapping[int, float], seconds: float) -> None: ...

    def close(self) -> None: ...


class Lines(Silent):
    """One line for each experience, for files and pipes."""

    def evaluated(self, experience: int, experiences: int, row: Mapping[int, float], seconds: float) -> None:
        shown = " ".join(f"{value:.3f}" for _, value in sorted(row.items()))
        print(f"experience {experience + 1}/{experiences}  {seconds:6.1f} s  {shown}", file=sys.stderr, flush=True)


class Bars(Silent):
    """Two bars: the stream of experiences, and the experience that runs."""

    def __init__(self) -> None:
        columns = (BarColumn(bar_width=30), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        self.progress = Progress(
            TextColumn("{task.description}"), *columns, console=Console(stderr=True), refresh_per_second=5
        )
        self.stream = self.progress.add_task("stream", total=None)
        self.current = self.progress.add_task("", total=None, visible=False)
        self.progress.start()

    def phase(self, experience: int, experiences: int, name: str, position: int, total: int) -> None:
        self.progress.update(self.stream, total=experiences, completed=experience)
        self.progress.reset(self.current, total=total or None, completed=position, visible=True)
        self.progress.update(self.current, description=f"experience {experience + 1} {name}")

    def advance(self, loss: float | None = None) -> None:
        self.progress.advance(self.current)

    def evaluated(self, experience: int, experiences: int, row: Mapping[int, float], seconds: float) -> None:
        self.progress.update(self.stream, completed=experience + 1)

    def close(self) -> None:
        self.progress.stop()


def display(kind: str) -> Display:
    """The display that ``trainer.progress`` asks for: auto, bars, lines; none, quiet and json show nothing now."""
    if kind == "auto":
        kind = "bars" if sys.stderr.isatty() else "lines"
    return {"bars": Bars, "lines": Lines}.get(kind, Silent)()
