"""What a few seeds say: means with confidence intervals, paired differences with a permutation test, mean ranks."""

from __future__ import annotations

import itertools
import math
import random
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

EXACT_UP_TO = 16  # pairs: 2^16 sign patterns; beyond that patterns are drawn
DRAWS = 100_000


@dataclass(frozen=True)
class Estimate:
    """A mean and how far it can be trusted.

    Args:
        mean: over n values.
        half: half of the 95% confidence interval; None for one value.
        n: how many.
    """

    mean: float
    half: float | None
    n: int


def estimate(values: Sequence[float], level: float = 0.95) -> Estimate:
    """Mean and Student's interval ``t(n - 1) s / sqrt(n)``, which holds for few values if they are roughly normal.

    Raises:
        ValueError: there is no value.
    """
    if not values:
        raise ValueError("no value")
    n = len(values)
    if n == 1:
        return Estimate(values[0], None, 1)
    from scipy.special import stdtrit  # scipy.stats has the same and takes ten times as long to import

    half = float(stdtrit(n - 1, (1 + level) / 2)) * statistics.stdev(values) / math.sqrt(n)
    return Estimate(statistics.fmean(values), half, n)


def sign_flip(differences: Sequence[float]) -> float:
    """Two-sided p-value of the paired permutation test: the share of sign patterns of the differences whose absolute
    mean is at least the observed one (Fisher's randomisation test). All patterns up to 16 pairs, else 100,000 that are
    drawn, of which the observed one is counted as one more.

    With n pairs it cannot be below ``2^(1 - n)``: five seeds say at best 0.0625.
    """
    if not differences:
        raise ValueError("no pair")
    observed = abs(math.fsum(differences)) * (1 - 1e-12)  # equal sums may differ in their last digit
    if len(differences) <= EXACT_UP_TO:
        # a pattern and its opposite have the same absolute sum, so the first sign can stay
        first, *rest = differences
        patterns = itertools.product((1, -1), repeat=len(rest))
        sums = [abs(math.fsum([first, *(s * d for s, d in zip(signs, rest, strict=True))])) for signs in patterns]
        return sum(value >= observed for value in sums) / len(sums)
    drawing = random.Random(0)
    more = sum(
        abs(math.fsum(d if drawing.random() < 0.5 else -d for d in differences)) >= observed for _ in range(DRAWS)
    )
    return (more + 1) / (DRAWS + 1)


def holm(p: Sequence[float]) -> list[float]:
    """p-values adjusted for that many comparisons (Holm 1979), in the same order."""
    order = sorted(range(len(p)), key=p.__getitem__)
    adjusted, running = [0.0] * len(p), 0.0
    for place, index in enumerate(order):
        running = max(running, min(1.0, (len(p) - place) * p[index]))
        adjusted[index] = running
    return adjusted


def mean_ranks(blocks: Sequence[Mapping[str, float]], larger_is_better: bool) -> dict[str, float]:
    """The mean rank of each name over the blocks (seeds, scenarios, ...) in which all names have a value: 1 is best,
    equal ones share the mean of their ranks. Empty where no block has all."""
    names = sorted({name for block in blocks for name in block})
    whole = [block for block in blocks if all(name in block for name in names)]
    if not whole:
        return {}
    totals = dict.fromkeys(names, 0.0)
    for block in whole:
        for name in names:
            better = sum((block[o] > block[name]) if larger_is_better else (block[o] < block[name]) for o in names)
            equal = sum(block[o] == block[name] for o in names)
            totals[name] += better + (equal + 1) / 2
    return {name: total / len(whole) for name, total in totals.items()}
