"""Figures as plotly's own JSON (``{"data": [...], "layout": {...}}``): pure functions of what runs hold.

Text in a figure is a small markup of plotly's (``<b>``, ``<a href>``, ``&lt;``), so names go through :func:`label`.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

from clplat.report.compare import group_key
from clplat.report.runs import Row, RunData

Figure = dict[str, Any]

# Okabe and Ito's colours, which also those tell apart who see few colours.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999933")
NUMBERS_UP_TO = 40  # experiences: beyond that numbers in cells cannot be read


def label(text: str) -> str:
    """A name as plotly shows it letter by letter."""
    return html.escape(text, quote=False)


def layout(title: str, x: str, y: str, **more: Any) -> Figure:
    """What all figures have in common, with titles for the whole and for both axes."""
    axis = {"automargin": True, "gridcolor": "#e5e5e5", "zeroline": False}
    return {
        "title": {"text": title, "x": 0, "xref": "paper", "font": {"size": 15}},
        "font": {"family": "system-ui, sans-serif"},
        "margin": {"l": 60, "r": 20, "t": 50, "b": 50},
        "paper_bgcolor": "#ffffff",
        "plot_bgcolor": "#ffffff",
        "xaxis": {**axis, "title": {"text": x}},
        "yaxis": {**axis, "title": {"text": y}},
        **more,
    }


def matrix(run: RunData) -> Figure:
    """The heat map of a run's matrix, the untrained network on top.

    What was learned by then is in colour; what was still to come (above the diagonal, and the first row) in grey.
    """
    rows: list[tuple[int, Row]] = [] if run.baseline is None else [(-1, run.baseline)]
    rows += list(enumerate(run.matrix))
    width = max((len(row) for _, row in rows), default=0)
    cells = [[row[j] if j < len(row) else None for j in range(width)] for _, row in rows]
    known = [value for row in cells for value in row if value is not None]
    share = all(0 <= value <= 1 for value in known) and run.direction == "max"
    low, high = (0.0, 1.0) if share or not known else (min(known), max(known))
    after = ["start" if i < 0 else str(i + 1) for i, _ in rows]

    by_then = [{run.teaches(k) for k in range(i + 1)} for i, _ in rows]

    def trace(seen: bool, colours: list[list[Any]], **more: Any) -> Figure:
        shown = [
            [value if (j in learned) == seen else None for j, value in enumerate(row)]
            for learned, row in zip(by_then, cells, strict=True)
        ]
        digits = 3 if width <= 10 else 2
        text = [["" if value is None else f"{value:.{digits}f}" for value in row] for row in shown]
        return {
            "type": "heatmap",
            "name": "seen" if seen else "still to come",
            "z": shown,
            "x": [str(j + 1) for j in range(width)],
            "y": after,
            "zmin": low,
            "zmax": high,
            "colorscale": colours,
            "reversescale": run.direction == "min",
            "hoverongaps": False,
            "hovertemplate": "after %{y}, on %{x}: %{z:.4f}<extra></extra>",
            "xgap": 1,
            "ygap": 1,
            **({"text": text, "texttemplate": "%{text}"} if width <= NUMBERS_UP_TO else {}),
            **more,
        }

    blues = [[0.0, "#f7fbff"], [0.25, "#c6dbef"], [0.5, "#6baed6"], [0.75, "#2171b5"], [1.0, "#08306b"]]
    greys = [[0.0, "#fafafa"], [1.0, "#cccccc"]]
    whole = layout(
        f"{label(run.metric)} after experience (row) on experience (column)",
        "on experience",
        "after",
        height=130 + 26 * max(len(rows), 3),
    )
    whole["xaxis"] |= {"type": "category", "showgrid": False}
    whole["yaxis"] |= {"type": "category", "autorange": "reversed", "showgrid": False}
    data = [
        trace(True, blues, colorbar={"title": {"text": label(run.metric)}}),
        trace(False, greys, showscale=False, textfont={"color": "#777777"}),
    ]
    return {"data": data, "layout": whole}


def average_seen(runs: Sequence[RunData]) -> Figure:
    """The mean over the experiences seen so far, after each; runs that differ in the seed alone share a colour."""
    colours: dict[str, str] = {}
    data = []
    for run in runs:
        colour = colours.setdefault(group_key(run) if run.config else run.label, COLOURS[len(colours) % len(COLOURS)])
        if run.matrix:
            data.append(_line(label(run.label), range(1, len(run.matrix) + 1), run.average_seen, colour))
    metrics = sorted({run.metric for run in runs if run.matrix})
    whole = layout("Mean over the experiences seen", "after experience", label(" / ".join(metrics)))
    whole |= {"showlegend": True, "height": 420, "hovermode": "closest"}
    whole["xaxis"] |= {"dtick": 1} if max((len(run.matrix) for run in runs), default=0) <= 20 else {}
    return {"data": data, "layout": whole}


def curves(run: RunData) -> Figure:
    """Each experience's metric over the run; the large marker is where it was learned."""
    rows = [*([] if run.baseline is None else [(0, run.baseline)]), *enumerate(run.matrix, 1)]
    width = max((len(row) for _, row in rows), default=0)
    data = []
    for j in range(width):
        trace = _line(
            f"experience {j + 1}",
            [i for i, _ in rows],
            [row[j] if j < len(row) else None for _, row in rows],
            COLOURS[j % len(COLOURS)],
        )
        trace["marker"] = {"size": [11 if i and run.teaches(i - 1) == j else 5 for i, _ in rows]}
        data.append(trace)
    whole = layout("Each experience over the run", "after experience (0: untrained)", label(run.metric))
    whole |= {"showlegend": True, "height": 420, "hovermode": "closest"}
    whole["xaxis"] |= {"dtick": 1} if len(rows) <= 20 else {}
    return {"data": data, "layout": whole}


def _line(name: str, x: Sequence[int], y: Sequence[float | None], colour: str) -> Figure:
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": name,
        "x": list(x),
        "y": list(y),
        "line": {"color": colour},
        "hovertemplate": "%{fullData.name}, after %{x}: %{y:.4f}<extra></extra>",
    }
