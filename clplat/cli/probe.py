"""``clplat probe``: measure what a run's network has become."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from clplat import registry, yamlfile
from clplat.cli import flags, output
from clplat.errors import UsageError
from clplat.options import Text, shown

EPILOG = flags.examples(
    "clplat probe gdv runs/ewc-transformer-permuted-digits-s0",
    "clplat probe timescales runs/ewc-gru-permuted-digits-s0 max_lag=50 --figure timescales.svg",
    "clplat list probes",
)


def probe(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The probe; `clplat list probes`.")],
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The run directory.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY=VALUE", help="Options of the probe; `clplat show NAME`.")
    ] = None,
    experience: Annotated[
        int | None, typer.Option("--experience", metavar="K", help="After K experiences; else the newest checkpoint.")
    ] = None,
    figure: Annotated[
        Path | None, typer.Option("--figure", metavar="FILE", help="Draw it as well: .svg, .png, .pdf or .html.")
    ] = None,
    as_json: flags.Json = False,
    config_dir: flags.ConfigDir = None,
    traceback: flags.Traceback = False,
) -> None:
    """Measure what a run's network has become.

    The result is written to RUN/probes/NAME.json, or NAME-e00K.json after K experiences.
    """
    from clplat.tracking import directory

    for folder in config_dir or ():
        registry.add_config_dir(folder)
    registry.find("probe", name)
    if not directory.is_run(run):
        raise UsageError(f"{run} is not a run directory.")
    options = _options(overrides or ())

    from clplat.metrics.probes import base
    from clplat.probing import make
    from clplat.report import draw
    from clplat.restored import restored

    if figure is not None:
        draw.check(figure)
    chosen = make(name, **options)
    job, checkpoint = restored(run, experience)
    found = {"checkpoint": checkpoint, **base.take(chosen, job.learner, job.scenario)}
    text = json.dumps(found, indent=2, allow_nan=False) + "\n"
    path = run / base.file_name(name, experience)
    path.parent.mkdir(exist_ok=True)
    directory.write_atomic(path, text)
    if figure is not None:
        draw.write(chosen.figure(found), figure)
    if as_json:
        print(text, end="")
        return
    rows = [(key, "not measured" if value is None else f"{value:.6g}") for key, value in base.numbers(found).items()]
    output.table(("", f"{name} at {checkpoint}"), rows)
    print(f"all of it: {path}" + (f"; figure: {figure}" if figure is not None else ""))


def _options(overrides: Sequence[str]) -> dict[str, Any]:
    """``key=value`` words as options, each with what YAML makes of its value."""
    options: dict[str, Any] = {}
    problems = []
    for word in overrides:
        key, equals, text = word.partition("=")
        key = key.removeprefix("probe.")
        try:
            value = Text(text, yamlfile.parse(text))
        except ValueError as error:
            problems.append(f"{word}: the value is not YAML ({error})")
            continue
        if not equals or not key.isidentifier():
            problems.append(f"'{word}' is not of the form KEY=VALUE")
        elif key in options:
            problems.append(f"{key} is given twice: {shown(options[key])} and {shown(value)}")
        else:
            options[key] = value
    if problems:
        raise UsageError(*problems)
    return options


def example(entry: registry.Entry) -> str:
    """A command that takes the probe, for ``clplat show``."""
    option = next(iter(entry.options.values()), None)
    words = ["clplat", "probe", entry.name, "RUN"]
    return shlex.join([*words, *([] if option is None else [f"{option.name}={shown(option.default)}"])])
