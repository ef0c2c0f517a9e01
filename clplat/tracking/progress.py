"""What one sees while a run goes on: bars on a terminal, plain lines elsewhere; and the summary at its end."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table


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
    """The display that ``trainer.progress`` asks for: auto, bars, lines or none."""
    if kind == "auto":
        kind = "bars" if sys.stderr.isatty() else "lines"
    return {"bars": Bars, "lines": Lines, "none": Silent}[kind]()


def print_summary(results: Mapping[str, Any], run_dir: object) -> None:
    """The matrix, the summary, time and memory, and where the run lies, on standard output."""
    console = Console(width=None if sys.stdout.isatty() else 200, highlight=False)
    matrix = results["matrix"]
    table = Table(title=f"{results['metric']} after experience (row) on experience (column)", title_justify="left")
    table.add_column("after")
    for j in range(len(matrix)):
        table.add_column(str(j + 1), justify="right")
    for i, row in enumerate([results["baseline"], *matrix]):
        cells = ["" if value is None else f"{value:.3f}" for value in row]
        # What was learned so far stands bold; to the right of it is what transfers forward.
        cells = [f"[bold]{cell}[/bold]" if j < i else f"[dim]{cell}[/dim]" for j, cell in enumerate(cells)]
        table.add_row("start" if i == 0 else str(i), *cells)
    console.print(table)
    names = {"learning_accuracy": "learning accuracy", "average_incremental": "average incremental accuracy"}
    for name, value in results["summary"].items():
        reason = results["reasons"].get(name, "")
        console.print(f"{names.get(name, name):>28}  {'-' if value is None else f'{value:.4f}'}  {reason}".rstrip())
    console.print(f"{'time':>28}  {results['seconds']:.1f} s (training {results['train_seconds']:.1f} s)")
    peak, stored = results["peak_bytes"] / 2**20, results["stored_bytes"] / 2**20
    console.print(f"{'memory':>28}  {peak:.0f} MiB at most, {stored:.2f} MiB kept by the strategy")
    console.print(f"{'run':>28}  {run_dir}", soft_wrap=True)
