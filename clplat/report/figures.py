"""Figures of one run's evaluations as plotly's own JSON (``{"data": [...], "layout": {...}}``): pure functions of what
runs hold. Where there is nothing to draw they raise :class:`NotMeasuredError` with the reason.

Text in a figure is a small markup of plotly's (``<b>``, ``<a href>``, ``&lt;``), so names go through :func:`label`.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

from clplat.metrics.evidence import NotMeasuredError
from clplat.report.runs import RunData
from clplat.report.thin import thin
from clplat.report.values import Row

Figure = dict[str, Any]

# Okabe and Ito's colours, which also those tell apart who see few colours.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#999933")
BLUES = [[0.0, "#f7fbff"], [0.25, "#c6dbef"], [0.5, "#6baed6"], [0.75, "#2171b5"], [1.0, "#08306b"]]
NUMBERS_UP_TO = 40  # experiences: beyond that numbers in cells cannot be read
NOTHING = "nothing has been evaluated yet"


def label(text: str) -> str:
    """A name as plotly shows it letter by letter."""
    return html.escape(text, quote=False)


def colour(number: int) -> str:
    """The colour of trace ``number``."""
    return COLOURS[number % len(COLOURS)]


def layout(title: str, x: str, y: str, **more: Any) -> Figure:
    """The look that all figures share; the texts go through :func:`label` where they are names."""
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


def near(values: Sequence[float], ends: Sequence[float] = ()) -> list[float]:
    """A range for an axis that shows all values, and of their intervals' ends those that are not far out: two seeds
    can have an interval many times as wide as all that was measured."""
    low, high = min(values), max(values)
    room = (high - low or abs(high) or 1.0) / 4
    low, high = min([low, *(max(e, low - room) for e in ends)]), max([high, *(min(e, high + room) for e in ends)])
    return [low - room / 5, high + room / 5]


def around(data: Sequence[Figure]) -> Figure:
    """The axis of curves with their bands; empty where there is nothing to show."""
    curves = [y for trace in data if "fill" not in trace for y in trace["y"] if y is not None]
    bands = [y for trace in data if "fill" in trace for y in trace["y"]]
    return {"range": near(curves, bands)} if curves else {}


def line(name: str, x: Sequence[float], y: Sequence[float | None], drawn_in: str, **more: Any) -> Figure:
    """A curve with its points; the name goes through :func:`label`."""
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": label(name),
        "x": list(x),
        "y": list(y),
        "line": {"color": drawn_in},
        "hovertemplate": "%{fullData.name}, %{x}: %{y:.4f}<extra></extra>",
        **more,
    }


def at(row: Row | None, j: int) -> float | None:
    """A value of a row that may be shorter than others."""
    return row[j] if row is not None and j < len(row) else None


def matrix(run: RunData) -> Figure:
    """The heat map of a run's matrix, the untrained network on top, with a slider over training that lets its rows
    appear.

    What was learned by then is in colour; what was still to come (above the diagonal, and the first row) in grey.
    """
    rows: list[tuple[int, Row]] = [] if run.baseline is None else [(-1, run.baseline)]
    rows += list(enumerate(run.matrix))
    if not rows:
        raise NotMeasuredError(NOTHING)
    width = max(len(row) for _, row in rows)
    cells = [[at(row, j) for j in range(width)] for _, row in rows]
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

    greys = [[0.0, "#fafafa"], [1.0, "#cccccc"]]
    whole = layout(
        f"{label(run.metric)} after each experience",
        "on experience",
        "after",
        height=210 + 26 * max(len(rows), 3),
    )
    whole["margin"]["b"] = 120
    whole["xaxis"] |= {"type": "category", "showgrid": False}
    whole["yaxis"] |= {"type": "category", "range": [len(rows) - 0.5, -0.5], "showgrid": False}
    if len(rows) > 1:
        whole["sliders"] = [_growing(after)]
    data = [
        trace(True, BLUES, colorbar={"title": {"text": label(run.metric)}}),
        trace(False, greys, showscale=False, textfont={"color": "#777777"}),
    ]
    return {"data": data, "layout": whole}


def _growing(after: Sequence[str]) -> Figure:
    """A slider that shows the first rows of a matrix, each as high as it is when all are shown."""
    n = len(after)
    steps = [
        {
            "label": name,
            "method": "relayout",
            "args": [{"yaxis.range": [k + 0.5, -0.5], "yaxis.domain": [1 - (k + 1) / n, 1]}],
        }
        for k, name in enumerate(after)
    ]
    return {"active": n - 1, "steps": steps, "currentvalue": {"prefix": "after "}, "pad": {"t": 55}}


def curves(run: RunData) -> Figure:
    """Each experience's metric over the run; the large marker is where it was learned.

    With evaluations inside experiences (``eval.every``) it is over optimiser steps, with a line where each experience
    ends; else over experiences.
    """
    rows = [*([] if run.baseline is None else [(0, run.baseline)]), *enumerate(run.matrix, 1)]
    if not rows:
        raise NotMeasuredError(NOTHING)
    over_steps = bool(run.looks) and all(run.end(i) is not None for i in range(len(run.matrix)))
    points = _over_steps(run) if over_steps else [(i, i, row) for i, row in rows]
    width = max(len(row) for _, row in rows)
    data = []
    for j in range(width):
        values = [at(row, j) for _, _, row in points]
        sizes = [11 if i and run.teaches(i - 1) == j else 5 for _, i, _ in points]
        if over_steps:
            data += _watched(f"experience {j + 1}", [x for x, _, _ in points], values, sizes, colour(j))
        else:
            trace = line(f"experience {j + 1}", [x for x, _, _ in points], values, colour(j))
            data.append({**trace, "marker": {"size": sizes}})
    x = "optimiser step (a line where an experience ends)" if over_steps else "after experience (0: untrained)"
    whole = layout("Each experience over the run", x, label(run.metric))
    whole |= {"showlegend": True, "height": 420, "hovermode": "closest"}
    if over_steps:
        whole["shapes"] = [boundary(end) for end in run.ends if end is not None]
    else:
        whole["xaxis"] |= {"dtick": 1} if len(rows) <= 20 else {}
    return {"data": data, "layout": whole}


def boundary(step: float) -> Figure:
    """A line where an experience ends."""
    place = {"x0": step, "x1": step, "y0": 0, "y1": 1, "yref": "paper"}
    return {"type": "line", **place, "line": {"color": "#999999", "width": 1, "dash": "dot"}}


def _over_steps(run: RunData) -> list[tuple[int, int, Row]]:
    """All evaluations in order: the step, the number of experiences if it is at the end of one (else 0), the row."""
    found = [(0, 0, run.baseline)] if run.baseline is not None else []
    found += [(look.step, 0, list(look.row)) for look in run.looks if look.step is not None]
    found += [(end, i, row) for i, (end, row) in enumerate(zip(run.ends, run.matrix, strict=False), 1) if end]
    return sorted(found, key=lambda point: point[:2])


def _watched(
    name: str, x: Sequence[int], y: Sequence[float | None], sizes: Sequence[int], drawn_in: str
) -> list[Figure]:
    """A long curve, and the one point in it where its experience was learned."""
    kept = thin(x, y)
    found = [line(name, *kept, drawn_in, mode="lines")]
    large = [(a, b) for a, b, size in zip(x, y, sizes, strict=True) if size > 5]
    if large:
        a, b = zip(*large, strict=True)
        found.append(line(name, a, b, drawn_in, mode="markers", marker={"size": 9}, showlegend=False))
    return found


def gap(run: RunData) -> Figure:
    """The stability gap seen close: for each experience the mean over the experiences before it, from the moment at
    which it begins (De Lange et al. 2023, who found that a network forgets most in the first steps, and then recovers).
    """
    if not run.looks:
        raise NotMeasuredError("nothing was evaluated inside experiences: train with eval.every > 0")
    data = []
    for i in range(1, len(run.matrix)):
        begin, before = run.end(i - 1), {run.teaches(k) for k in range(i)} - {run.teaches(i)}
        if begin is None or not before:
            continue
        inside = [(look.step - begin, look.row) for look in run.looks if look.experience == i and look.step is not None]
        end = run.end(i)
        points = [(0, run.matrix[i - 1]), *inside, *([] if end is None else [(end - begin, run.matrix[i])])]
        kept = [(x, [at(list(row), j) for j in before]) for x, row in points]
        means = [(x, sum(v for v in row if v is not None) / len(row)) for x, row in kept if None not in row]
        if means:
            x, y = zip(*means, strict=True)
            data.append(line(f"while {i + 1} is learned", *thin(x, y), colour(i)))
    if not data:
        raise NotMeasuredError("the stability gap needs two experiences")
    whole = layout("Experiences before, while the next is learned", "steps since it began", label(run.metric))
    return {"data": data, "layout": {**whole, "showlegend": True, "height": 420, "hovermode": "closest"}}
