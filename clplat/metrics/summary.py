"""What is derived from the matrix ``R[i, j]``: the primary metric after experience i, on experience j (from 0 to n-1).

Where authors differ the docstrings say which definition this is. For a metric that is better when smaller the signs of
the differences are turned, so that a positive forgetting always means something was lost and a positive transfer always
means something was gained.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Literal

Row = Sequence[float | None]
Matrix = Sequence[Row]
Direction = Literal["max", "min"]


class NotMeasuredError(ValueError):
    """A metric needs an entry that was not evaluated, or does not exist for so few experiences."""


def _get(R: Matrix, i: int, j: int) -> float:
    value = R[i][j] if i < len(R) and j < len(R[i]) else None
    if value is None:
        raise NotMeasuredError(f"R[{i}, {j}] was not measured")
    return value


def _mean(values: list[float], what: str) -> float:
    if not values:
        raise NotMeasuredError(what)
    return sum(values) / len(values)


def average_of(row: Row, which: Collection[int]) -> float | None:
    """The mean of some entries of a row, as far as they were measured; None where none was."""
    known = [value for j, value in enumerate(row) if j in which and value is not None]
    return sum(known) / len(known) if known else None


def _tested(R: Matrix, tested: Sequence[int] | None) -> Sequence[int]:
    return range(len(R)) if tested is None else tested[: len(R)]


def _before(R: Matrix, tested: Sequence[int] | None) -> list[tuple[int, int, int]]:
    """What was learned before the last experience, and is not what the last one taught: (j, the row in which it was
    learned first, the row in which it was learned last)."""
    tested = _tested(R, tested)
    first = {j: i for i, j in reversed(list(enumerate(tested)))}
    last = {j: i for i, j in enumerate(tested)}
    return [(j, first[j], last[j]) for j in sorted(first) if last[j] < len(R) - 1]


def average(R: Matrix, tested: Sequence[int] | None = None) -> float:
    """ACC: ``1/n sum_j R[n-1, j]`` (Lopez-Paz and Ranzato 2017, eq. 2), over what has been learned."""
    return _mean([_get(R, len(R) - 1, j) for j in sorted(set(_tested(R, tested)))], "there is no experience")


def average_incremental(R: Matrix, tested: Sequence[int] | None = None) -> float:
    """Mean over k of ``1/(k+1) sum_{j<=k} R[k, j]`` (Rebuffi et al. 2017, "average incremental accuracy")."""
    tested = _tested(R, tested)
    rows = [
        _mean([_get(R, k, j) for j in sorted(set(tested[: k + 1]))], "there is no experience") for k in range(len(R))
    ]
    return _mean(rows, "there is no experience")


def forgetting(R: Matrix, direction: Direction = "max", tested: Sequence[int] | None = None) -> float:
    """``1/(n-1) sum_{j<n-1} (best_{j<=i<n-1} R[i, j] - R[n-1, j])`` (Chaudhry et al. 2018, eq. 3, with the maximum over
    the experiences from j on: what was known of j before it was seen cannot be forgotten). Where tasks return, from the
    first time that j was learned on."""
    n, sign = len(R), 1 if direction == "max" else -1
    lost = [
        max(sign * _get(R, i, j) for i in range(first, n - 1)) - sign * _get(R, n - 1, j)
        for j, first, _ in _before(R, tested)
    ]
    return _mean(lost, "forgetting needs two experiences")


def backward_transfer(R: Matrix, direction: Direction = "max", tested: Sequence[int] | None = None) -> float:
    """BWT: ``1/(n-1) sum_{j<n-1} (R[n-1, j] - R[j, j])`` (Lopez-Paz and Ranzato 2017, eq. 3). Where tasks return, since
    the last time that j was learned."""
    n, sign = len(R), 1 if direction == "max" else -1
    changes = [sign * (_get(R, n - 1, j) - _get(R, last, j)) for j, _, last in _before(R, tested)]
    return _mean(changes, "backward transfer needs two experiences")


def forward_transfer(
    R: Matrix, baseline: Row, direction: Direction = "max", tested: Sequence[int] | None = None
) -> float:
    """FWT: ``1/(n-1) sum_{j>0} (R[j-1, j] - b[j])`` with b measured on this run's untrained network
    (Lopez-Paz and Ranzato 2017, eq. 4): what was known of j just before it was learned for the first time."""
    tested, sign = _tested(R, tested), 1 if direction == "max" else -1
    first = {j: i for i, j in reversed(list(enumerate(tested)))}
    gains = [sign * (_get(R, i - 1, j) - _get([baseline], 0, j)) for j, i in sorted(first.items()) if i > 0]
    return _mean(gains, "forward transfer needs two experiences")


def learning_accuracy(R: Matrix, tested: Sequence[int] | None = None) -> float:
    """``1/n sum_j R[j, j]`` (Riemer et al. 2019): how well each experience was learned when it came."""
    return _mean([_get(R, i, j) for i, j in enumerate(_tested(R, tested))], "there is no experience")


def minimum(R: Matrix, lowest: Row, tested: Sequence[int] | None = None) -> float:
    """min-ACC: ``1/(n-1) sum_{j<n-1} worst_t A_t(j)`` over all evaluations t after experience j was learned,
    those inside later experiences included (De Lange et al. 2023, eq. 2)."""
    before = _before(R, tested)
    if not before:
        raise NotMeasuredError("min-ACC needs two experiences")
    return _mean([_get([lowest], 0, j) for j, _, _ in before], "min-ACC needs eval.every > 0")


def worst_case(R: Matrix, lowest: Row, tested: Sequence[int] | None = None) -> float:
    """WC-ACC: ``1/n R[n-1, n-1] + (1 - 1/n) min-ACC`` (De Lange et al. 2023, eq. 3): what can be relied on."""
    n, last = len(_before(R, tested)) + 1, _tested(R, tested)[-1]
    return _get(R, len(R) - 1, last) / n + (1 - 1 / n) * minimum(R, lowest, tested)


def summary(
    R: Matrix,
    baseline: Row,
    direction: Direction = "max",
    lowest: Row | None = None,
    tested: Sequence[int] | None = None,
) -> tuple[dict[str, float | None], dict[str, str]]:
    """All summary metrics by name, and for each that is None the reason.

    Args:
        lowest: the worst value of each experience since it was learned, where it was watched (``eval.every``).
        tested: the test experience that belongs to each training experience; None: the one at the same position.
    """

    def watched() -> Row:
        if lowest is None:
            raise NotMeasuredError("needs eval.every > 0")
        return lowest

    makers: dict[str, Callable[[], float]] = {
        "ACC": lambda: average(R, tested),
        "forgetting": lambda: forgetting(R, direction, tested),
        "BWT": lambda: backward_transfer(R, direction, tested),
        "FWT": lambda: forward_transfer(R, baseline, direction, tested),
        "learning_accuracy": lambda: learning_accuracy(R, tested),
        "average_incremental": lambda: average_incremental(R, tested),
        "min_ACC": lambda: minimum(R, watched(), tested),
        "WC_ACC": lambda: worst_case(R, watched(), tested),
    }
    values: dict[str, float | None] = {}
    reasons: dict[str, str] = {}
    for name, make in makers.items():
        try:
            values[name] = make()
        except NotMeasuredError as reason:
            values[name], reasons[name] = None, str(reason)
    return values, reasons
