"""Tables of runs as headings and rows of text, for the terminal and for the page alike."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

from clplat.report.compare import Group
from clplat.report.runs import Row, RunData, text

Table = tuple[list[str], list[list[str]]]

NAMES = {"learning_accuracy": "learning acc."}
METRICS = ("ACC", "forgetting", "BWT", "FWT", "learning_accuracy")
GROUPS = ("strategy", "backbone", "scenario")


def number(value: float | None, digits: int = 4) -> str:
    """A number with so many digits, or ``-``."""
    return "-" if value is None else f"{value:.{digits}f}"


def summary(runs: Sequence[RunData]) -> Table:
    """One row for each run."""
    head = ["run", *GROUPS, "seed", *(NAMES.get(name, name) for name in METRICS), "seconds", "status"]
    rows = [
        [
            run.label,
            *(run.name(group) for group in GROUPS),
            run.seed,
            *(number(run.summary.get(name)) for name in METRICS),
            number(run.seconds, 1),
            run.state,
        ]
        for run in runs
    ]
    return head, rows


def seeds(found: Sequence[Group]) -> Table | None:
    """Mean and standard deviation over seeds, one row for each group; None where no group has two seeds."""
    if not any(len(group.runs) > 1 for group in found):
        return None
    where = any(group.where for group in found)
    head = [*GROUPS, *(["where"] if where else []), "n", *(NAMES.get(name, name) for name in METRICS)]
    rows = []
    for group in found:
        cells = [group.runs[0].name(kind) for kind in GROUPS]
        cells += [" ".join(group.where)] if where else []
        rows.append([*cells, str(len(group.runs)), *(_mean_std(group, name) for name in METRICS)])
    return head, rows


def _mean_std(group: Group, metric: str) -> str:
    found = group.mean_std(metric)
    if found is None:
        return "-"
    mean, std, n = found
    shown = number(mean) if std is None else f"{number(mean)} ± {number(std)}"
    return shown if n == len(group.runs) else f"{shown} ({n})"


def matrix(run: RunData) -> Table:
    """The metric after experience (row) on experience (column), the untrained network first."""
    rows: list[tuple[str, Row]] = [] if run.baseline is None else [("start", run.baseline)]
    rows += [(str(i), row) for i, row in enumerate(run.matrix, 1)]
    width = max((len(row) for _, row in rows), default=0)
    body = [[name, *(("" if v is None else f"{v:.3f}") for v in row), *[""] * (width - len(row))] for name, row in rows]
    return ["after", *map(str, range(1, width + 1))], body


def as_html(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table as HTML; all of it is text."""
    cells = ["".join(f"<td>{html.escape(cell)}</td>" for cell in row) for row in rows]
    names = "".join(f"<th>{html.escape(name)}</th>" for name in head)
    return f"<table><tr>{names}</tr>{''.join(f'<tr>{row}</tr>' for row in cells)}</table>"


def as_json(runs: Sequence[RunData], found: Sequence[Group]) -> dict[str, Any]:
    """Runs and groups as plain values."""
    return {
        "runs": [
            {
                "run": run.label,
                "path": text(run.path),
                **{group: run.name(group) for group in GROUPS},
                "seed": seed if isinstance(seed := run.config.get("seed"), int) else run.seed,
                "status": run.status,
                "metric": run.metric,
                "direction": run.direction,
                "baseline": run.baseline,
                "matrix": run.matrix,
                "average_seen": run.average_seen,
                "summary": run.summary,
                "reasons": run.reasons,
                "steps": run.steps,
                "seconds": run.seconds,
                "problems": run.problems,
            }
            for run in runs
        ],
        "groups": [
            {
                **{kind: group.runs[0].name(kind) for kind in GROUPS},
                "where": group.where,
                "runs": [run.label for run in group.runs],
                "summary": {
                    name: {"mean": values[0], "std": values[1], "n": values[2]}
                    for name in METRICS
                    if (values := group.mean_std(name)) is not None
                },
            }
            for group in found
        ],
    }
