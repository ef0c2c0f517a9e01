"""What is known of a run, for metrics to judge: the matrix, the looks in between, predictions, other runs, the model.

A metric is a function of :class:`Evidence`, found under ``conf/metric``. It takes what it needs and raises
:class:`NotMeasuredError`, with the reason, where that is not there: a metric is a number or says why it is none.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from clplat.metrics.networks import Networks
    from clplat.metrics.store import Answers

Row = Sequence[float | None]
Matrix = Sequence[Row]
Direction = Literal["max", "min"]

NEEDS = ("matrix", "looks", "predictions", "reference", "model", "record")


class NotMeasuredError(ValueError):
    """A metric needs something that was not measured, or is not defined for such a run; the message says why."""


@dataclass(frozen=True)
class Look:
    """An evaluation between two optimiser steps (``eval.every``), while ``experience`` was being trained, after so many
    steps of the run (None: not known)."""

    experience: int
    row: Row
    step: int | None = None


def looks_in(lines: Sequence[Mapping[str, Any]], metric: str) -> list[Look]:
    """The looks among the lines of a run's record."""
    return [Look(line["experience"], line[metric], line.get("step")) for line in lines if line.get("event") == "look"]


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What is known of a run.

    Where tasks return, ``tests`` says on which test experience each train experience is tested, and the matrix has
    fewer columns than rows. A test experience is *seen* once a train experience that is tested on it has ended.

    Args:
        matrix: ``R[i, j]``, the primary metric after train experience i on test experience j (both from 0).
        baseline: the primary metric of the untrained network on each test experience.
        direction: whether larger or smaller values are better.
        tests: for each train experience the test experience that belongs to it; empty: the one at its own position.
        new_classes: each experience brings classes of its own, which one head must tell apart; None: not known.
        looks: evaluations inside experiences in order; None where none were made.
        predictions: what was answered to each test sample, by evaluation.
        references: other runs on the same stream.
        models: the run's networks at the ends of its experiences.
        results: what the run wrote down of itself at its end.
        timings: the lines of ``timings.jsonl``.
    """

    matrix: Matrix
    baseline: Row = ()
    direction: Direction = "max"
    tests: Sequence[int] = ()
    new_classes: bool | None = None
    looks: Sequence[Look] | None = None
    predictions: Answers | None = None
    references: Sequence[Evidence] = ()
    models: Networks | None = None
    results: Mapping[str, Any] = field(default_factory=dict)
    timings: Sequence[Mapping[str, Any]] = ()

    @property
    def n(self) -> int:
        """Train experiences that have ended."""
        return len(self.matrix)

    @property
    def sign(self) -> int:
        """What differences are multiplied by so that more is better."""
        return 1 if self.direction == "max" else -1

    def test(self, i: int) -> int:
        """The test experience of train experience i."""
        return self.tests[i] if i < len(self.tests) else i

    @property
    def seen(self) -> list[int]:
        """The test experiences seen so far, in the order in which they were first seen."""
        return list(self.first)

    @property
    def first(self) -> dict[int, int]:
        """For each test experience that has been seen the train experience after which it first was."""
        found: dict[int, int] = {}
        for i in range(self.n):
            found.setdefault(self.test(i), i)
        return found

    @property
    def last(self) -> dict[int, int]:
        """For each test experience that has been seen the train experience after which it last was."""
        return {self.test(i): i for i in range(self.n)}

    @property
    def earlier(self) -> list[int]:
        """The test experiences seen so far but for that of the last train experience: those that can be forgotten."""
        return [j for j in self.seen if j != self.test(self.n - 1)] if self.n else []

    def at(self, i: int, j: int) -> float:
        """``R[i, j]``; the untrained network's value for i = -1."""
        row = self.baseline if i == -1 else self.matrix[i] if i < self.n else ()
        value = row[j] if j < len(row) else None
        if value is None:
            what = f"baseline[{j}]" if i == -1 else f"R[{i}, {j}]"
            raise NotMeasuredError(f"{what} was not measured")
        return value

    def good(self, i: int, j: int) -> float:
        """``R[i, j]`` with the sign turned where smaller is better."""
        return self.sign * self.at(i, j)

    def best(self, j: int) -> float:
        """The best of test experience j from when it was first seen to before the last experience, as :meth:`good`."""
        return max(self.good(i, j) for i in range(self.first[j], self.n - 1))

    def evaluations(self) -> Iterator[tuple[int, Row]]:
        """All evaluations in order, those inside experiences and those at their ends: (train experience, row).

        Raises:
            NotMeasuredError: nothing was evaluated inside experiences.
        """
        if self.looks is None:
            raise NotMeasuredError("needs eval.every > 0")
        inside: dict[int, list[Row]] = {}
        for look in self.looks:
            inside.setdefault(look.experience, []).append(look.row)
        for i, end in enumerate(self.matrix):
            yield from ((i, row) for row in inside.get(i, ()))
            yield i, end

    def known(self) -> Answers:
        """The predictions. Raises :class:`NotMeasuredError` where there are none."""
        if self.predictions is None:
            raise NotMeasuredError("the run stored no predictions: train with eval.store=predictions")
        return self.predictions

    def network(self) -> Networks:
        """The run's networks. Raises :class:`NotMeasuredError` where they are not at hand."""
        if self.models is None:
            raise NotMeasuredError("needs the model: clplat metrics RUN --add NAME computes it from checkpoints")
        return self.models


def mean(values: Sequence[float], otherwise: str) -> float:
    """The mean; of no values a :class:`NotMeasuredError` that says ``otherwise``."""
    if not values:
        raise NotMeasuredError(otherwise)
    return sum(values) / len(values)


def average_of(row: Row, which: Collection[int]) -> float | None:
    """The mean of some entries of a row, as far as they were measured; None where none was."""
    known = [value for j, value in enumerate(row) if j in which and value is not None]
    return sum(known) / len(known) if known else None
