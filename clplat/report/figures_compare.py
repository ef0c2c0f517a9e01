"""Figures of runs side by side: averages with their references, strategies, forgetting, cost, configurations."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence

from clplat.changes import flatten
from clplat.metrics.evidence import NotMeasuredError
from clplat.metrics.runs import known
from clplat.options import shown
from clplat.report.compare import differing, group_key
from clplat.report.comparison import compare
from clplat.report.figures import NOTHING, Figure, around, at, colour, label, layout, line, near
from clplat.report.runs import RunData
from clplat.report.statistics import Estimate, estimate
from clplat.report.values import number, text

REFERENCES = {"cumulative": ("joint", "dash"), "naive": ("naive", "dot")}  # strategy -> what it is a bound of, its line
PLACES = ("run", "logger", "cluster", "config_dirs")  # sections that say where a run is recorded


def average_seen(runs: Sequence[RunData]) -> Figure:
    """The mean over the experiences seen so far, after each. Runs that differ in the seed alone share a colour; of two
    and more the mean is drawn with its 95% confidence interval. Among runs of the same scenario and backbone those of
    ``cumulative`` (joint training) and ``naive`` are what to compare with: broken lines in grey."""
    data: list[Figure] = []
    groups = {key: members for key, members in _groups(runs).items() if any(run.matrix for run in members)}
    if not groups:
        raise NotMeasuredError(NOTHING)
    compared = {_setting(run) for run in runs if run.name("strategy") not in REFERENCES}
    place = 0
    for members in groups.values():
        reference = REFERENCES.get(members[0].name("strategy")) if _setting(members[0]) in compared else None
        drawn_in = "#777777" if reference else colour(place)
        place += reference is None
        style = {"line": {"color": drawn_in, "dash": reference[1]}} if reference else {}
        several = sum(bool(run.matrix) for run in members) > 1
        for run in members:
            if run.matrix:
                name = f"{run.label} ({reference[0]})" if reference else run.label
                faint = {"opacity": 0.35, "showlegend": False} if several else {}  # the mean is named
                x = range(1, len(run.matrix) + 1)
                data.append(line(name, x, run.average_seen, drawn_in, **style, **faint))
        if several:
            data += _mean(members, drawn_in, style)
    metrics = sorted({run.metric for run in runs if run.matrix})
    whole = layout("Mean over the experiences seen", "after experience", label(" / ".join(metrics)))
    whole |= {"showlegend": True, "height": 420, "hovermode": "closest"}
    whole["xaxis"] |= {"dtick": 1} if max(len(run.matrix) for run in runs) <= 20 else {}
    whole["yaxis"] |= around(data)
    return {"data": data, "layout": whole}


def _groups(runs: Sequence[RunData]) -> dict[str, list[RunData]]:
    """Runs that differ in the seed alone; one whose configuration is unknown is by itself."""
    found: dict[str, list[RunData]] = {}
    for run in runs:
        found.setdefault(group_key(run) if run.config else f"run {run.label}", []).append(run)
    return found


def _setting(run: RunData) -> str:
    """The same text for runs of the same scenario and backbone."""
    return json.dumps([run.config.get("scenario"), run.config.get("backbone")], sort_keys=True, default=repr)


def _name(members: Sequence[RunData]) -> str:
    return members[0].label if len(members) == 1 else f"{members[0].name('strategy')} (mean of {len(members)})"


def _mean(members: Sequence[RunData], drawn_in: str, style: Figure) -> list[Figure]:
    """The mean of a group, and the band of its confidence interval where there are two values at least."""
    averages = [run.average_seen for run in members if run.matrix]
    columns = [
        [v for row in averages if (v := at(row, i)) is not None] for i in range(max(len(row) for row in averages))
    ]
    found = [(i, estimate(values)) for i, values in enumerate(columns, 1) if values]
    banded = [(i, e.mean - e.half, e.mean + e.half) for i, e in found if e.half is not None]
    name = f"{members[0].name('strategy')} (mean of {len(averages)})"
    drawn = line(name, [i for i, _ in found], [e.mean for _, e in found], drawn_in, **style)
    drawn["line"] = {**drawn["line"], "width": 3}
    if not banded:
        return [drawn]
    x, low, high = (list(part) for part in zip(*banded, strict=True))
    band = {
        "type": "scatter",
        "mode": "lines",
        "name": f"{label(name)}, 95%",
        "x": x + x[::-1],
        "y": high + low[::-1],
        "fill": "toself",
        "fillcolor": drawn_in,
        "opacity": 0.15,
        "line": {"width": 0},
        "hoverinfo": "skip",
        "showlegend": False,
    }
    return [band, drawn]


def strategies(runs: Sequence[RunData]) -> Figure:
    """ACC by strategy of runs that are done, the best first, with 95% confidence intervals over seeds and all else that
    differs."""
    found = compare(runs, "strategy", ["ACC"])
    sides = [(side.name, e) for side in found.sides if (e := side.estimate("ACC")) is not None]
    if sum(e.n for _, e in sides) < 2:
        raise NotMeasuredError("two runs that are done are needed to compare")
    trace: Figure = {
        "type": "bar",
        "name": "ACC",
        "x": [label(name) for name, _ in sides],
        "y": [e.mean for _, e in sides],
        "error_y": {"type": "data", "array": [e.half for _, e in sides]},
        "text": [f"{e.mean:.3f} (n = {e.n})" for _, e in sides],
        "textposition": "none",
        "marker": {"color": [colour(i) for i in range(len(sides))]},
    }
    over = f"; means go over different values of {label(', '.join(found.varying))}" if found.varying else ""
    whole = layout("Strategies: mean ACC with 95% confidence interval", f"strategy{over}", "ACC", height=420)
    told = [f"{name}<br>{value}" for name, value in zip(trace["x"], trace["text"], strict=True)]
    whole["xaxis"] |= {"type": "category", "tickvals": trace["x"], "ticktext": told}
    whole["yaxis"]["range"] = _of_bars([e for _, e in sides])
    return {"data": [trace], "layout": whole}


def _of_bars(estimates: Sequence[Estimate]) -> list[float]:
    """The range of an axis with bars, which begin at 0."""
    ends = [e.mean + sign * e.half for e in estimates if e.half is not None for sign in (-1, 1)]
    return near([0.0, *(e.mean for e in estimates)], ends)


def forgetting(runs: Sequence[RunData]) -> Figure:
    """How far each experience but the last has fallen from its best, by the end: means over seeds."""
    data: list[Figure] = []
    every: list[Estimate] = []
    for place, members in enumerate(_groups(runs).values()):
        falls: dict[int, list[float]] = {}
        for run in map(known, members):
            for j in run.earlier:
                try:
                    falls.setdefault(j, []).append(run.best(j) - run.good(run.n - 1, j))
                except (NotMeasuredError, ValueError):  # not evaluated: nothing is known of this experience
                    continue
        if falls:
            estimates = {j: estimate(values) for j, values in sorted(falls.items()) if values}
            every += estimates.values()
            data.append(
                {
                    "type": "bar",
                    "name": label(_name(members)),
                    "x": [str(j + 1) for j in estimates],
                    "y": [e.mean for e in estimates.values()],
                    "error_y": {"type": "data", "array": [e.half for e in estimates.values()]},
                    "marker": {"color": colour(place)},
                }
            )
    if not data:
        raise NotMeasuredError("forgetting needs two experiences that were evaluated")
    whole = layout("Forgetting by experience: best so far less the last value", "experience", "forgetting", height=420)
    whole["xaxis"] |= {"type": "category", "categoryorder": "array", "categoryarray": _order(data)}
    whole["yaxis"]["range"] = _of_bars(every)
    return {"data": data, "layout": {**whole, "showlegend": True, "barmode": "group"}}


def _order(data: Sequence[Figure]) -> list[str]:
    return [str(j) for j in sorted({int(x) for trace in data for x in trace["x"]})]


def against_memory(runs: Sequence[RunData]) -> Figure:
    """ACC against the bytes that the strategy keeps."""
    return _pareto(runs, "bytes kept by the strategy", lambda run: number(run.results.get("stored_bytes")))


def against_state(runs: Sequence[RunData]) -> Figure:
    """ACC against the numbers in the backbone's state of one sequence."""
    return _pareto(runs, "numbers in the state of one sequence", lambda run: number(run.results.get("state_size")))


