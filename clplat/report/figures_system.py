"""What went on around training: learning rate, length of the gradient, use of the machine."""

from __future__ import annotations

from clplat.metrics.evidence import NotMeasuredError
from clplat.report import details
from clplat.report.figures import Figure, boundary, colour, layout, line
from clplat.report.runs import RunData
from clplat.report.thin import thin

# Panels from the top: the first part of the names of their curves, what they show, and in which unit.
PANELS = {
    "lr": ("learning rate", 1.0),
    "grad_norm": ("gradient norm", 1.0),
    "cpu": ("cores busy", 1.0),
    "memory_bytes": ("memory, MiB", 2.0**20),
    "gpu": ("GPU, %", 1.0),
    "gpu_memory_bytes": ("GPU memory, MiB", 2.0**20),
}
HEIGHT, GAP = 170, 0.25  # pixels of a panel, and the share of it that is left free below


def system(run: RunData) -> Figure:
    """Learning rate, norm of the gradient before clipping and use of the machine over optimiser steps, one below the
    other; a curve for each parameter group, or rank, where there are several."""
    found = {name: list(run.training.optim_curve(name)) for name in run.training.optim}
    found |= {name: list(zip(*columns, strict=True)) for name, columns in details.used(run).items()}
    panels = {kind: [name for name in found if name.partition("/")[0] == kind] for kind in PANELS}
    panels = {kind: names for kind, names in panels.items() if names}
    if not panels:
        raise NotMeasuredError("no learning rate, gradient norm or use of the machine was written down")
    whole = layout("Around training", "optimiser step (a line where an experience ends)", "")
    whole["shapes"] = [boundary(end) for end in run.ends if end is not None]
    axis, data = whole.pop("yaxis"), []
    for place, (kind, names) in enumerate(panels.items()):
        title, unit = PANELS[kind]
        number = "" if place == 0 else str(place + 1)
        below = len(panels) - 1 - place
        domain = [below / len(panels), (below + 1 - GAP * (place > 0)) / len(panels)]
        whole[f"yaxis{number}"] = {**axis, "title": {"text": title}, "domain": domain}
        for rank, name in enumerate(names):
            x, y = thin([x for x, _ in found[name]], [y for _, y in found[name]])
            scaled = [None if value is None else value / unit for value in y]
            drawn = line(name, x, scaled, colour(rank), mode="lines", yaxis=f"y{number}")
            data.append({**drawn, "hovertemplate": "%{fullData.name}, %{x}: %{y:.4g}<extra></extra>"})
    whole["xaxis"] |= {"anchor": f"y{len(panels)}" if len(panels) > 1 else "y"}
    return {"data": data, "layout": {**whole, "showlegend": False, "height": 110 + HEIGHT * len(panels)}}
