"""The report as a page that needs no server and no network: one HTML file, or one with plotly.js beside it.

Names and values come from run directories that may be anybody's. Text is escaped, figures are data and no script, and
the page's own policy lets a browser run the two scripts that are written here and nothing else.
"""

from __future__ import annotations

import base64
import hashlib
import html
import importlib.resources
import json
from collections.abc import Iterator, Sequence
from typing import Any

from clplat import yamlfile
from clplat.report import tables
from clplat.report.compare import Group
from clplat.report.runs import RunData
from clplat.report.views import VIEWS

GENERATOR = '<meta name="generator" content="clplat report">'
SCRIPT = "plotly.min.js"  # beside the page, where it is not inside
OPEN_UP_TO = 3  # runs whose figures are drawn at once; of more each is drawn when it is opened

_STYLE = """
:root { color-scheme: light dark; --line: light-dark(#ddd, #3a3d44); }
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 82rem; padding: 0 1rem;
  color: light-dark(#222, #ddd); background: light-dark(#fff, #16181c); }
h1 { overflow-wrap: anywhere; }
table { border-collapse: collapse; margin: 0.5rem 0 1.5rem; display: block; overflow-x: auto; font-size: 14px; }
th, td { padding: 0.25rem 0.45rem; text-align: left; white-space: nowrap; border-bottom: 1px solid var(--line); }
td { font-variant-numeric: tabular-nums; }
details { border-top: 1px solid var(--line); padding: 0.6rem 0; }
summary { cursor: pointer; font-weight: 600; overflow-wrap: anywhere; }
pre { background: light-dark(#f6f6f6, #22252b); padding: 0.8rem; overflow-x: auto; }
.problem { color: light-dark(#a33, #f88); }
.missing { color: light-dark(#666, #999); margin: 0.2rem 0; }
"""

_SCRIPT = """
const dark = matchMedia("(prefers-color-scheme: dark)");
dark.addEventListener("change", () => document.querySelectorAll("[data-drawn]").forEach((place) => {
  delete place.dataset.drawn;
  draw(place);
}));
function draw(place) {
  if (place.dataset.drawn) return;
  place.dataset.drawn = "1";
  const made = JSON.parse(document.getElementById(place.dataset.figure).textContent);
  const {data, layout} = fitted(made, dark.matches, place.clientWidth);
  // Without the last two a click would send a figure to plotly's own servers.
  const config = {responsive: true, displaylogo: false, modeBarButtonsToRemove: ["sendChartToCloud"],
    plotlyServerURL: ""};
  Plotly.react(place, data, layout, config);
}
function show(part) { part.querySelectorAll("[data-figure]").forEach(draw); }
document.querySelectorAll("details").forEach((part) => {
  part.addEventListener("toggle", () => { if (part.open) show(part); });
  if (part.open) show(part);
});
document.querySelectorAll("section > [data-figure]").forEach(draw);
"""


def plotly() -> str:
    """plotly.js."""
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs())


def page(runs: Sequence[RunData], found: Sequence[Group], *, beside: bool = False) -> str:
    """The whole page.

    Args:
        beside: plotly.js lies beside the page under the name :data:`SCRIPT`, and is not inside.
    """
    colours = (importlib.resources.files("clplat.dashboard") / "static" / "colours.js").read_text(encoding="utf-8")
    script = f'\n"use strict";\n{colours.replace("export function", "function")}{_SCRIPT}'
    scripts = [script] if beside else [plotly(), script]
    drawn = _Figures()
    body = [f"<h1>{_title(runs)}</h1>", *_overview(runs, found, drawn), *_details(runs, drawn)]
    hashes = " ".join(f"'sha256-{_sha256(script)}'" for script in scripts)
    if beside:  # of the page's own folder; a browser that takes a file's folder for nobody's knows it by its scheme
        hashes += " 'self' file:"
    # blob: and data: are images that plotly itself draws.
    policy = (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:; "
        "form-action 'none'; base-uri 'none'"
    )
    whole = "\n".join(
        [
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            GENERATOR,
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{_title(runs)}</title>",
            f"<style>{_STYLE}</style>\n</head>\n<body>",
            *body,
            *drawn.blocks,
            *([f'<script src="{SCRIPT}"></script>'] if beside else []),
            *(f"<script>{script}</script>" for script in scripts),
            "</body>\n</html>\n",
        ]
    )
    return whole.encode("utf-8", "replace").decode()


class _Figures:
    """Figures as blocks of data, and the places where they are drawn."""

    def __init__(self) -> None:
        self.blocks: list[str] = []

    def place(self, view: str, figure: dict[str, Any]) -> str:
        name = f"figure-{len(self.blocks)}"
        self.blocks.append(f'<script type="application/json" id="{name}">{_data(figure)}</script>')
        return f'<div data-figure="{name}" data-view="{view}"></div>'


def _data(value: Any) -> str:
    """JSON in which nothing can end, or begin, an element."""
    text = json.dumps(value, allow_nan=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _sha256(script: str) -> str:
    # A browser reads line ends of any kind as \n before it hashes.
    plain = script.replace("\r\n", "\n").replace("\r", "\n")
    return base64.b64encode(hashlib.sha256(plain.encode()).digest()).decode()


def _title(runs: Sequence[RunData]) -> str:
    return html.escape(runs[0].label) if len(runs) == 1 else f"{len(runs)} runs"


def _overview(runs: Sequence[RunData], found: Sequence[Group], drawn: _Figures) -> Iterator[str]:
    yield "<section>"
    yield from (f'<p class="problem">{html.escape(problem)}</p>' for run in runs for problem in run.problems)
    yield tables.as_html(*tables.summary(runs))
    over_seeds = tables.seeds(found)
    if over_seeds is not None:
        yield "<h2>Over seeds</h2>\n<p>Mean ± sample standard deviation of runs that are done.</p>"
        yield tables.as_html(*over_seeds)
    yield from _views(runs, drawn, each=False)
    yield "</section>"


def _details(runs: Sequence[RunData], drawn: _Figures) -> Iterator[str]:
    for run in runs:
        is_open = " open" if len(runs) <= OPEN_UP_TO else ""
        yield f"<details{is_open}><summary>{html.escape(run.label)} ({html.escape(run.state)})</summary>"
        yield from _views([run], drawn, each=True)
        if run.reasons:
            reasons = "; ".join(f"no {name}: {reason}" for name, reason in run.reasons.items())
            yield f"<p>{html.escape(reasons)}</p>"
        if run.config:
            config = html.escape(yamlfile.dump(run.config))
            yield f"<details><summary>configuration</summary><pre>{config}</pre></details>"
        yield "</details>"


def _views(runs: Sequence[RunData], drawn: _Figures, *, each: bool) -> Iterator[str]:
    """The figures that there are, then a line for each that there is not."""
    missing = []
    for view in VIEWS:
        if view.each == each:
            figure = view.figure(runs)
            if isinstance(figure, str):
                missing.append(f'<p class="missing">{html.escape(f"{view.title}: {figure}")}</p>')
            else:
                yield drawn.place(view.key, figure)
    yield from missing
