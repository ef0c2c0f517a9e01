"""A comparison as text, Markdown, CSV, LaTeX or JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from typing import Any

from clplat.report.columns import columns
from clplat.report.comparison import Comparison, Side
from clplat.report.statistics import Estimate
from clplat.report.tables import Table

_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
}  # fmt: skip


def table(found: Comparison) -> Table:
    """Headings and rows."""
    head = [found.by, "n"]
    for metric in found.metrics:
        head += [metric]
        head += [f"{metric} - {found.baseline}", "p", "p (Holm)"] if found.baseline is not None else []
        head += ["mean rank"] if any(metric in side.rank for side in found.sides) else []
    return head, [_row(found, side) for side in found.sides]


def _row(found: Comparison, side: Side) -> list[str]:
    cells = [side.name, str(max((len(v) for v in side.values.values()), default=0))]
    for metric in found.metrics:
        cells.append(_shown(side.estimate(metric)))
        if found.baseline is not None:
            cells.append(_shown(side.difference.get(metric), sign="+"))
            cells += [f"{p:.3g}" for p in side.p.get(metric, ())] or ["-", "-"]
        if any(metric in other.rank for other in found.sides):
            cells.append(f"{side.rank[metric]:.2f}" if metric in side.rank else "-")
    return cells


def _shown(value: Estimate | None, sign: str = "") -> str:
    if value is None:
        return "-"
    half = "" if value.half is None else f" ± {value.half:.4f}"
    return f"{value.mean:{sign}.4f}{half}"


def as_text(found: Comparison) -> str:
    """Plain columns."""
    return columns(*table(found))


def as_markdown(found: Comparison) -> str:
    """A pipe table."""
    head, rows = table(found)
    cells = [[cell.replace("|", "\\|") for cell in row] for row in (head, *rows)]
    lines = [f"| {' | '.join(row)} |" for row in cells]
    return "\n".join([lines[0], "|" + "---|" * len(head), *lines[1:]])


def as_csv(found: Comparison) -> str:
    """One row for each side and metric, numbers in full."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    lines = _plain(found)
    writer.writerow(lines[0])
    for line in lines:
        writer.writerow(["" if value is None else value for value in line.values()])
    return out.getvalue().rstrip("\n")


def as_latex(found: Comparison) -> str:
    """A ``tabular`` of booktabs; the best mean of the first metric is bold."""
    head, rows = table(found)
    cells = [[_escape(cell).replace("±", r"$\pm$") for cell in row] for row in rows]
    if cells and cells[0][2] != "-":  # rows are ordered by the first metric, which is in the third column
        cells[0][2] = rf"\textbf{{{cells[0][2]}}}"
    body = [" & ".join(row) + r" \\" for row in cells]
    return "\n".join([
        rf"\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}", r"\toprule", " & ".join(map(_escape, head)) + r" \\",
        r"\midrule", *body, r"\bottomrule", r"\end{tabular}",
    ])  # fmt: skip


def _escape(text: str) -> str:
    return "".join(_LATEX.get(character, character) for character in text)


def as_json(found: Comparison) -> str:
    """Everything."""
    whole = {
        "by": found.by,
        "baseline": found.baseline,
        "varying": found.varying,
        "left_out": found.left_out,
        "rows": _plain(found),
    }
    return json.dumps(whole, indent=2, allow_nan=False)


def _plain(found: Comparison) -> Sequence[dict[str, Any]]:
    lines = []
    for side in found.sides:
        for metric in found.metrics:
            value, change = side.estimate(metric), side.difference.get(metric)
            p, both = side.p.get(metric, (None, None))
            lines.append({
                found.by: side.name,
                "metric": metric,
                "n": value.n if value else 0,
                "mean": value.mean if value else None,
                "ci95": value.half if value else None,
                "baseline": found.baseline,
                "difference": change.mean if change else None,
                "difference_ci95": change.half if change else None,
                "p": p,
                "p_holm": both,
                "mean_rank": side.rank.get(metric),
            })  # fmt: skip
    return lines


FORMATS: dict[str, Callable[[Comparison], str]] = {
    "text": as_text,
    "markdown": as_markdown,
    "csv": as_csv,
    "latex": as_latex,
    "json": as_json,
}
