"""``clplat compare``: what differs between runs, and whether a few seeds can say so."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from clplat.cli import flags

EPILOG = flags.examples(
    "clplat compare runs/sweep",
    "clplat compare runs --by strategy --metric ACC,forgetting --baseline ewc --format latex",
    "clplat compare runs/sweep --by strategy.importance",
    "clplat compare runs --where scenario=split-digits --where status=done",
)


def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run directories, or folders with runs below.")],
    by: Annotated[str, typer.Option("--by", metavar="KEY", help="The key of the configuration to compare by.")] = (
        "strategy"
    ),
    metric: Annotated[
        str, typer.Option("--metric", metavar="NAMES", help="Summary metrics with commas; the first one orders.")
    ] = "ACC",
    baseline: Annotated[
        str | None,
        typer.Option("--baseline", metavar="VALUE", help="Differences are taken to this; naive if there."),
    ] = None,
    where: flags.Where = None,
    form: Annotated[
        Literal["text", "markdown", "csv", "latex", "json"], typer.Option("--format", help="How it is printed.")
    ] = "text",
    as_json: flags.Json = False,
    traceback: flags.Traceback = False,
) -> None:
    """Compare runs by one key: mean ± 95% confidence interval over seeds (Student's t).

    With a baseline: mean paired difference over runs that are alike in all else, with the p-value of a paired
    permutation test (exact up to 16 pairs), also adjusted for the number of comparisons (Holm). Mean ranks are over
    seeds, and whatever else differs, for which all have a value.
    """
    from clplat.report import comparison, formats
    from clplat.report.query import query
    from clplat.report.runs import load_runs

    loaded = query(load_runs(runs), where or ())
    for run in loaded:
        for problem in run.problems:
            print(f"warning: {problem}", file=sys.stderr)
    found = comparison.compare(loaded, by, [name.strip() for name in metric.split(",")], baseline)
    for line in found.left_out:
        print(f"left out: {line}", file=sys.stderr)
    if found.varying:
        print(f"means go over different values of {', '.join(found.varying)}", file=sys.stderr)
    print(formats.FORMATS["json" if as_json else form](found))
