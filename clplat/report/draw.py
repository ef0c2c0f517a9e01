"""One figure as a file: a page by itself with plotly, or a picture (.svg, .png, .pdf) with matplotlib.

Plotly's own pictures need a browser beside it; lines, bars, points and cells (:mod:`clplat.report.plots`) do not.
"""

from __future__ import annotations

import html
import io
from pathlib import Path
from typing import Any

from clplat.errors import MissingError, RunFailedError, UsageError, suggestion

Figure = dict[str, Any]
KINDS = (".svg", ".png", ".pdf", ".html")


def check(path: Path) -> None:
    """Refuse a name whose ending says nothing."""
    if path.suffix not in KINDS:
        raise UsageError(f"{path}: the name of a figure ends in {', '.join(KINDS)}.{suggestion(path.suffix, KINDS)}")


def write(figure: Figure, path: Path) -> None:
    """Write a figure; the name says what it becomes.

    Raises:
        UsageError: the name's ending is none of :data:`KINDS`.
        MissingError: a picture is asked for, and matplotlib is not installed.
        RunFailedError: the file cannot be written.
    """
    check(path)
    content = _page(figure) if path.suffix == ".html" else _picture(figure, path.suffix[1:])
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    except OSError as error:
        raise RunFailedError(f"{path}: cannot be written: {error.strerror}") from None


def _page(figure: Figure) -> bytes:
    from plotly.io import to_html

    page: str = to_html(figure, include_plotlyjs=True, full_html=True, validate=False)
    return page.encode()


def _picture(figure: Figure, kind: str) -> bytes:
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure as Canvas
    except ModuleNotFoundError:
        raise MissingError("a picture needs the package 'matplotlib', which is not installed; .html does not") from None

    with rc_context({"svg.hashsalt": "clplat", "font.size": 9}):  # the same figure is the same file
        canvas = Canvas(figsize=(6.4, 4.0), layout="constrained")
        axes, made = canvas.subplots(), figure["layout"]
        groups = sum(trace["type"] == "bar" for trace in figure["data"])
        for number, trace in enumerate(figure["data"]):
            _draw(canvas, axes, trace, number, groups)
        axes.set_title(_text(made["title"]), loc="left")
        axes.set_xlabel(_text(made["xaxis"]["title"]))
        axes.set_ylabel(_text(made["yaxis"]["title"]))
        if made["xaxis"].get("type") == "log":
            axes.set_xscale("log")
        if made.get("showlegend"):
            axes.legend(frameon=False)
        file = io.BytesIO()
        canvas.savefig(file, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else None)
    return file.getvalue()


def _draw(canvas: Any, axes: Any, trace: Figure, number: int, groups: int) -> None:
    kind = trace["type"]
    if kind == "heatmap":
        z = [[float("nan") if value is None else value for value in row] for row in trace["z"]]
        image = axes.imshow(z, aspect="auto", cmap="Blues", vmin=trace.get("zmin"), vmax=trace.get("zmax"))
        canvas.colorbar(image)
        return
    y = [float("nan") if value is None else value for value in trace["y"]]
    name = html.unescape(trace["name"])
    if kind == "bar":
        places, width = range(len(y)), 0.8 / groups
        axes.bar([p + (number - (groups - 1) / 2) * width for p in places], y, width, label=name, **_colour(trace))
        axes.set_xticks(places, [str(x) for x in trace["x"]])
    else:
        style = {"markers": {"linestyle": "none"}, "lines": {"marker": ""}}.get(trace["mode"], {})
        axes.plot(trace["x"], y, label=name, markersize=4, **{"marker": "o", **style}, **_colour(trace))


def _colour(trace: Figure) -> dict[str, str]:
    return {"color": trace["marker"]["color"]}


def _text(title: Figure) -> str:
    return html.unescape(title["text"])
