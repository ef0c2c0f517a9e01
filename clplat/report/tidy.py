"""What was measured of runs in long form, one value a row: for tables of one's own.

Experiences count from 1, as in all reports; after 0 is the untrained network.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator, Sequence
from typing import Any

from clplat.report.runs import RunData
from clplat.report.values import number

COLUMNS = (
    "run",
    "strategy",
    "backbone",
    "scenario",
    "seed",
    "status",
    "kind",  # evaluation, look (inside an experience), train (loss terms), optim (learning rate, ...), summary or cost
    "after",  # experiences that have ended
    "on",  # the experience that was evaluated
    "step",
    "metric",
    "value",
)
COSTS = ("parameters", "trainable_parameters", "stored_bytes", "state_size", "train_seconds", "peak_bytes")


def rows(runs: Sequence[RunData]) -> Iterator[dict[str, Any]]:
    """All values, with :data:`COLUMNS` as keys; what does not apply is None."""
    for run in runs:
        named = {
            "run": run.label,
            **{group: run.name(group) for group in ("strategy", "backbone", "scenario")},
            "seed": run.seed,
            "status": run.status,
        }
        for kind, after, on, step, metric, value in _values(run):
            if value is not None:
                measured = {"kind": kind, "after": after, "on": on, "step": step, "metric": metric, "value": value}
                yield {**named, **measured}


Value = tuple[str, int | None, int | None, int | None, str, float | None]


def _values(run: RunData) -> Iterator[Value]:
    for j, value in enumerate(run.baseline or (), 1):
        yield "evaluation", 0, j, 0, run.metric, value
    for i, row in enumerate(run.matrix, 1):
        for j, value in enumerate(row, 1):
            yield "evaluation", i, j, run.end(i - 1), run.metric, value
    for look in run.looks:
        for j, value in enumerate(look.row, 1):
            yield "look", look.experience, j, look.step, run.metric, value
    for kind, columns in (("train", run.training.terms), ("optim", run.training.optim)):
        for name, column in columns.items():
            for experience, step, value in zip(run.training.experience, run.training.step, column, strict=True):
                yield kind, experience, None, step, name, None if math.isnan(value) else value
    for name, value in run.summary.items():
        yield "summary", len(run.matrix), None, run.steps, name, value
    yield "cost", len(run.matrix), None, run.steps, "seconds", run.seconds
    for name in COSTS:
        yield "cost", len(run.matrix), None, run.steps, name, number(run.results.get(name))


def as_csv(runs: Sequence[RunData]) -> str:
    """A CSV file of all values. A text that a spreadsheet would take for a formula has a ' in front."""
    file = io.StringIO()
    writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for row in rows(runs):
        writer.writerow({key: _harmless(value) for key, value in row.items()})
    return file.getvalue()


def _harmless(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@")) else value
