"""Figures of one run's record: loss terms, memories, prompts, importances, time and jobs."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from typing import Any

from clplat.metrics.evidence import NotMeasuredError
from clplat.report import details, plots
from clplat.report.figures import Figure, boundary, colour, label, layout, line
from clplat.report.runs import RunData
from clplat.report.thin import thin
from clplat.report.values import numbers, row

LOSS = "loss"  # the loss of the batch itself; all other terms are the strategy's


def losses(run: RunData) -> Figure:
    """The loss of the batches and the terms that the strategy adds, over optimiser steps."""
    return _terms(run, list(run.training.terms), "Loss terms", "no optimiser step was written down")


def penalties(run: RunData) -> Figure:
    """What the strategy adds to the loss, over optimiser steps."""
    names = [name for name in run.training.terms if name != LOSS]
    return _terms(run, names, "Terms of the strategy", f"{run.name('strategy')} wrote down no term of its own")


def _terms(run: RunData, names: Sequence[str], title: str, otherwise: str) -> Figure:
    if not names:
        raise NotMeasuredError(otherwise)
    data = []
    for place, name in enumerate(names):
        points = list(run.training.curve(name))
        x, y = thin([x for x, _ in points], [y for _, y in points])
        data.append(line(name, x, y, colour(place), mode="lines"))
    whole = layout(title, "optimiser step (a line where an experience ends)", "value")
    whole["shapes"] = [boundary(end) for end in run.ends if end is not None]
    whole["updatemenus"] = [
        {
            "type": "buttons",
            "direction": "right",
            "x": 1,
            "xanchor": "right",
            "y": 1.12,
            "buttons": [
                {"label": kind, "method": "relayout", "args": [{"yaxis.type": kind}]} for kind in ("linear", "log")
            ],
        }
    ]
    return {"data": data, "layout": {**whole, "showlegend": True, "height": 420, "hovermode": "closest"}}


def rehearsal(run: RunData) -> Figure:
    """How many samples of each older experience the last experience showed: by the law, and in truth."""
    for _, report in details.reports(run):
        expected, realised = (_last(report.get(key)) for key in ("expected", "realised"))
        if expected and realised:
            names = [str(j + 1) for j in range(max(len(expected), len(realised)))]
            groups = {"realised": (names, realised), "expected": (names, expected)}
            title = f"Rehearsed in experience {len(expected) + 1}"
            figure = plots.bars(title, "experience", "samples", groups)
            figure["data"][1] = {**line("expected", [], expected, "#222222"), "x": names}
            figure["layout"]["xaxis"] |= {"type": "category"}
            return figure
    raise NotMeasuredError(f"{run.name('strategy')} reports no expected and realised rehearsal, or is not done")


def _last(value: Any) -> list[float | None]:
    """The last of several rows."""
    return (row(value[-1]) or []) if isinstance(value, list) and value else []


def memory(run: RunData) -> Figure:
    """How many samples of each experience the memory held after each experience."""
    if not run.kept:
        raise NotMeasuredError("no memory that knows the experiences of its samples was written down")
    after = sorted(run.kept)
    names = sorted({name for kept in run.kept.values() for name in kept}, key=_as_number)
    data = [
        {
            "type": "bar",
            "name": f"experience {label(_counted(name))}",
            "x": [str(i + 1) for i in after],
            "y": [run.kept[i].get(name) for i in after],
            "marker": {"color": colour(place)},
        }
        for place, name in enumerate(names)
    ]
    whole = layout("What the memory holds", "after experience", "samples", height=420, barmode="stack")
    whole["xaxis"] |= {"type": "category"}
    return {"data": data, "layout": {**whole, "showlegend": True}}


def prompts(run: RunData) -> Figure:
    """How often each prompt was chosen in each experience, as a share of the experience's choices."""
    for _, report in details.reports(run):
        chosen = report.get("chosen")
        rows = {name: row(counts) for name, counts in chosen.items()} if isinstance(chosen, Mapping) else {}
        shares = {name: _shares(counts) for name, counts in rows.items() if counts}
        if shares:
            names = sorted(shares, key=_as_number)
            figure = plots.cells("How often each prompt was chosen", "prompt", "experience", [])
            figure["data"][0] |= {
                "z": [shares[name] for name in names],
                "y": [_counted(name) for name in names],
                "name": "share",
                "hovertemplate": "experience %{y}, prompt %{x}: %{z:.3f}<extra></extra>",
            }
            figure["layout"]["yaxis"] |= {"type": "category"}
            return figure
    raise NotMeasuredError(f"{run.name('strategy')} reports no choice among prompts, or is not done")


def _shares(counts: Sequence[float | None]) -> list[float]:
    values = [value or 0.0 for value in counts]
    total = sum(values)
    return [value / total if total else 0.0 for value in values]


def _as_number(name: str) -> tuple[int, str]:
    return (int(name), "") if name.isdecimal() and len(name) < 16 else (2**53, name)


