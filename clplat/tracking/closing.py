"""What one sees when a run has ended: its matrix and summary, the best and the worst task, and what to do next."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from clplat.tracking.directory import shown
from clplat.tracking.record import finite

WIDEST = 40  # test experiences: beyond that a terminal cannot show the matrix
NAMES = {"learning_accuracy": "learning accuracy", "average_incremental": "average incremental accuracy"}


def show(results: Mapping[str, Any], run_dir: Path, progress: str) -> None:
    """Tell on standard output what came of a run, as ``trainer.progress`` says: as JSON, not at all, or in words."""
    if progress == "json":
        print(json.dumps(finite({"run": str(run_dir), **results}), indent=2, allow_nan=False))
    elif progress != "quiet":
        print_summary(results, run_dir)


def show_stopped(run_dir: Path, code: int, progress: str) -> None:
    """Tell on standard output that a signal stopped a run, where that is to be told as JSON: what ``status.json`` says
    of it, and what the process ends with (130 after Ctrl-C, else 75)."""
    if progress == "json":
        print(json.dumps({"run": str(run_dir), "status": "preempted", "exit_code": code}, indent=2), flush=True)


def print_summary(results: Mapping[str, Any], run_dir: Path) -> None:
    """The matrix, the summary, time and memory, best and worst task, and three commands that make sense now."""
    console = Console(width=None if sys.stdout.isatty() else 200, highlight=False, markup=False)
    rows, tests = [results["baseline"], *results["matrix"]], results.get("tests") or range(len(results["matrix"]))
    width = max(map(len, rows))
    if width <= WIDEST:
        console.print(_matrix(rows, tests, results["metric"]))
    pairs = [
        (NAMES.get(name, name), f"{'-' if value is None else f'{value:.4f}'}  {results['reasons'].get(name, '')}")
        for name, value in results["summary"].items()
    ]
    pairs += [(f"{which} task", words) for which, words in extremes(results).items()]
    peak, stored = results["peak_bytes"] / 2**20, results["stored_bytes"] / 2**20
    pairs += [
        ("time", f"{results['seconds']:.1f} s (training {results['train_seconds']:.1f} s)"),
        ("memory", f"{peak:.0f} MiB at most, {stored:.2f} MiB kept by the strategy"),
        ("run", str(run_dir)),
        *(("next" if number == 0 else "", command) for number, command in enumerate(following(results, run_dir))),
    ]
    for name, words in pairs:
        console.print(f"{name:>28}  {words}".rstrip(), soft_wrap=True)


def _matrix(rows: Sequence[Sequence[float | None]], tests: Sequence[int], metric: str) -> Table:
    title = Text(f"{metric} after experience (row) on experience (column)")
    table = Table(title=title, title_justify="left")
    table.add_column("after")
    for j in range(max(map(len, rows))):
        table.add_column(str(j + 1), justify="right")
    for i, row in enumerate(rows):
        # What was learned so far stands bold; the rest is what transfers forward.
        seen = set(tests[:i])
        cells = [
            Text("" if value is None else f"{value:.3f}", "bold" if j in seen else "dim") for j, value in enumerate(row)
        ]
        table.add_row("start" if i == 0 else str(i), *cells)
    return table


def extremes(results: Mapping[str, Any]) -> dict[str, str]:
    """The best and the worst of the tasks learned so far, after the last experience, and how good they once were; empty
    where fewer than two were evaluated."""
    matrix = results["matrix"]
    learned: dict[int, int] = {}
    for i, j in enumerate((results.get("tests") or range(len(matrix)))[: len(matrix)]):
        learned.setdefault(j, i)
    last = {j: matrix[-1][j] for j in learned if matrix[-1][j] is not None}
    if len(last) < 2:
        return {}
    order = sorted(last, key=lambda j: last[j], reverse=results["direction"] == "max")

    def words(j: int) -> str:
        first = matrix[learned[j]][j]
        before = "" if first is None else f", {first:.4f} when it was learned"
        return f"{j + 1}  ({last[j]:.4f}{before})"

    return {"best": words(order[0]), "worst": words(order[-1])}


def following(results: Mapping[str, Any], run_dir: Path) -> list[str]:
    """Three commands that make sense after a run, with its own path."""
    path = shown(run_dir)
    looking = [f"clplat report {path}", f"clplat metrics {path}"]
    if results["status"] != "done":
        return [f"clplat resume {path}", *looking]
    return [*looking, f"clplat compare {shown(run_dir.resolve().parent)}"]
