"""What a run wrote down of itself beside its evaluations, checked: phases, starts and ends, its strategy's report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from clplat.report.runs import RunData
from clplat.report.values import mapping, number, numbers, text, whole
from clplat.tracking.names import usage

END_OF_CALENDARS = 250_000_000_000.0  # before the year 10,000


@dataclass(frozen=True)
class Spent:
    """Time that a run spent.

    Args:
        experience: 0 for the first, -1 before it.
        phase: of training, or ``finish`` or ``evaluate``.
        seconds: how long it took.
        samples: of the stream that were trained on; None where that is not known.
    """

    experience: int
    phase: str
    seconds: float
    samples: int | None


def spent(run: RunData) -> list[Spent]:
    """The phases and evaluations in ``timings.jsonl``."""
    found = []
    for line in run.timings:
        experience, seconds = line.get("experience"), number(line.get("seconds"))
        if line.get("event") in ("phase", "evaluate") and type(experience) is int and seconds is not None:
            phase = text(line.get("phase", "evaluate"))
            found.append(Spent(experience, phase, seconds, whole(line.get("samples"))))
    return found


def used(run: RunData) -> dict[str, tuple[list[int], list[float | None]]]:
    """What the ranks used of their machines, from ``timings.jsonl``: by name (``cpu``, or ``cpu/<rank>``, ...) the
    optimiser steps and the values."""
    found: dict[str, tuple[list[int], list[float | None]]] = {}
    for line in run.timings:
        step = whole(line.get("step"))
        if line.get("event") == "use" and step is not None:
            for name, value in numbers(usage(line)).items():
                steps, curve = found.setdefault(name, ([], []))
                steps.append(step)
                curve.append(value)
    return found


@dataclass(frozen=True)
class Start:
    """One start of a run.

    Args:
        begin, end: seconds since the epoch; no end where it still goes on or was killed.
        status: how it ended; ``running`` or ``killed`` without an end.
        where: the host, the job and what else was written down of it.
    """

    begin: float
    end: float | None
    status: str
    where: str


def starts(run: RunData) -> list[Start]:
    """The starts in ``history.jsonl``, in order."""
    found: list[Start] = []
    for line in run.history:
        at = _moment(line.get("time"))
        if line.get("event") == "start" and at is not None:
            names = [
                f"{key} {text(line[key])}" for key in ("host", "job", "array_task", "restart", "world") if key in line
            ]
            _killed(found)
            found.append(Start(at, None, "running", ", ".join(names)))
        elif line.get("event") == "end" and at is not None and found and found[-1].end is None:
            last = found.pop()
            found.append(Start(last.begin, at, text(line.get("status", "?")), last.where))
    if run.status != "running":
        _killed(found)
    return found


def _moment(value: Any) -> float | None:
    """Seconds since the epoch, in years that calendars know."""
    at = number(value)
    return at if at is not None and 0 <= at < END_OF_CALENDARS else None


def _killed(found: list[Start]) -> None:
    """The last start ended without saying so."""
    if found and found[-1].end is None:
        last = found.pop()
        found.append(Start(last.begin, None, "killed", last.where))


def reports(run: RunData) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """What strategies reported of themselves, with their names: one, or the parts of a combination."""
    whole_report = mapping(run.results.get("strategy"))
    yield run.name("strategy"), whole_report
    for name, part in whole_report.items():
        if isinstance(part, Mapping):
            yield text(name), part
