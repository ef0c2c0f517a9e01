"""Streams in which tasks come back: what was shown follows the law, by a test of its own reckoning."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from typing import Any

import pytest
from scipy.stats import chisquare

from clplat.errors import UsageError
from clplat.recurrence import visits, weight

TASKS, VISITS = 8, 4000


def expected_and_seen(order: tuple[int, ...], rate: Any) -> tuple[list[float], list[int]]:
    """By lag: how often a task should have come back by the law, given what was shown before, and how often one did.

    Args:
        rate: weight of (task, lag).
    """
    last: dict[int, int] = {}
    expected: dict[int, float] = defaultdict(float)
    seen: Counter[int] = Counter()
    for i, task in enumerate(order):
        if task in last:  # not an introduction
            rates = {j: rate(j, i - when) for j, when in last.items()}
            for j, when in last.items():
                expected[min(i - when, 30)] += rates[j] / sum(rates.values())
            seen[min(i - last[task], 30)] += 1
        last[task] = i
    lags = [lag for lag in sorted(expected) if expected[lag] >= 5]
    rest = [sum(counts[lag] for lag in counts if lag not in lags) for counts in (expected, seen)]
    found = [*(expected[lag] for lag in lags), rest[0]], [*(seen[lag] for lag in lags), int(rest[1])]
    return found if rest[0] > 1 else (found[0][:-1], found[1][:-1])


RATES = {
    "power": lambda task, lag: (2 + lag) ** -1.5,
    "exponential": lambda task, lag: math.exp(-lag / 12),
    "uniform": lambda task, lag: 1.0,
}


@pytest.mark.parametrize("law", list(RATES))
@pytest.mark.parametrize("introduce", ["spread", "first"])
def test_returns_follow_the_law_and_no_other(law: Any, introduce: Any) -> None:
    order = visits(TASKS, VISITS, law, 1, exponent=1.5, offset=2, decay=12, introduce=introduce)
    for other, rate in RATES.items():
        expected, seen = expected_and_seen(order, rate)
        assert sum(seen) == VISITS - TASKS
        scaled = [value * sum(seen) / sum(expected) for value in expected]
        p = chisquare(seen, scaled).pvalue
        assert (p > 0.01) if other == law else (p < 1e-6)


def test_zipf_goes_by_a_rank_of_the_task() -> None:
    order = visits(TASKS, VISITS, "zipf", 3, exponent=1.0, introduce="first")
    counts = sorted(Counter(order[TASKS:]).values(), reverse=True)
    whole = sum(1 / r for r in range(1, TASKS + 1))
    expected = [(VISITS - TASKS) / r / whole for r in range(1, TASKS + 1)]
    assert chisquare(counts, expected).pvalue > 0.01
    most = {Counter(visits(TASKS, VISITS, "zipf", seed)).most_common(1)[0][0] for seed in range(12)}
    assert len(most) > 3  # the order of ranks is the seed's


def test_cycles_go_round() -> None:
    assert visits(4, 10, "cyclic", 0, introduce="first") == (0, 1, 2, 3, 0, 1, 2, 3, 0, 1)
    assert visits(2, 6, "cyclic", 0) == (0, 0, 0, 1, 0, 1)
    assert visits(3, 7, "none", 0) == (0, 0, 1, 1, 2, 2, 2)


@pytest.mark.parametrize("law", ["power", "exponential", "uniform", "zipf", "cyclic"])
@pytest.mark.parametrize(("tasks", "n"), [(1, 1), (5, 5), (7, 30), (3, 100)])
def test_tasks_are_introduced_in_order_and_when_it_is_said(law: Any, tasks: int, n: int) -> None:
    for introduce in ("spread", "first"):
        order = visits(tasks, n, law, 5, introduce=introduce)  # type: ignore[arg-type]
        assert len(order) == n
        first = [order.index(j) for j in range(tasks)]
        assert first == [j if introduce == "first" else j * n // tasks for j in range(tasks)]
        assert order == visits(tasks, n, law, 5, introduce=introduce)  # type: ignore[arg-type]
    assert (n <= tasks) or law == "cyclic" or tasks == 1 or order != visits(tasks, n, law, 6, introduce="first")


def test_weights_fall_as_they_should() -> None:
    assert weight("power", 3, exponent=2, offset=1) == 1 / 16
    assert weight("exponential", 2, decay=2) == math.exp(-1)
    assert weight("uniform", 99) == 1


def test_a_task_needs_a_visit() -> None:
    with pytest.raises(UsageError, match="visits=2: each of the 3"):
        visits(3, 2, "power", 0)
