"""Figures as pictures (.png, .svg, .pdf), drawn by the browser that is on this machine as they are on the page."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from clplat.errors import MissingError, RunFailedError
from clplat.report.figures import Figure
from clplat.report.runs import RunData
from clplat.report.views import VIEWS

Kind = Literal["png", "svg", "pdf"]

WIDTH = 900
ON_PAGES_ONLY = ("sliders", "updatemenus")  # nobody can move or press them in a picture


def drawn(runs: Sequence[RunData]) -> dict[str, Figure]:
    """All figures that there are of some runs, by file name without an ending."""
    found: dict[str, Figure] = {}
    for view in VIEWS:
        for run in runs if view.each else [None]:
            figure = view.figure(runs if run is None else [run])
            if isinstance(figure, dict):
                name = view.key if run is None else f"{view.key}-{_plain(run.label)}"
                found[_free(name, found)] = figure
    return found


def _plain(label: str) -> str:
    """A run's label as a part of a file name that any file system takes."""
    return re.sub(r"[^A-Za-z0-9+.-]+", "_", label)[:100]


def _free(name: str, taken: Mapping[str, Figure]) -> str:
    number, free = 2, name
    while free in taken:
        number, free = number + 1, f"{name}-{number}"
    return free


def export(figures: Mapping[str, Figure], folder: Path, kind: Kind) -> list[Path]:
    """Write figures into a folder, each under its name; returns the files.

    Raises:
        MissingError: kaleido or a browser for it is not installed.
        RunFailedError: a file cannot be written, or a figure not be drawn.
    """
    try:
        import kaleido
        from choreographer.errors import ChromeNotFoundError
    except ModuleNotFoundError as error:
        raise MissingError(f"pictures need the package '{error.name}': pip install 'clplat[figures]'") from None

    files = [folder / f"{name}.{kind}" for name in figures]
    wanted = [
        {"fig": _still(figure), "path": file, "opts": {"format": kind, "width": WIDTH}}
        for file, figure in zip(files, figures.values(), strict=True)
    ]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Without mathjax=False the browser would ask the network for it.
        kaleido.write_fig_from_object_sync(wanted, kopts={"mathjax": False})
    except ChromeNotFoundError:
        raise MissingError("pictures need a browser: install Chromium or Chrome (BROWSER_PATH says where)") from None
    except OSError as error:
        raise RunFailedError(f"{folder}: cannot be written: {error.strerror or error}") from None
    return files


def _still(figure: Figure) -> Figure:
    layout = {key: value for key, value in figure["layout"].items() if key not in ON_PAGES_ONLY}
    return {"data": figure["data"], "layout": layout}
