"""A picture of a stream: a few samples of some experiences, drawn by what the spec says they are, as SVG.

Tokens are coloured cells, those at which something is asked with the answer below; images are tiles; series and vectors
are curves, with what is asked as a broken line. Written as text, so that no library for drawing is needed.
"""

from __future__ import annotations

import html
import itertools

import torch
from torch import Tensor

from clplat.metrics import measures
from clplat.scenario import PER_STEP, Scenario, Spec

EXPERIENCES, SAMPLES = 4, 2  # that are shown of the first ones
WIDTH, HEIGHT, GAP, HEAD = 220, 64, 12, 34  # of a sample's panel in pixels, between them, and of what stands above
STEPS, CURVES, ROWS, TILES, SHADES = (
    48,
    4,
    16,
    32,
    12,
)  # more steps, curves, cells or shades than can be told apart are not drawn
FEW = 8  # numbers that are written down instead of drawn
# Okabe and Ito's colours, which also those tell apart who see few colours.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#999933", "#882255")


def svg(scenario: Scenario, title: str) -> str:
    """The picture as the text of an SVG file."""
    spec, shown = scenario.spec, list(scenario.train_stream)[:EXPERIENCES]
    width = GAP + len(shown) * (WIDTH + GAP)
    height = HEAD + 20 + SAMPLES * (HEIGHT + 22) + GAP
    parts = [_text(GAP, 20, title, 14)]
    for column, experience in enumerate(shown):
        x0 = GAP + column * (WIDTH + GAP)
        parts.append(
            _text(x0, HEAD + 10, _caption(column, len(scenario.train_stream), experience.task_label, spec), 11)
        )
        rows = _spread(len(experience.dataset), SAMPLES)
        for number, (x, y) in enumerate(zip(*experience.dataset.rows(rows)[:2], strict=True)):
            parts.append(_sample(spec, x, y, x0, HEAD + 20 + number * (HEIGHT + 22)))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        f'font-family="system-ui, sans-serif">\n<rect width="{width}" height="{height}" fill="#ffffff"/>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def _caption(column: int, experiences: int, task: int, spec: Spec) -> str:
    return f"experience {column + 1} of {experiences}" + (f", task {task}" if spec.setting == "task" else "")


def _spread(n: int, samples: int) -> Tensor:
    """Positions of a few samples, evenly apart: neighbours are often of one class."""
    return (torch.arange(min(n, samples)) * n) // samples


def _sample(spec: Spec, x: Tensor, y: Tensor, x0: float, y0: float) -> str:
    """One sample with its target below, in a frame of WIDTH x HEIGHT."""
    below = y0 + HEIGHT + 12
    if spec.vocabulary is not None:
        drawn = _tokens(spec, x, y, x0, y0)
    elif x.ndim == 3 or (x.ndim == 2 and spec.target not in PER_STEP and spec.encoder != "rows"):
        drawn = _image(x if x.ndim == 3 else x[None], x0, y0, HEIGHT)
    elif x.ndim == 2 and x.shape[1] > CURVES:
        drawn = _grid(x[:STEPS], x0, y0, WIDTH, HEIGHT * (0.48 if spec.target in PER_STEP else 1))
    elif x.ndim == 1 and len(x) <= FEW:
        drawn = _text(x0, y0 + HEIGHT / 2, "given: " + _numbers(x), 10)
    else:
        drawn = _curves(x if x.ndim == 2 else x[:, None], x0, y0)
    if spec.target == "class":
        return drawn + _text(x0, below, f"class {int(y)}", 10)
    if spec.target == "value":
        return drawn + _text(x0, below, "asked: " + _numbers(y[:FEW]), 10)
    if spec.target == "token":
        return drawn
    values = torch.where(measures.asked(spec.target, y), y.float(), torch.nan)
    if x.ndim == 2 and x.shape[1] > CURVES:
        return drawn + _grid(values[:STEPS], x0, y0 + HEIGHT * 0.52, WIDTH, HEIGHT * 0.48)
    return drawn + _curves(values, x0, y0, broken=True)


def _numbers(values: Tensor) -> str:
    return ", ".join(f"{value:.2f}" for value in values.tolist())


