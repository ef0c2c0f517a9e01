"""What is derived from evaluations between optimiser steps (``eval.every``): the dips that ends of experiences hide.

``A_t(j)`` is the primary metric on test experience j at evaluation t, where the ends of experiences count as
evaluations. Names of experiences are as in :mod:`clplat.metrics.matrix`; where smaller is better the worst is the
largest, and differences have their signs turned.
"""

from __future__ import annotations

from clplat.errors import UsageError
from clplat.metrics.evidence import Evidence, NotMeasuredError, Row, mean


def _value(row: Row, j: int) -> float | None:
    return row[j] if j < len(row) else None


def _worst(run: Evidence) -> dict[int, float]:
    """For each test experience that was seen the worst value of :meth:`Evidence.good` since it was."""
    found: dict[int, float] = {}
    ended = -1
    for i, row in run.evaluations():
        if row is run.matrix[i]:
            ended = i
        for j, f in run.first.items():
            value = _value(row, j)
            if f <= ended and value is not None:
                found[j] = min(found.get(j, run.sign * value), run.sign * value)
    return found


def minimum(run: Evidence) -> float:
    """min-ACC: mean over the earlier j of ``worst_t A_t(j)`` over all evaluations t since j was first seen (De Lange et
    al. 2023, eq. 2)."""
    worst = _worst(run)
    for j in run.earlier:
        if j not in worst:
            raise NotMeasuredError(f"experience {j} was not evaluated since it was learned")
    return run.sign * mean([worst[j] for j in run.earlier], "min-ACC needs two experiences")


def worst_case(run: Evidence) -> float:
    """WC-ACC: ``1/m R[n-1, t(n-1)] + (1 - 1/m) min-ACC`` with m experiences seen: what can be relied on (De Lange et
    al. 2023, eq. 3)."""
    lowest, m = minimum(run), len(run.seen)
    return run.at(run.n - 1, run.test(run.n - 1)) / m + (1 - 1 / m) * lowest


def average_anytime(run: Evidence) -> float:
    """AAA: mean over all evaluations t of the mean of ``A_t(j)`` over the experiences that have begun by t (Caccia et
    al. 2022, "average anytime accuracy"). Every evaluation counts alike, those at the ends of experiences as well.
    """
    averages = []
    for i, row in run.evaluations():
        values = [_value(row, j) for j, f in run.first.items() if f <= i]
        if any(value is None for value in values):
            raise NotMeasuredError(f"not all experiences so far were evaluated within experience {i}")
        averages.append(mean([value for value in values if value is not None], "there is no experience"))
    return mean(averages, "there is no experience")


def stability_gap(run: Evidence) -> float:
    """Stability gap: mean over i > 0 and the j seen before i (but t(i)) of
    ``max(0, min(R[i-1, j], R[i, j]) - worst_{t in i} A_t(j))``: how far j falls while i is trained below both where it
    was before and where it is after, that is, what comes back by itself. The effect is that of De Lange et al. 2023,
    who draw it and give no formula."""
    lowest: dict[tuple[int, int], float] = {}
    for i, row in run.evaluations():
        for j, f in run.first.items():
            value = _value(row, j)
            if f < i and j != run.test(i) and value is not None:
                lowest[i, j] = min(lowest.get((i, j), run.sign * value), run.sign * value)
    gaps = [max(0.0, min(run.good(i - 1, j), run.good(i, j)) - value) for (i, j), value in lowest.items()]
    return mean(gaps, "the stability gap needs two experiences")


def windowed_forgetting(run: Evidence, *, window: int = 10) -> float:
    """WF: mean over the earlier j of the largest ``A_s(j) - A_t(j)`` with s before t among ``window`` evaluations in a
    row, since j was first seen: the worst fall within a short time (De Lange et al. 2023, section 3, "windowed
    forgetting"; they evaluate after each step and take windows of 10 and 100).

    Args:
        window: evaluations.
    """
    if window < 2:
        raise UsageError(f"windowed_forgetting: window={window}: a fall needs at least 2 evaluations")
    series: dict[int, list[float]] = {j: [] for j in run.earlier}
    ended = -1
    for i, row in run.evaluations():
        if row is run.matrix[i]:
            ended = i
        for j, values in series.items():
            value = _value(row, j)
            if run.first[j] <= ended and value is not None:
                values.append(run.sign * value)
    falls = [
        max(max(values[max(0, t - window + 1) : t + 1]) - values[t] for t in range(len(values)))
        for values in series.values()
        if values
    ]
    return mean(falls, "windowed forgetting needs two experiences")
