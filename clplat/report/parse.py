"""Taking in ``metrics.jsonl``: lines are checked, damaged ones counted, and a record that grows is read on."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clplat.metrics.evidence import Look
from clplat.report import values
from clplat.report.values import Row, Training, text

if TYPE_CHECKING:
    from clplat.report.runs import RunData

NO_METRIC = ("test_loss", "tests")  # lists on the line of an evaluation that are not the primary metric
BLOCK = 1 << 22  # bytes of a record that are read at a time
TRAIN, TRAIN_END = b'{"event": "train"', b"}}"  # how the record writes what it says of an optimiser step


@dataclass
class Place:
    """How far a file of lines was read.

    Args:
        offset: bytes, up to the end of a line.
        lines: how many lines these are.
        damaged: how many of them are none of ours.
        first: the number of the first such.
        last: the end of what was read, by which one sees whether it is still there.
    """

    offset: int = 0
    lines: int = 0
    damaged: int = 0
    first: int = 0
    last: bytes = b""

    def count(self, number: int) -> None:
        """One more line is damaged."""
        self.damaged += 1
        self.first = min(self.first or number, number)

    def problem(self, run_dir: Path) -> list[str]:
        """One line on the damaged ones, if there are any."""
        if not self.damaged:
            return []
        more = f" and {self.damaged - 1} more" if self.damaged > 1 else ""
        return [text(f"{run_dir / 'metrics.jsonl'}:{self.first}{more}: not a line of the record; left out")]

    def there(self, run_dir: Path) -> bool:
        """Whether what was read is still there."""
        if not self.offset:
            return True
        try:
            with open(run_dir / "metrics.jsonl", "rb") as file:
                file.seek(self.offset - len(self.last))
                return file.read(len(self.last)) == self.last
        except OSError:
            return False


def read_lines(run: RunData) -> None:
    """The lines of ``metrics.jsonl`` that were not read yet. A last line without its end is still being written."""
    told, skipped, skip = run.read.problem(run.path), b"", "training" not in vars(run)
    try:
        for number, line in enumerate(_whole_lines(run.path, run.read), run.read.lines + 1):
            if skip and line.startswith(TRAIN) and line.endswith(TRAIN_END):
                skipped = line
            else:
                skipped = b""
                _read_line(run, line, number)
    except OSError as error:
        run.problems.append(f"{run.path / 'metrics.jsonl'}: {error.strerror}")
    if skipped:  # of many steps the last says how many there are
        with contextlib.suppress(ValueError, RecursionError, AttributeError):
            step = values.whole(json.loads(skipped).get("step"))
            run.steps = run.steps if step is None else step
    run.problems = [problem for problem in run.problems if problem not in told] + run.read.problem(run.path)


def _whole_lines(run_dir: Path, place: Place, end: int | None = None) -> Iterator[bytes]:
    """The lines of ``metrics.jsonl`` from a place on, which moves along; up to a position or the last whole line."""
    try:
        with open(run_dir / "metrics.jsonl", "rb") as file:
            file.seek(place.offset)
            rest = b""
            while block := file.read(BLOCK if end is None else min(BLOCK, end - file.tell())):
                *lines, rest = (rest + block).split(b"\n")
                yield from lines
                if lines:
                    place.lines += len(lines)
                    place.offset += sum(map(len, lines)) + len(lines)
                    place.last = lines[-1][-200:] + b"\n"
    except FileNotFoundError:
        return


def read_training(run: RunData) -> Training:
    """What was written of optimiser steps, up to where the run was read."""
    found, told = Training(), run.read.problem(run.path)
    with contextlib.suppress(OSError):  # told when the rest was read
        for number, written in enumerate(_whole_lines(run.path, Place(), run.read.offset), 1):
            if b'"train"' in written:
                try:
                    line = json.loads(written)
                    if isinstance(line, dict) and line.get("event") == "train":
                        found.add(line)
                except (ValueError, RecursionError):
                    if written.startswith(TRAIN) and written.endswith(TRAIN_END):  # else it was counted before
                        run.read.count(number)
    run.problems = [problem for problem in run.problems if problem not in told] + run.read.problem(run.path)
    return found


def _read_line(run: RunData, written: bytes, number: int) -> None:
    try:
        line = json.loads(written)
        if not isinstance(line, dict):
            raise ValueError
        _take_line(run, line)
    except (ValueError, RecursionError):
        run.read.count(number)


def _take_line(run: RunData, line: Mapping[str, Any]) -> None:
    step, event = values.whole(line.get("step")), line.get("event")
    run.steps = run.steps if step is None else step
    if event == "train":
        (run.training if "training" in vars(run) else Training()).add(line)  # the second one only checks it
    elif event == "evaluate":
        _take_evaluation(run, line, step)
    elif event == "look":
        _, row = _measured(line)
        experience = values.whole(line.get("experience"))
        if experience is None or step is None:
            raise ValueError
        run.looks.append(Look(experience, row, step))
    elif event == "extend":
        run.baseline, run.tests = values.row(line.get("baseline")), values.positions(line.get("tests"))


def _measured(line: Mapping[str, Any]) -> tuple[str, Row]:
    """The primary metric of an evaluation and its values."""
    metric = next((key for key, value in line.items() if isinstance(value, list) and key not in NO_METRIC), None)
    row = values.row(line.get(metric)) if metric else None
    if metric is None or row is None:
        raise ValueError
    return text(metric), row


def _take_evaluation(run: RunData, line: Mapping[str, Any], step: int | None) -> None:
    metric, row = _measured(line)
    after = line.get("experience")
    if type(after) is not int or not -1 <= after < max(len(row), len(run.tests), 1):
        raise ValueError
    run.metric = metric
    if after < 0:
        run.baseline, run.tests = row, values.positions(line.get("tests"))
        take_kind(run, line)
        return
    run.matrix += [[None] * len(row) for _ in range(after + 1 - len(run.matrix))]
    run.ends += [None] * (after + 1 - len(run.ends))
    run.matrix[after], run.ends[after] = row, step
    run.summary = values.numbers(line.get("summary"))
    if kept := values.numbers(line.get("memory")):
        run.kept[after] = kept


def take_kind(run: RunData, content: Mapping[str, Any]) -> None:
    """What is written down of how the matrix is to be read; older runs say less."""
    run.direction = "min" if content.get("direction", run.direction) == "min" else "max"
    told = content.get("new_classes")
    run.new_classes = told if isinstance(told, bool) else run.new_classes
