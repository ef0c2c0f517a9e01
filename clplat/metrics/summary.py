"""What is derived from the matrix ``R[i, j]``: the primary metric after experience i, on experience j (from 0 to n-1).

Where authors differ the docstrings say which definition this is. For a metric that is better when smaller the signs of
the differences are turned, so that a positive forgetting always means something was lost and a positive transfer always
means something was gained.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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


def average(R: Matrix) -> float:
    """ACC: ``1/n sum_j R[n-1, j]`` (Lopez-Paz and Ranzato 2017, eq. 2)."""
    n = len(R)
    return _mean([_get(R, n - 1, j) for j in range(n)], "there is no experience")


def average_incremental(R: Matrix) -> float:
    """Mean over k of ``1/(k+1) sum_{j<=k} R[k, j]`` (Rebuffi et al. 2017, "average incremental accuracy")."""
    rows = [_mean([_get(R, k, j) for j in range(k + 1)], "there is no experience") for k in range(len(R))]
    return _mean(rows, "there is no experience")


def forgetting(R: Matrix, direction: Direction = "max") -> float:
    """``1/(n-1) sum_{j<n-1} (best_{j<=i<n-1} R[i, j] - R[n-1, j])`` (Chaudhry et al. 2018, eq. 3, with the maximum over
    the experiences from j on: what was known of j before it was seen cannot be forgotten)."""
    n, sign = len(R), 1 if direction == "max" else -1
    lost = [max(sign * _get(R, i, j) for i in range(j, n - 1)) - sign * _get(R, n - 1, j) for j in range(n - 1)]
    return _mean(lost, "forgetting needs two experiences")


def backward_transfer(R: Matrix, direction: Direction = "max") -> float:
    """BWT: ``1/(n-1) sum_{j<n-1} (R[n-1, j] - R[j, j])`` (Lopez-Paz and Ranzato 2017, eq. 3)."""
    n, sign = len(R), 1 if direction == "max" else -1
    return _mean(
        [sign * (_get(R, n - 1, j) - _get(R, j, j)) for j in range(n - 1)], "backward transfer needs two experiences"
    )


def forward_transfer(R: Matrix, baseline: Row, direction: Direction = "max") -> float:
    """FWT: ``1/(n-1) sum_{j>0} (R[j-1, j] - b[j])`` with b measured on this run's untrained network
    (Lopez-Paz and Ranzato 2017, eq. 4)."""
    n, sign = len(R), 1 if direction == "max" else -1
    return _mean(
        [sign * (_get(R, j - 1, j) - _get([baseline], 0, j)) for j in range(1, n)],
        "forward transfer needs two experiences",
    )


def learning_accuracy(R: Matrix) -> float:
    """``1/n sum_j R[j, j]`` (Riemer et al. 2019): how well each experience was learned when it came."""
    return _mean([_get(R, j, j) for j in range(len(R))], "there is no experience")


def minimum(R: Matrix, lowest: Row) -> float:
    """min-ACC: ``1/(n-1) sum_{j<n-1} worst_t A_t(j)`` over all evaluations t after experience j was learned,
    those inside later experiences included (De Lange et al. 2023, eq. 2)."""
    if len(R) < 2:
        raise NotMeasuredError("min-ACC needs two experiences")
    return _mean([_get([lowest], 0, j) for j in range(len(R) - 1)], "min-ACC needs eval.every > 0")


def worst_case(R: Matrix, lowest: Row) -> float:
    """WC-ACC: ``1/n R[n-1, n-1] + (1 - 1/n) min-ACC`` (De Lange et al. 2023, eq. 3): what can be relied on."""
    n = len(R)
    return _get(R, n - 1, n - 1) / n + (1 - 1 / n) * minimum(R, lowest)


def summary(
    R: Matrix, baseline: Row, direction: Direction = "max", lowest: Row | None = None
) -> tuple[dict[str, float | None], dict[str, str]]:
    """All summary metrics by name, and for each that is None the reason.

    Args:
        lowest: the worst value of each experience since it was learned, where it was watched (``eval.every``).
    """

    def watched() -> Row:
        if lowest is None:
            raise NotMeasuredError("needs eval.every > 0")
        return lowest

    makers: dict[str, Callable[[], float]] = {
        "ACC": lambda: average(R),
        "forgetting": lambda: forgetting(R, direction),
        "BWT": lambda: backward_transfer(R, direction),
        "FWT": lambda: forward_transfer(R, baseline, direction),
        "learning_accuracy": lambda: learning_accuracy(R),
        "average_incremental": lambda: average_incremental(R),
        "min_ACC": lambda: minimum(R, watched()),
        "WC_ACC": lambda: worst_case(R, watched()),
    }
    values: dict[str, float | None] = {}
    reasons: dict[str, str] = {}
    for name, make in makers.items():
        try:
            values[name] = make()
        except NotMeasuredError as reason:
            values[name], reasons[name] = None, str(reason)
    return values, reasons