def against_time(runs: Sequence[RunData]) -> Figure:
    """ACC against the time that the run took."""
    return _pareto(runs, "seconds", lambda run: run.seconds)


def _pareto(runs: Sequence[RunData], what: str, cost: Callable[[RunData], float | None]) -> Figure:
    """ACC against a cost; the line joins the runs that no other run beats in both."""
    points = [
        (c, acc, run)
        for run in runs
        if run.status == "done" and (c := cost(run)) is not None and (acc := run.summary.get("ACC")) is not None
    ]
    if not points:
        raise NotMeasuredError(f"no run that is done wrote down ACC and its {what}")
    if len(points) < 2:
        raise NotMeasuredError("two runs that are done are needed to compare")
    if not any(c for c, _, _ in points):
        raise NotMeasuredError(f"{what}: 0 in every run")
    directions = {run.direction for _, _, run in points}
    if len(directions) > 1:
        raise NotMeasuredError("some of these runs are better when larger and some when smaller")
    sign = 1 if directions == {"max"} else -1
    names = list(dict.fromkeys(run.name("strategy") for _, _, run in points))
    data = []
    for place, name in enumerate(names):
        own = [point for point in points if point[2].name("strategy") == name]
        trace = line(name, [c for c, _, _ in own], [a for _, a, _ in own], colour(place), mode="markers")
        trace["marker"] = {"color": colour(place), "size": 10}
        trace["text"] = [label(run.label) for _, _, run in own]
        data.append({**trace, "hovertemplate": "%{text}: %{y:.4f} at %{x}<extra></extra>"})
    best = front([(c, sign * acc) for c, acc, _ in points])
    edge = line("Pareto front", [points[i][0] for i in best], [points[i][1] for i in best], "#222222")
    edge["line"] = {"color": "#222222", "dash": "dot", "width": 1}
    edge["marker"] = {"symbol": "circle-open", "size": 16, "color": "#222222"}
    whole = layout(f"ACC against {what}", what, "ACC", height=420)
    return {"data": [*data, edge], "layout": {**whole, "showlegend": True, "hovermode": "closest"}}


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Which points no other beats, by rising cost: (cost, less is better; value, more is better)."""
    best: list[int] = []
    for i in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1])):
        if not best or points[i][1] > points[best[-1]][1]:
            best.append(i)
    return best


def configurations(runs: Sequence[RunData]) -> Figure:
    """A table of the keys in which the configurations differ."""
    told = [run for run in runs if run.config]
    if len(told) < 2:
        raise NotMeasuredError("two runs are needed to tell where their configurations differ")
    keys = [key for key in differing([run.config for run in told]) if key.split(".")[0] not in PLACES]
    if not keys:
        raise NotMeasuredError("the configurations do not differ")
    flats = [flatten(run.config) for run in told]
    columns = [[shown(flat[key]) if key in flat else "-" for flat in flats] for key in keys]
    # The fewer of both are the columns: that is what can be read.
    head, names, values = ["key", *(run.label for run in told)], keys, [list(row) for row in zip(*columns, strict=True)]
    if len(keys) < len(told):
        head, names, values = ["run", *keys], [run.label for run in told], columns
    most = max(8, 96 // (len(values) + 2))  # characters that a column has room for; the first is twice as wide
    header = [_wrapped(head[0], 2 * most), *(_wrapped(name, most) for name in head[1:])]
    cells = [[_wrapped(name, 2 * most) for name in names], *([_wrapped(v, most) for v in column] for column in values)]
    table = {
        "type": "table",
        "name": "configurations",
        "columnwidth": [2, *[1] * len(values)],
        "header": {"values": header, "align": "left"},
        "cells": {"values": cells, "align": "left"},
    }
    lines = [max(cell.count("<br>") + 1 for cell in row) for row in (header, *zip(*cells, strict=True))]
    height = 130 + 20 * min(sum(lines), 40)
    return {"data": [table], "layout": layout("Where the configurations differ", "", "", height=height)}


def _wrapped(name: str, most: int) -> str:
    """Text that may be longer than its column is wide, in lines that end after a hyphen, a dot or an underscore where
    they can."""
    lines = [""]
    for piece in re.findall(rf"[^-._]{{0,{most - 1}}}[-._]|[^-._]{{1,{most}}}", text(name)):
        if lines[-1] and len(lines[-1]) + len(piece) > most:
            lines.append("")
        lines[-1] += piece
    return "<br>".join(map(label, lines))
