"""What a run directory, finished or not, old or new, gives as evidence; and metrics that were added to it later."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from clplat.errors import RunFailedError
from clplat.metrics import store
from clplat.metrics.evidence import Evidence
from clplat.report.runs import RunData, load
from clplat.tracking import directory

ADDED = "metrics.json"


def evidence(run_dir: Path, references: Sequence[Path] = (), *, with_models: bool = False) -> tuple[Evidence, RunData]:
    """What is known of a run, and the run as reports see it (its ``problems`` say what could not be read).

    Args:
        references: other runs on the same stream.
        with_models: the run's networks are at hand as well; they are built when they are first asked for.
    """
    run = load(run_dir)
    models = None
    if with_models:
        from clplat.metrics.models import Models

        models = Models(run_dir)
    return replace(known(run), references=[evidence(other)[0] for other in references], models=models), run


def known(run: RunData) -> Evidence:
    """A run as reports see it, as evidence: all that takes no model and no other run."""
    section = run.config.get("eval")
    watched = isinstance(section, Mapping) and bool(section.get("every"))
    direction: Literal["max", "min"] = "min" if run.direction == "min" else "max"
    answers = store.Answers(run.path)
    return Evidence(
        matrix=run.matrix,
        baseline=run.baseline or (),
        direction=direction,
        tests=run.tests,
        new_classes=run.new_classes,
        looks=run.looks if watched else None,
        predictions=answers if answers else None,
        results=run.results,
        timings=run.timings,
    )


def added(run_dir: Path, evaluations: int) -> dict[str, Any]:
    """The content of ``metrics.json``: values and reasons that were added after so many evaluations; what was added to
    a run that has come further since is out of date and left out.

    Raises:
        RunFailedError: it is there and cannot be read.
    """
    try:
        content = json.loads((run_dir / ADDED).read_text(encoding="utf-8"))
        fresh = content["evaluations"] == evaluations
        found = {key: dict(content[key]) for key in ("values", "reasons", "references")}
    except FileNotFoundError:
        fresh = False
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise RunFailedError(f"{run_dir / ADDED}: cannot be read: {error}") from None
    return found if fresh else {"values": {}, "reasons": {}, "references": {}}


def add(
    run_dir: Path,
    evaluations: int,
    values: Mapping[str, Any],
    reasons: Mapping[str, str],
    references: Mapping[str, Sequence[str]],
) -> None:
    """Put metrics beside ``results.json``; those of other names that were there stay.

    Args:
        references: for metrics that were compared with other runs which these are.

    Raises:
        RunFailedError: the run directory cannot be written, or holds a file that is not ours.
    """
    known = added(run_dir, evaluations)
    for name in values:
        known["reasons"].pop(name, None)
        known["references"].pop(name, None)
    content = {
        "evaluations": evaluations,
        "values": {**known["values"], **values},
        "reasons": {**known["reasons"], **reasons},
        "references": {**known["references"], **references},
    }
    try:
        directory.write_atomic(run_dir / ADDED, json.dumps(content, indent=2, allow_nan=False) + "\n")
    except OSError as error:
        raise RunFailedError(f"{run_dir / ADDED}: cannot be written: {error.strerror}") from None
