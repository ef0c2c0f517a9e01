"""Small figures as plotly's own JSON, of lines, bars, points and cells: what probes draw with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from clplat.report.figures import Figure, colour, label, layout

Values = Sequence[float | None]


def lines(
    title: str, x: str, y: str, curves: Mapping[str, tuple[Sequence[Any], Values]], *, log_x: bool = False
) -> Figure:
    """Curves by name, each with what it is over."""
    data = [_trace(n, name, xs, ys, "lines+markers") for n, (name, (xs, ys)) in enumerate(curves.items())]
    return {"data": data, "layout": _layout(title, x, y, len(data), log_x)}


def points(title: str, x: str, y: str, groups: Mapping[str, tuple[Sequence[Any], Values]]) -> Figure:
    """Clouds of points by name."""
    data = [_trace(n, name, xs, ys, "markers") for n, (name, (xs, ys)) in enumerate(groups.items())]
    return {"data": data, "layout": _layout(title, x, y, len(data), False)}


def bars(title: str, x: str, y: str, groups: Mapping[str, tuple[Sequence[Any], Values]]) -> Figure:
    """Bars side by side, one colour for each name."""
    data = [
        {"type": "bar", "name": label(name), "x": list(xs), "y": list(ys), "marker": {"color": colour(n)}}
        for n, (name, (xs, ys)) in enumerate(groups.items())
    ]
    return {"data": data, "layout": _layout(title, x, y, len(data), False)}


def cells(
    title: str, x: str, y: str, values: Sequence[Values], *, low: float | None = None, high: float | None = None
) -> Figure:
    """A table of numbers as colours: the first row on top, rows and columns counted from 0."""
    trace: Figure = {
        "type": "heatmap",
        "z": [list(row) for row in values],
        "colorscale": [[0.0, "#f7fbff"], [0.5, "#6baed6"], [1.0, "#08306b"]],
        **({} if low is None else {"zmin": low}),
        **({} if high is None else {"zmax": high}),
    }
    made = layout(label(title), label(x), label(y))
    made["yaxis"] |= {"autorange": "reversed", "dtick": 1}
    return {"data": [trace], "layout": made}


def _trace(number: int, name: str, xs: Sequence[Any], ys: Values, mode: str) -> Figure:
    drawn_in = {"color": colour(number)}
    return {
        "type": "scatter",
        "mode": mode,
        "name": label(name),
        "x": list(xs),
        "y": list(ys),
        "line": drawn_in,
        "marker": drawn_in,
    }


def _layout(title: str, x: str, y: str, traces: int, log_x: bool) -> Figure:
    made = layout(label(title), label(x), label(y), showlegend=traces > 1, height=420)
    made["xaxis"] |= {"type": "log"} if log_x else {}
    return made
