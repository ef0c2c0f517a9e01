"""What a run's numbers are called where it is shown: the names that all mirrors share (see docs/tracking.md)."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

Row = Sequence[float | None]


def scalars(line: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a line of ``metrics.jsonl`` by name; what was not measured (null) is left out.

    A training line gives ``train/<term>``, or ``train/<phase>/<term>`` in a phase of a strategy's own, ``optim/lr`` and
    ``optim/grad_norm``, and ``system/<name>`` of the use of the machine. Where there are several learning rates, or
    several ranks, each is ``.../<number>``, from 0. An evaluation
    gives ``eval/task/<j>`` and ``eval/loss/<j>`` for each evaluated experience j, ``eval/<name>`` for each summary
    metric over the experiences so far, and ``eval/average_seen``. A look inside training (``eval.every``) gives
    ``train/look/<j>``, a probe ``eval/<probe>/<name>``.
    """
    found: dict[str, float | None] = {}
    if line.get("event") == "train":
        prefix = "train" if line.get("phase", "train") == "train" else f"train/{line['phase']}"
        found = {f"{prefix}/{name}": value for name, value in line["terms"].items()}
        found |= {f"optim/{name}": value for name, value in optimisation(line).items()}
        found |= {f"system/{name}": value for name, value in usage(line).items()}
    elif line.get("event") == "evaluate":
        found = {f"eval/task/{j}": value for j, value in enumerate(matrix_row(line))}
        found |= {f"eval/loss/{j}": value for j, value in enumerate(line.get("test_loss", ()))}
        found |= {f"eval/{name}": value for name, value in line.get("summary", {}).items()}
        found["eval/average_seen"] = line.get("average_seen")
    elif line.get("event") == "look":
        found = {f"train/look/{j}": value for j, value in enumerate(matrix_row(line))}
    elif line.get("event") == "probe":
        found = {f"eval/{line['probe']}/{name}": value for name, value in line["values"].items()}
    return {name: float(value) for name, value in found.items() if value is not None}


def optimisation(line: Mapping[str, Any]) -> dict[str, Any]:
    """What a training line says of the optimiser step beside the loss: ``lr``, or ``lr/<group>``, and ``grad_norm``."""
    found = _numbered("lr", line.get("lr"))
    return {**found, "grad_norm": line["grad_norm"]} if "grad_norm" in line else found


def usage(line: Mapping[str, Any]) -> dict[str, Any]:
    """What a line has of the ``use`` of the machine: ``<name>``, or ``<name>/<rank>``."""
    use = line.get("use")
    parts = [_numbered(name, values) for name, values in use.items()] if isinstance(use, Mapping) else []
    return {name: value for part in parts for name, value in part.items()}


def _numbered(name: str, values: Any) -> dict[str, Any]:
    """One value by its name alone, several by their numbers too."""
    if not isinstance(values, list):
        return {}
    return {name: values[0]} if len(values) == 1 else {f"{name}/{number}": value for number, value in enumerate(values)}


def matrix_row(line: Mapping[str, Any]) -> Row:
    """The row of the matrix that an evaluation measured: the list under the name of the scenario's metric."""
    return next(value for key, value in line.items() if isinstance(value, list) and key not in ("test_loss", "tests"))


def cells(rows: Iterable[tuple[int, Row]]) -> list[tuple[int, int, float]]:
    """``(after, on, value)`` of each measured entry; ``after`` is -1 for the untrained network."""
    return [(after, on, value) for after, row in rows for on, value in enumerate(row) if value is not None]


def outcome(run_dir: Path) -> dict[str, float | str]:
    """What is known of a run that has ended, as plain values by name: one row of a table of runs. What the run says
    itself (:func:`results`), and what was measured of it later (:func:`later`)."""
    return {**results(run_dir), **later(run_dir)}


def results(run_dir: Path) -> dict[str, float | str]:
    """The texts and numbers of ``results.json`` and its summary metrics, and the metrics that follow from what the run
    spent. Of what has parts, each is ``<name>/<part>``; what was not measured is left out."""
    from clplat.metrics import catalogue, runs

    known, run = runs.evidence(run_dir)
    spent, _ = catalogue.compute(catalogue.having("record"), known)
    texts = {name: value for name, value in known.results.items() if isinstance(value, str)}
    values = {**known.results, **run.summary, **spent}
    values = {key: value for key, value in values.items() if key not in _NO_METRICS}
    return {"status": run.status, **texts, **dict(_flat(values))}


def later(run_dir: Path) -> dict[str, float | str]:
    """Metrics that were added to a run (``clplat metrics --add``) and ``probe/<probe>/<name>`` (``clplat probe``), with
    names as in :func:`results`."""
    from clplat.metrics import runs

    known, _ = runs.evidence(run_dir)
    values = dict(runs.added(run_dir, known.n)["values"])
    for path in sorted((run_dir / "probes").glob("*.json")):
        with contextlib.suppress(OSError, ValueError, RecursionError):
            content = json.loads(path.read_text(encoding="utf-8"))
            if isinstance(content, Mapping):
                values[f"probe/{path.stem}"] = {key: value for key, value in content.items() if _is_number(value)}
    return dict(_flat(values))


_NO_METRICS = ("summary", "reasons", "strategy")  # parts of results.json that are told otherwise, or are texts


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}/")
        elif _is_number(value):
            yield f"{prefix}{key}", value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
