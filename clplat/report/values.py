"""What a run directory says, checked: whatever stands there, this lets through what can be drawn and counted."""

from __future__ import annotations

import math
import re
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from clplat.tracking.names import optimisation

Row = list[float | None]

LARGEST = 2**53  # whole numbers up to here are the same in JSON, in a browser and in floating point


def text(value: Any) -> str:
    """Something that a run directory says, as one line that can be printed and written: no control characters, which
    a terminal would obey, and no halves of characters."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]", "\ufffd", str(value).encode("utf-8", "replace").decode())


def number(value: Any) -> float | None:
    """A finite number, or None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def whole(value: Any) -> int | None:
    """A whole number from 0, or None for anything else."""
    return value if type(value) is int and 0 <= value <= LARGEST else None


def row(value: Any) -> Row | None:
    """A row of the matrix: numbers and nulls; None where it is no such thing."""
    return [number(item) for item in value] if isinstance(value, list) and value else None


def numbers(value: Any) -> dict[str, float | None]:
    """Numbers and nulls by name; empty for anything else."""
    return {text(key): number(item) for key, item in value.items()} if isinstance(value, Mapping) else {}


def positions(value: Any) -> list[int]:
    """Whole numbers from 0, or an empty list where they are no such."""
    if isinstance(value, list) and all(type(n) is int and 0 <= n < len(value) for n in value):
        return value
    return []


def mapping(value: Any) -> Mapping[str, Any]:
    """A mapping; empty for anything else."""
    return value if isinstance(value, Mapping) else {}


@dataclass
class Training:
    """The ``train`` lines of a record in columns, which take a tenth of the memory of the lines.

    Args:
        step, experience: of each line.
        phase: of each line.
        terms: the value of each loss term; NaN on lines that do not have it.
        optim: likewise the learning rate (``lr``, or ``lr/<group>``) and the norm of the gradient (``grad_norm``).
    """

    step: array[int] = field(default_factory=lambda: array("q"))
    experience: array[int] = field(default_factory=lambda: array("q"))
    phase: list[str] = field(default_factory=list)
    terms: dict[str, array[float]] = field(default_factory=dict)
    optim: dict[str, array[float]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.step)

    def add(self, line: Mapping[str, Any]) -> None:
        """Take a line.

        Raises:
            ValueError: it is not such a line.
        """
        step, experience, terms = whole(line.get("step")), whole(line.get("experience")), line.get("terms")
        if step is None or experience is None or not isinstance(terms, Mapping):
            raise ValueError("not a line of training")
        for columns, found in ((self.terms, numbers(terms)), (self.optim, numbers(optimisation(line)))):
            for name in found:
                if name not in columns:
                    columns[name] = array("d", [math.nan]) * len(self)
            for name, column in columns.items():
                value = found.get(name)
                column.append(math.nan if value is None else value)
        self.step.append(step)
        self.experience.append(experience)
        self.phase.append(text(line.get("phase", "train")))

    def curve(self, name: str) -> Iterator[tuple[int, float | None]]:
        """A term over the steps at which it was written down; None where it was not finite, as a gap in the curve."""
        return self._over_steps(self.terms[name])

    def optim_curve(self, name: str) -> Iterator[tuple[int, float | None]]:
        """Likewise a learning rate or the norm of the gradient."""
        return self._over_steps(self.optim[name])

    def _over_steps(self, column: array[float]) -> Iterator[tuple[int, float | None]]:
        for step, value in zip(self.step, column, strict=True):
            yield step, None if math.isnan(value) else value
