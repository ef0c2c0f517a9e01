"""Reading run directories: what they hold so far, whether the run is done, goes on, failed or was stopped."""

from __future__ import annotations

import functools
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clplat import yamlfile
from clplat.errors import ClplatError, UsageError
from clplat.metrics.evidence import Look, average_of
from clplat.report import parse, values
from clplat.report.values import Row, Training, text
from clplat.tracking import directory
from clplat.tracking.record import lines

SUMMARY = ("ACC", "forgetting", "BWT", "FWT", "learning_accuracy", "average_incremental")
SILENCE = 600.0  # seconds without a heartbeat after which a run that says it runs is called silent


@dataclass
class RunData:
    """A run as far as it has come.

    Args:
        path: the run directory.
        label: what to call it, unique among those that were loaded together.
        config: its resolved configuration, unchecked; empty where it cannot be read.
        status: created, running, done, failed, preempted or unknown.
        silent: seconds since the last heartbeat of a run that says it runs, once that is long ago; else 0.
        metric, direction: the primary metric, and whether larger (max) or smaller (min) is better.
        baseline: the metric of the untrained network on each experience; None where it was not measured.
        matrix: the metric after experience i on experience j.
        tests: which test experience belongs to each training experience; empty: the one at the same position.
        new_classes: whether each experience brings classes of its own for one head; None where it is not written down.
        summary: summary metrics by name, over the experiences so far.
        reasons: for each that is None why.
        seconds: how long the run took, or has taken so far.
        steps: optimiser steps.
        ends: the optimiser step at which each row of the matrix was measured; None where that is not known.
        looks: evaluations between two optimiser steps.
        kept: after each experience how many samples of each experience the memory held, where there is one.
        results: the content of ``results.json``, unchecked.
        problems: one line for each thing that could not be read.
        read: how far ``metrics.jsonl`` was read.
    """

    path: Path
    label: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    status: str = "unknown"
    silent: float = 0.0
    metric: str = "accuracy"
    direction: str = "max"
    baseline: Row | None = None
    matrix: list[Row] = field(default_factory=list)
    tests: list[int] = field(default_factory=list)
    new_classes: bool | None = None
    summary: dict[str, float | None] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    seconds: float | None = None
    steps: int | None = None
    ends: list[int | None] = field(default_factory=list)
    looks: list[Look] = field(default_factory=list)
    kept: dict[int, dict[str, float | None]] = field(default_factory=dict)
    results: Mapping[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    read: parse.Place = field(default_factory=parse.Place)

    def name(self, group: str) -> str:
        """What is chosen in a section of the configuration, such as the strategy."""
        section = self.config.get(group)
        name = section.get("name") if isinstance(section, Mapping) else section
        return text(name) if isinstance(name, str) else "?"

    @property
    def seed(self) -> str:
        """The seed as text."""
        return text(self.config.get("seed", "?"))

    @property
    def state(self) -> str:
        """The status in words: of a run that is not done with how far it came."""
        words = self.status
        if self.silent:
            words += f", silent for {self.silent / 3600:.1f} h"
        return words if self.status == "done" or not self.matrix else f"{words} ({len(self.matrix)} evaluated)"

    @functools.cached_property
    def training(self) -> Training:
        """What was written down of optimiser steps, as far as the run was read; read when first asked for, since it is
        most of a long record and most questions are about the rest."""
        return parse.read_training(self)

    @functools.cached_property
    def timings(self) -> list[dict[str, Any]]:
        """The lines of ``timings.jsonl``, unchecked; read when first asked for."""
        return lines(self.path, "timings.jsonl")

    @functools.cached_property
    def history(self) -> list[dict[str, Any]]:
        """The lines of ``history.jsonl``, unchecked; read when first asked for."""
        return lines(self.path, "history.jsonl")

    def _repr_html_(self) -> str:
        from clplat.report import tables  # which are made of runs

        return tables.as_html(*tables.summary([self])) + tables.as_html(*tables.matrix(self))

    def teaches(self, i: int) -> int:
        """The test experience that belongs to training experience i."""
        return self.tests[i] if i < len(self.tests) else i

    def end(self, i: int) -> int | None:
        """The optimiser step at which row i of the matrix was measured; None where the record does not say."""
        return self.ends[i] if i < len(self.ends) else None

    @property
    def average_seen(self) -> Row:
        """After each experience, the mean of the metric over the experiences seen so far that were evaluated."""
        learned: set[int] = set()
        means: Row = []
        for i, row in enumerate(self.matrix):
            learned.add(self.teaches(i))
            means.append(average_of(row, learned))
        return means


def find(paths: Sequence[Path]) -> list[Path]:
    """The run directories among ``paths`` and in the folders below them, each once.

    Raises:
        UsageError: a path is neither a run directory nor a folder that holds one.
    """
    found: dict[Path, Path] = {}
    problems = []
    for path in paths:
        here = list(_walk(path))
        if not here:
            problems.append(f"{path}: {why_none(path)}")
        found |= {run.resolve(): run for run in here if run.resolve() not in found}
    if problems:
        raise UsageError(*problems)
    return list(found.values())


def why_none(path: Path) -> str:
    """Why there is no run at a path, in words."""
    if not path.is_dir():
        return "is a file; a run is a folder" if path.exists() else "there is no such folder"
    try:
        os.listdir(path)
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return "is no run directory and holds none"


def _walk(path: Path) -> Iterator[Path]:
    for folder, below, _ in os.walk(path):
        if directory.is_run(Path(folder)):
            below.clear()  # what lies in a run is the run's
            yield Path(folder)
        below.sort()


def load_runs(paths: Sequence[Path], now: float | None = None) -> list[RunData]:
    """Read all runs that :func:`find` finds; what is damaged is named in ``problems`` and left out.

    Args:
        paths: run directories, or folders with some below.
        now: the time that heartbeats are compared with; the clock's by default.
    """
    folders = find(paths)
    resolved = [str(folder.resolve()) for folder in folders]
    common = os.path.commonpath(resolved) if len(folders) > 1 else os.path.dirname(resolved[0])
    runs = [load(folder, now) for folder in folders]
    for run, full in zip(runs, resolved, strict=True):
        run.label = text(os.path.relpath(full, common))
    return sorted(runs, key=lambda run: run.label)


def load(path: Path, now: float | None = None) -> RunData:
    """Read one run directory."""
    run = RunData(path, label=text(path.name))
    try:
        run.config, _ = yamlfile.read(path / "config.yaml")
    except UsageError as error:
        run.problems += error.messages
    _take_status(run, now)
    parse.read_lines(run)
    try:
        results = directory.results(path)
    except (ClplatError, RecursionError) as error:
        named = f"{path / 'results.json'}: " if isinstance(error, RecursionError) else ""
        run.problems.append(f"{named}{error}")
        results = None
    if results is not None:
        run.results = results
        _take_results(run, results)
    if run.seconds is None:
        run.seconds = _last_seconds(path)
    run.problems = [text(problem) for problem in run.problems]
    return run


def follow(run: RunData, now: float | None = None) -> bool:
    """Take in what was added to a run's record since it was loaded, and its status.

    Returns:
        False where the run is to be loaded again: what was read is not there any more, because it went on from a
        checkpoint, or there are results, which go before all lines.
    """
    if run.results or not run.read.there(run.path):
        return False
    for name in ("timings", "history"):  # read again when they are asked for again
        run.__dict__.pop(name, None)
    _take_status(run, now)
    parse.read_lines(run)
    run.seconds = _last_seconds(run.path) or run.seconds
    return True


def _take_status(run: RunData, now: float | None) -> None:
    status = directory.read_status(run.path)
    run.status = text(status["status"])
    beat = values.number(status.get("time"))
    run.silent = 0.0
    if run.status == "running" and beat is not None:
        age = (time.time() if now is None else now) - beat
        run.silent = age if age > SILENCE else 0.0


def _take_results(run: RunData, results: Mapping[str, Any]) -> None:
    """``results.json`` goes before what the lines said."""
    rows = results.get("matrix")
    matrix = [values.row(row) for row in rows] if isinstance(rows, list) else [None]
    if any(row is None for row in matrix):
        run.problems.append(f"{run.path / 'results.json'}: its matrix is none")
        return
    run.matrix = [row for row in matrix if row is not None]
    run.baseline = values.row(results.get("baseline")) or run.baseline
    run.tests = values.positions(results.get("tests")) or run.tests
    run.metric = text(results.get("metric", run.metric))
    parse.take_kind(run, results)
    run.summary = values.numbers(results.get("summary")) or run.summary
    reasons = results.get("reasons")
    run.reasons = {text(k): text(v) for k, v in reasons.items()} if isinstance(reasons, Mapping) else {}
    run.seconds = values.number(results.get("seconds"))
    steps = values.number(results.get("steps"))
    run.steps = run.steps if steps is None else int(steps)


def _last_seconds(path: Path) -> float | None:
    """How long a run has taken, by the last whole line of ``timings.jsonl``."""
    try:
        lines = (path / "timings.jsonl").read_bytes().split(b"\n")[:-1]
        return values.number(json.loads(lines[-1])["at_seconds"])
    except (OSError, ValueError, LookupError, TypeError):
        return None
