"""Figures of what one run's network answered to each test sample (``RUN/predictions``)."""

from __future__ import annotations

from clplat.metrics import labels
from clplat.metrics.evidence import NotMeasuredError
from clplat.metrics.runs import known
from clplat.report import plots
from clplat.report.figures import NOTHING, Figure
from clplat.report.runs import RunData

CLASSES = 200  # more rows than a screen has room for


def blocks(run: RunData) -> Figure:
    """For which experience's classes the samples of each experience were taken after the last experience."""
    if not run.matrix:
        raise NotMeasuredError(NOTHING)
    found = labels.confusion_blocks(known(run))
    names = [str(j + 1) for j in found["experiences"]]
    shares = [list(row) for row in found["shares"]]
    figure = plots.cells(
        "Samples of (row) taken for classes of (column)", "experience", "experience", shares, low=0, high=1
    )
    figure["data"][0] |= {
        "x": [*names, "none of them"],
        "y": names,
        "name": "share",
        "hovertemplate": "of %{y}, taken for %{x}: %{z:.3f}<extra></extra>",
        **({"texttemplate": "%{z:.2f}"} if len(names) <= 20 else {}),
    }
    for axis in ("xaxis", "yaxis"):
        figure["layout"][axis] |= {"type": "category"}
    return figure


def classes(run: RunData) -> Figure:
    """Which class the samples of each class were taken for after the last experience, as shares of the row."""
    found = labels.confusion(known(run))
    names = [str(name) for name in found["labels"]][:CLASSES]
    totals = [sum(row) for row in found["counts"]]
    shares = [
        [n / total if total else None for n in row[:CLASSES]]
        for row, total in zip(found["counts"][:CLASSES], totals, strict=False)
    ]
    more = f" (the first {CLASSES} of {len(totals)})" if len(totals) > CLASSES else ""
    figure = plots.cells(f"Samples of class (row) taken for (column){more}", "answered", "class", shares, low=0, high=1)
    figure["data"][0] |= {
        "x": names,
        "y": names,
        "name": "share",
        "hovertemplate": "class %{y}, taken for %{x}: %{z:.3f}<extra></extra>",
    }
    figure["layout"]["yaxis"] |= {"type": "category"}
    figure["layout"]["xaxis"] |= {"type": "category"}
    figure["layout"]["height"] = 520
    return figure