def _counted(name: str) -> str:
    """The experience as people count: the record counts from 0."""
    return str(int(name) + 1) if name.isdecimal() and len(name) < 16 else name


def importance(run: RunData) -> Figure:
    """Where the importances lie by which weights are held, by parameter: the share of each in their sum."""
    held = {name: value for name, value in numbers(run.results.get("importance")).items() if value is not None}
    total = sum(held.values())
    if not held:
        raise NotMeasuredError(f"{run.name('strategy')} wrote down no importances of weights, or is not done")
    if not total:
        raise NotMeasuredError("all importances are 0")
    trace = {
        "type": "bar",
        "name": "importance",
        "orientation": "h",
        "y": [label(name) for name in held],
        "x": [value / total for value in held.values()],
        "marker": {"color": colour(0)},
        "hovertemplate": "%{y}: %{x:.4f}<extra></extra>",
    }
    whole = layout("Importances by parameter (Fisher and the like)", "share of the sum", "")
    whole["yaxis"] |= {"type": "category", "autorange": "reversed"}
    return {"data": [trace], "layout": {**whole, "height": 150 + 18 * len(held)}}


def seconds(run: RunData) -> Figure:
    """How long each phase took in each experience."""
    spent = details.spent(run)
    if not spent:
        raise NotMeasuredError("no phase has been timed yet")
    experiences = sorted({part.experience for part in spent})
    phases = list(dict.fromkeys(part.phase for part in spent))
    data = []
    for place, phase in enumerate(phases):
        totals = dict.fromkeys(experiences, 0.0)
        for part in spent:
            if part.phase == phase:
                totals[part.experience] += part.seconds
        names = ["start" if e < 0 else str(e + 1) for e in totals]
        mark = {"color": colour(place)}
        data.append({"type": "bar", "name": label(phase), "x": names, "y": [*totals.values()], "marker": mark})
    whole = layout("Seconds by phase", "experience", "seconds", height=420, barmode="stack")
    whole["xaxis"] |= {"type": "category"}
    return {"data": data, "layout": {**whole, "showlegend": True}}


def throughput(run: RunData) -> Figure:
    """Samples of the stream that were trained on in a second, in each experience; rehearsed ones are not counted."""
    trained = [part for part in details.spent(run) if part.samples and part.seconds]
    if not trained:
        raise NotMeasuredError("no phase of training has been timed yet")
    curves: dict[str, tuple[list[int], list[float | None]]] = {}
    for part in trained:
        x, y = curves.setdefault(part.phase, ([], []))
        x.append(part.experience + 1)
        y.append((part.samples or 0) / part.seconds)
    drawn = plots.lines("Samples of the stream in a second", "experience", "samples a second", curves)
    drawn["layout"]["xaxis"] |= {"dtick": 1} if max(part.experience for part in trained) < 20 else {}
    return drawn


ENDINGS = {"done": "#009e73", "running": "#0072b2", "preempted": "#e69f00", "failed": "#d55e00", "killed": "#000000"}


def jobs(run: RunData) -> Figure:
    """When the run was started, for how long it ran each time, and how that ended: preempted and requeued runs have
    several bars."""
    starts = details.starts(run)
    if not starts:
        raise NotMeasuredError("the run has no history: it was not started from the command line")
    data = []
    for status in dict.fromkeys(start.status for start in starts):
        own = [(number, start) for number, start in enumerate(starts, 1) if start.status == status]
        # Of one without an end the last that is known is the next start, or what the record timed.
        lengths = [1000 * max(0.0, _end(run, starts, number) - start.begin) for number, start in own]
        data.append(
            {
                "type": "bar",
                "orientation": "h",
                "name": label(status),
                "y": [f"start {number}" for number, _ in own],
                "base": [_time(start.begin) for _, start in own],
                "x": lengths,
                "text": [label(start.where) for _, start in own],
                "textposition": "none",
                "hovertemplate": "%{fullData.name}: %{base} to %{x}<br>%{text}<extra></extra>",
                "marker": {"color": ENDINGS.get(status, "#999999")},
            }
        )
    whole = layout("Starts of the run", "time (UTC)", "", barmode="overlay")
    whole["xaxis"] |= {"type": "date"}
    order = [f"start {number}" for number in range(1, len(starts) + 1)]
    whole["yaxis"] |= {"type": "category", "categoryorder": "array", "categoryarray": order[::-1]}
    return {"data": data, "layout": {**whole, "showlegend": True, "height": 150 + 26 * max(len(starts), 3)}}


def _end(run: RunData, starts: Sequence[details.Start], number: int) -> float:
    start = starts[number - 1]
    if start.end is not None:
        return start.end
    following = starts[number].begin if number < len(starts) else start.begin + (run.seconds or 0.0)
    return min(following, start.begin + run.seconds) if run.seconds else following


def _time(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).strftime("%Y-%m-%d %H:%M:%S.%f")[:-3]
