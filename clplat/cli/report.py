"""``clplat report``: tables and figures of runs."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from clplat.cli import flags, output
from clplat.errors import RunFailedError, UsageError

if TYPE_CHECKING:
    from clplat.report.compare import Group
    from clplat.report.runs import RunData

EPILOG = flags.examples(
    "clplat report runs",
    "clplat report runs/ewc-* --output ewc.html",
    "clplat report runs --data --export svg",
    "clplat report runs --json > runs.json",
)


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run directories, or folders with runs below.")],
    target: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="DIR|FILE", help="Where the page goes; report/ if not given."),
    ] = None,
    pictures: Annotated[
        Literal["png", "svg", "pdf"] | None, typer.Option("--export", help="Write each figure as a picture as well.")
    ] = None,
    data: Annotated[bool, typer.Option("--data", help="Write all values as CSV as well, one a row.")] = False,
    text: Annotated[bool, typer.Option("--text", help="Print the tables and write no page.")] = False,
    as_json: flags.Json = False,
    traceback: flags.Traceback = False,
) -> None:
    """Compare runs.

    Prints tables, and writes a page with all figures that needs no network to be read: a folder with index.html, or one
    file if the name ends in .html. Pictures (figures/, drawn by Chromium through the extra 'figures') and values
    (data.csv) go beside it. Runs that still go on, failed or were stopped show what they have.
    """
    from clplat.report import compare, tables
    from clplat.report.runs import load_runs

    loaded = load_runs(runs)
    found = compare.groups(loaded)
    for run in loaded:
        for problem in run.problems:
            print(f"warning: {problem}", file=sys.stderr)
    for group in found:
        for label in group.repeated:
            print(f"warning: {label} repeats a seed; the table over seeds counts it once", file=sys.stderr)
    if as_json:
        print(json.dumps(tables.as_json(loaded, found), indent=2, allow_nan=False))
    else:
        _print(loaded, found)
    told = sys.stderr if as_json else sys.stdout
    whole = target or Path("report")
    if target is not None or not (text or as_json):
        print(f"page: {_write(whole, loaded, found)}", file=told)
    folder = whole.parent if _is_file(whole) else whole
    if data:
        from clplat.report import tidy

        _put(folder / "data.csv", tidy.as_csv(loaded), ",".join(tidy.COLUMNS))
        print(f"values: {folder / 'data.csv'}", file=told)
    if pictures is not None:
        from clplat.report import export

        files = export.export(export.drawn(loaded), folder / "figures", pictures)
        print(f"figures: {len(files)} in {folder / 'figures'}", file=told)


def _print(loaded: Sequence[RunData], found: Sequence[Group]) -> None:
    from clplat.report import tables

    output.table(*tables.summary(loaded))
    over_seeds = tables.seeds(found)
    if over_seeds is not None:
        print("\nover seeds (mean ± sample standard deviation of runs that are done)")
        output.table(*over_seeds)
    if len(loaded) == 1 and (loaded[0].matrix or loaded[0].baseline):
        print(f"\n{loaded[0].metric} after experience (row) on experience (column)")
        output.table(*tables.matrix(loaded[0]))


def _is_file(target: Path) -> bool:
    """Whether a name stands for one file, and not for a folder."""
    return target.suffix in (".html", ".htm")


def _write(target: Path, loaded: Sequence[RunData], found: Sequence[Group]) -> Path:
    """Write the page, in a folder with plotly.js beside it; a file that is no report of ours is left alone."""
    from clplat.report import page

    if _is_file(target):
        _put(target, page.page(loaded, found), page.GENERATOR)
        return target
    path = target / "index.html"
    _put(path, page.page(loaded, found, beside=True), page.GENERATOR)
    _put(target / page.SCRIPT, page.plotly(), "plotly.js")
    return path


def _put(path: Path, content: str, ours: str) -> None:
    """Write a file; one that is there already must say near its beginning that it is such a one."""
    from clplat.tracking.directory import write_atomic

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and ours.encode() not in path.read_bytes()[:1000]:
            raise UsageError(f"{path} is there already and no report of clplat; it was not touched")
        write_atomic(path, content)
    except (FileExistsError, NotADirectoryError, IsADirectoryError):
        raise UsageError(f"{path}: cannot be written: a folder's name is that of a file, or the reverse") from None
    except OSError as error:
        raise RunFailedError(f"{path}: cannot be written: {error.strerror}") from None
