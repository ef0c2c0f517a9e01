"""Curves of several runs in one figure, or of groups of them: the mean with its 95% confidence interval."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from clplat.errors import UsageError
from clplat.metrics.evidence import NotMeasuredError
from clplat.report.comparison import value_of
from clplat.report.figures import COLOURS, Figure, around, label, layout
from clplat.report.runs import RunData
from clplat.report.statistics import estimate
from clplat.report.thin import thin

NAMED_UP_TO = 20  # curves: a longer legend would leave no room; a curve says its name under the mouse
GRID = 200  # steps at which the means over runs are taken

Curve = tuple[Sequence[float], Sequence[float | None]]


def average(runs: Sequence[RunData], by: str | None = None) -> Figure:
    """The mean over the experiences seen so far, after each.

    Args:
        by: a key of the configuration; runs with the same value become one curve with a band.

    Raises:
        NotMeasuredError: nothing was evaluated yet.
        UsageError: no run has such a key.
    """
    curves: dict[str, Curve] = {
        run.label: (range(1, len(run.matrix) + 1), run.average_seen) for run in runs if run.matrix
    }
    metrics = " / ".join(sorted({run.metric for run in runs if run.matrix}))
    return _figure("Mean over the experiences seen", "after experience", metrics, runs, curves, by, markers=True)


def term(runs: Sequence[RunData], name: str, by: str | None = None) -> Figure:
    """A loss term over optimiser steps, thinned to what a screen can show; for groups at steps that they share.

    Raises:
        NotMeasuredError: no run has it.
        UsageError: no run has such a key.
    """
    curves: dict[str, Curve] = {}
    for run in runs:
        if name in run.training.terms:
            points = list(run.training.curve(name))
            curves[run.label] = thin([step for step, _ in points], [value for _, value in points])
    return _figure(name, "optimiser step", name, runs, curves, by, markers=False)


def terms(runs: Sequence[RunData]) -> list[str]:
    """The names of the loss terms that some run has, those that more runs have first."""
    counts: dict[str, int] = {}
    for run in runs:
        for name in run.training.terms:
            counts[name] = counts.get(name, 0) + 1
    return sorted(counts, key=lambda name: (-counts[name], name != "loss", name))


def _figure(
    title: str,
    x: str,
    y: str,
    runs: Sequence[RunData],
    curves: Mapping[str, Curve],
    by: str | None,
    *,
    markers: bool,
) -> Figure:
    if not curves:
        raise NotMeasuredError(
            f"{'no run' if len(runs) != 1 else 'the run'} has written down {y or 'an evaluation'} yet"
        )
    data: list[Figure] = []
    mode = "lines+markers" if markers else "lines"
    if by is None:
        for number, (name, curve) in enumerate(curves.items()):
            data.append(_line(name, curve, COLOURS[number % len(COLOURS)], mode))
    else:
        for number, (value, members) in enumerate(_groups(runs, curves, by).items()):
            data += _band(f"{by}={value}", members, COLOURS[number % len(COLOURS)], mode)
    named = sum(trace.get("showlegend", True) for trace in data) <= NAMED_UP_TO
    whole = layout(label(title), x, label(y), showlegend=named, height=460, hovermode="closest")
    whole["yaxis"] |= around(data)
    whole["xaxis"] |= {"dtick": 1} if markers and max(len(x) for x, _ in curves.values()) <= 20 else {}
    return {"data": data, "layout": whole}


def _groups(runs: Sequence[RunData], curves: Mapping[str, Curve], by: str) -> dict[str, list[Curve]]:
    found: dict[str, list[Curve]] = {}
    for run in runs:
        value = value_of(run, by)
        if run.label in curves and value is not None:
            found.setdefault(value, []).append(curves[run.label])
    if not found:
        raise UsageError(f"no run has a '{by}' to group by")
    return dict(sorted(found.items()))


def _line(name: str, curve: Curve, colour: str, mode: str) -> Figure:
    return {
        "type": "scatter",
        "mode": mode,
        "name": label(name),
        "x": list(curve[0]),
        "y": list(curve[1]),
        "line": {"color": colour},
        "hovertemplate": "%{fullData.name}, %{x}: %{y:.4f}<extra></extra>",
    }


def _band(name: str, curves: Sequence[Curve], colour: str, mode: str) -> list[Figure]:
    """A mean, and where it is one of at least two values the interval around it."""
    x, columns = _aligned(curves)
    found = [estimate(values) if values else None for values in columns]
    mean = [None if one is None else one.mean for one in found]
    counts = sorted({one.n for one in found if one is not None})
    n = "-".join(map(str, dict.fromkeys((counts[0], counts[-1])))) if counts else "0"
    line = _line(f"{name} (n={n})", (x, mean), colour, mode)
    edges = [
        (at, one.mean, one.half) for at, one in zip(x, found, strict=True) if one is not None and one.half is not None
    ]
    if not edges:
        return [line]
    upper, lower = [mean + half for _, mean, half in edges], [mean - half for _, mean, half in edges]
    at = [step for step, _, _ in edges]
    band = {
        "type": "scatter",
        "mode": "lines",
        "name": label(f"{name}, 95% confidence interval"),
        "x": [*at, *reversed(at)],
        "y": [*upper, *reversed(lower)],
        "fill": "toself",
        "fillcolor": f"{colour}33",
        "line": {"width": 0},
        "hoverinfo": "skip",
        "showlegend": False,
    }
    return [band, line]


def _aligned(curves: Sequence[Curve]) -> tuple[list[float], list[list[float]]]:
    """Values of all curves at the same places: those that they have, or of long ones some between, interpolated. A
    curve that ends early has no say after its end."""
    places = sorted({at for x, _ in curves for at in x})
    if len(places) > GRID:
        step = (places[-1] - places[0]) / (GRID - 1)
        places = [places[0] + i * step for i in range(GRID)]
    known = [[(at, value) for at, value in zip(x, y, strict=True) if value is not None] for x, y in curves]
    columns: list[list[float]] = [[] for _ in places]
    for curve in known:
        for column, value in zip(columns, _interpolated(places, curve), strict=True):
            if not math.isnan(value):
                column.append(value)
    return list(places), columns


def _interpolated(places: Sequence[float], curve: Sequence[tuple[float, float]]) -> list[float]:
    if not curve:
        return [math.nan] * len(places)
    import numpy as np

    x, y = zip(*curve, strict=True)
    found: list[float] = np.interp(places, x, y, left=math.nan, right=math.nan).tolist()
    return found
