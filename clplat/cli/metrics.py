"""``clplat metrics``: what can be said of runs that have been trained."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from clplat import registry, yamlfile
from clplat.cli import flags, output
from clplat.errors import UsageError, suggestion

EPILOG = flags.examples(
    "clplat metrics runs/er-gru-split-digits-s0",
    "clplat metrics runs/* --add ece --add confusion",
    "clplat metrics RUN --reference runs/cumulative-gru-split-digits-s0 --add intransigence",
    "clplat metrics RUN --add windowed_forgetting --set windowed_forgetting.window=100",
    "clplat metrics RUN --add cka,effective_rank",
)

Options = dict[str, dict[str, Any]]


def metrics(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run directories, or folders with runs below.")],
    add: Annotated[
        list[str] | None,
        typer.Option("--add", metavar="NAME", help="Compute this and keep it in RUN/metrics.json; repeatable."),
    ] = None,
    reference: Annotated[
        list[Path] | None,
        typer.Option("--reference", metavar="RUN", help="A run to compare with; the mean of several."),
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME.OPTION=VALUE", help="An option of a metric; repeatable.")
    ] = None,
    as_json: flags.Json = False,
    config_dir: flags.ConfigDir = None,
    traceback: flags.Traceback = False,
) -> None:
    """Say what can be said of runs.

    Without --add: all that follows from what the runs wrote down, and for everything else why it cannot be had. With
    --add: these metrics, also those that need the network, which is built again from checkpoints. results.json is left
    as it is. `clplat list metrics` says what there is.
    """
    for folder in config_dir or ():
        registry.add_config_dir(folder)
    names = [name for word in add or () for name in word.split(",") if name]
    known = registry.names("metric")
    problems = [f"there is no metric '{name}'.{suggestion(name, known)}" for name in names if name not in known]
    options = _options(settings or (), known, problems)
    if problems:
        raise UsageError(*problems)
    from clplat.report.runs import find

    found = [(run, *_of(run, names, find(reference) if reference else [], options)) for run in find(runs)]
    if as_json:
        rows = [{"run": str(run), "values": values, "reasons": reasons} for run, values, reasons in found]
        print(json.dumps(rows, indent=2, allow_nan=False))
        return
    for number, (run, values, reasons) in enumerate(found):
        print(f"\n{run}" if number else run)
        output.table(("metric", "value", ""), [(n, _shown(v), reasons.get(n, "")) for n, v in values.items()])


def _options(settings: Sequence[str], known: Sequence[str], problems: list[str]) -> Options:
    """``NAME.OPTION=VALUE`` as options of each metric."""
    found: Options = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        name, dot, option = key.partition(".")
        if not (equals and dot):
            problems.append(f"--set {setting}: NAME.OPTION=VALUE is needed")
        elif name not in known:
            problems.append(f"--set {setting}: there is no metric '{name}'.{suggestion(name, known)}")
        else:
            try:
                found.setdefault(name, {})[option] = yamlfile.parse(value)
            except ValueError as error:
                problems.append(f"--set {setting}: the value is not YAML ({error})")
    return found


def _of(
    run_dir: Path, names: Sequence[str], references: Sequence[Path], options: Options
) -> tuple[dict[str, Any], dict[str, str]]:
    """The metrics asked for, which are then kept; or, where none is named, all that need no network, and those kept."""
    from clplat.metrics import catalogue, runs

    wanted = names or [name for name in registry.names("metric") if "model" not in catalogue.needs(name)]
    with_models = any("model" in catalogue.needs(name) for name in wanted)
    known, data = runs.evidence(run_dir, references, with_models=with_models)
    for problem in data.problems:
        print(f"warning: {problem}", file=sys.stderr)
    values, reasons = catalogue.compute(wanted, known, options)
    values = {catalogue.label(name, options): value for name, value in values.items()}
    reasons = {catalogue.label(name, options): reason for name, reason in reasons.items()}
    kept = runs.added(run_dir, known.n)
    if names:
        against = {
            catalogue.label(n, options): [str(path) for path in references]
            for n in names
            if references and "reference" in catalogue.needs(n)
        }
        runs.add(run_dir, known.n, values, reasons, against)
        return values, reasons
    for name, value in kept["values"].items():
        if values.get(name) is None:
            values[name] = value
            reasons.pop(name, None)
            if name in kept["reasons"]:
                reasons[name] = kept["reasons"][name]
    return values, reasons


def _shown(value: Any) -> str:
    """A value in a cell of a table."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4f}"
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}... (--json shows all)"