def _tokens(spec: Spec, x_T: Tensor, y_T: Tensor, x0: float, y0: float) -> str:
    """Cells in lines; below a cell at which something is asked the answer's own, in a frame."""
    assert spec.vocabulary is not None
    asked = measures.asked_steps(spec.target, y_T[None])[0] if spec.target in PER_STEP else torch.zeros(len(x_T)).bool()
    shown, line = min(len(x_T), 3 * 24), 24
    lines = -(-shown // line)
    cell, high = WIDTH / line, min(10.0, HEIGHT / (2 * lines))
    parts = []
    for t in range(shown):
        left, top = x0 + t % line * cell, y0 + t // line * HEIGHT / lines
        parts.append(_rectangle(left, top, cell - 0.5, high, _colour(int(x_T[t]))))
        if asked[t] and spec.target == "token":
            parts.append(_rectangle(left, top + high, cell - 0.5, high, _colour(int(y_T[t])), "#000000"))
    return "".join(parts)


def _image(x_CHW: Tensor, x0: float, y0: float, high: float) -> str:
    """The mean over channels, as grey tiles from the smallest value to the largest."""
    grey_HW = x_CHW.float().mean(0)
    H, W = grey_HW.shape
    if max(H, W) > TILES:  # one in so many pixels is enough for a thumbnail
        skip = -(-max(H, W) // TILES)
        grey_HW = grey_HW[::skip, ::skip]
    return _grid(grey_HW.T, x0, y0, high * W / H, high, picture=True)


def _grid(values_TD: Tensor, x0: float, y0: float, width: float, height: float, *, picture: bool = False) -> str:
    """Values as cells, steps to the right; what is not asked (NaN) stays white."""
    known = values_TD[~values_TD.isnan()]
    low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)
    if not picture and values_TD.shape[1] > ROWS:
        values_TD = values_TD[:, :: -(-values_TD.shape[1] // ROWS)]
    T, D = values_TD.shape
    w, h = width / T, height / D
    span = high - low if high > low else 1.0
    grey = picture or low >= 0  # two colours are for two signs
    # One path for each shade, neighbours of one shade in one piece: a cell for each value would be a large file.
    shades: dict[int, list[str]] = {}
    for t, column in enumerate(((values_TD - low) / span * (SHADES - 1)).round().nan_to_num(-1).int().tolist()):
        d = 0
        for shade, same in itertools.groupby(column):
            n = len(list(same))
            shades.setdefault(shade, []).append(f"M{x0 + t * w:.1f} {y0 + d * h:.1f}h{w:.1f}v{n * h:.1f}h{-w:.1f}z")
            d += n
    cells = (
        f'<path fill="{_shade(shade / (SHADES - 1), grey)}" d="{"".join(path)}"/>'
        for shade, path in sorted(shades.items())
        if shade >= 0
    )
    return "".join(cells) + _rectangle(x0, y0, width, height, "none", "#999999")


def _curves(values_TD: Tensor, x0: float, y0: float, *, broken: bool = False) -> str:
    """One polyline for each value over the steps, in pieces where nothing is asked."""
    values_TD = values_TD[:STEPS, :CURVES].float()
    known = values_TD[~values_TD.isnan()]
    reach = max(1e-9, float(known.abs().max())) if len(known) else 1.0
    step = WIDTH / max(1, len(values_TD) - 1)
    parts = [] if broken else [_rectangle(x0, y0, WIDTH, HEIGHT, "none", "#cccccc")]
    for d in range(values_TD.shape[1]):
        pieces: list[list[str]] = [[]]
        for t, value in enumerate(values_TD[:, d].tolist()):
            if value != value:
                pieces.append([])
            else:
                pieces[-1].append(f"{x0 + t * step:.1f},{y0 + HEIGHT / 2 * (1 - 0.95 * value / reach):.1f}")
        dashes = ' stroke-dasharray="3 2"' if broken else ""
        for points in filter(None, pieces):
            style = f'fill="none" stroke="{COLOURS[d]}" stroke-width="1.2"{dashes}'
            if len(points) == 1:
                cx, cy = points[0].split(",")
                parts.append(f'<circle cx="{cx}" cy="{cy}" r="2" fill="{COLOURS[d]}"/>')
            else:
                parts.append(f'<polyline points="{" ".join(points)}" {style}/>')
    return "".join(parts)


def _colour(token: int) -> str:
    """Blank (0) is pale; other tokens go round the colour circle by the golden angle, so that neighbours differ."""
    return "#eeeeee" if token == 0 else f"hsl({token * 137.508 % 360:.0f},60%,{45 + 15 * (token % 3)}%)"


def _shade(share: float, grey: bool) -> str:
    """From black to white, or from blue over white to red."""
    if grey:
        return "#" + f"{round(255 * share):02x}" * 3
    fade = round(255 * (1 - abs(2 * share - 1)))
    return f"#ff{fade:02x}{fade:02x}" if share > 0.5 else f"#{fade:02x}{fade:02x}ff"


def _rectangle(x: float, y: float, w: float, h: float, fill: str, edge: str = "") -> str:
    line = f' stroke="{edge}" stroke-width="0.7"' if edge else ""
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{w:.1f}" height="{h:.1f}" fill="{fill}"{line}/>'


def _text(x: float, y: float, text: str, size: int) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}">{html.escape(text)}</text>'
