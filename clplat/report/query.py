"""Which runs, in which order: the words of ``--where`` and ``--sort``."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from clplat.changes import flatten
from clplat.errors import UsageError, suggestion
from clplat.report.comparison import value_of
from clplat.report.runs import SUMMARY, RunData

_CLAUSE = re.compile(r"([^=!<>~]+?)\s*(!=|>=|<=|=|>|<|~)\s*(.*)", re.DOTALL)
COLUMNS = ("run", "strategy", "backbone", "scenario", "seed", "status", "experiences", "ACC", "forgetting", "seconds")
OWN: dict[str, Callable[[RunData], str | float | None]] = {
    "run": lambda run: run.label,
    "status": lambda run: run.status,
    "seconds": lambda run: run.seconds,
    "steps": lambda run: run.steps,
    "metric": lambda run: run.metric,
    "experiences": lambda run: len(run.matrix),
}


@dataclass(frozen=True)
class Clause:
    """One condition: a key, ``=``, ``!=``, ``<``, ``<=``, ``>``, ``>=`` or ``~`` (holds the text), and a value."""

    key: str
    sign: str
    value: str

    def holds(self, run: RunData) -> bool:
        """Whether a run meets it; one that has no such key meets only ``!=``."""
        found = lookup(run, self.key)
        if found is None:
            return self.sign == "!="
        if self.sign == "~":
            return self.value in str(found)
        number, wanted = _number(found), _number(self.value)
        if number is not None and wanted is not None:
            return _COMPARED[self.sign](number, wanted)
        if self.sign in ("=", "!="):
            return (str(found) == self.value) == (self.sign == "=")
        return _COMPARED[self.sign](str(found), self.value)


_COMPARED: dict[str, Callable[[float | str, float | str], bool]] = {
    "=": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
    "<": lambda a, b: a < b,  # type: ignore[operator]
    "<=": lambda a, b: a <= b,  # type: ignore[operator]
    ">": lambda a, b: a > b,  # type: ignore[operator]
    ">=": lambda a, b: a >= b,  # type: ignore[operator]
}


def clause(words: str) -> Clause:
    """Read one condition.

    Raises:
        UsageError: it is none.
    """
    match = _CLAUSE.fullmatch(words.strip())
    if match is None:
        raise UsageError(f"--where {words}: expected KEY=VALUE, or with !=, <, <=, >, >= or ~ (holds the text)")
    return Clause(match[1].strip(), match[2], match[3].strip())


def lookup(run: RunData, key: str) -> str | float | None:
    """What a run says under a key: of its own, a summary metric, or a dotted key of its configuration."""
    if key in OWN:
        return OWN[key](run)
    by_case = {name.lower(): name for name in run.summary}
    if key in run.summary or key.lower() in by_case:
        return run.summary[key if key in run.summary else by_case[key.lower()]]
    return value_of(run, key)


def check(runs: Sequence[RunData], keys: Sequence[str]) -> None:
    """Refuse keys that mean nothing to any of the runs.

    Raises:
        UsageError: no run has such a key, and it is no name that a run could have.
    """
    unknown = [key for key in keys if runs and all(lookup(run, key) is None for run in runs)]
    known = {*OWN, *SUMMARY, *(name for run in runs for name in (*run.summary, *flatten(run.config), *run.config))}
    problems = [f"no run has a '{key}'.{suggestion(key, known)}" for key in unknown if key not in known]
    if problems:
        raise UsageError(*problems)


def query(runs: Sequence[RunData], where: Sequence[str] = (), sort: str | None = None) -> list[RunData]:
    """The runs that meet all conditions, in order.

    Args:
        sort: a key; numbers go before text, the largest first (``-KEY``: the smallest first), unknown ones last.

    Raises:
        UsageError: a condition is none, or no run has such a key.
    """
    clauses = [clause(words) for words in where]
    keys = [c.key for c in clauses] + ([sort.removeprefix("-")] if sort else [])
    check(runs, keys)
    found = [run for run in runs if all(c.holds(run) for c in clauses)]
    if sort is None:
        return found
    key, up = sort.removeprefix("-"), sort.startswith("-")
    known_ones = [run for run in found if lookup(run, key) is not None]
    numbers = [run for run in known_ones if _number(lookup(run, key)) is not None]
    texts = [run for run in known_ones if _number(lookup(run, key)) is None]
    numbers.sort(key=lambda run: float(_number(lookup(run, key)) or 0.0), reverse=not up)
    texts.sort(key=lambda run: str(lookup(run, key)), reverse=up)
    return [*numbers, *texts, *(run for run in found if lookup(run, key) is None)]


def _number(value: object) -> float | None:
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
