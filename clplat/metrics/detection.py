"""Signal detection: how well a match is told from no match, whatever the readiness to say that it is one."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import NormalDist

from torch import Tensor

from clplat.metrics.measures import IGNORED


def counts(logits_NT2: Tensor, y_NT: Tensor) -> dict[str, int]:
    """Hits, misses, false alarms and correct rejections over the asked steps of binary tokens, 1 being the signal."""
    says_NT = logits_NT2.argmax(-1) == 1
    signal_NT, none_NT = y_NT == 1, (y_NT != 1) & (y_NT != IGNORED)
    return {
        "hits": int((says_NT & signal_NT).sum()),
        "misses": int((~says_NT & signal_NT).sum()),
        "false_alarms": int((says_NT & none_NT).sum()),
        "rejections": int((~says_NT & none_NT).sum()),
    }


def sensitivity(hits: int, misses: int, false_alarms: int, rejections: int) -> float:
    """d' = z(H) - z(F), the distance between signal and noise in standard deviations (Green and Swets 1966).

    z is the inverse of the normal distribution function, H = hits / signals, F = false alarms / others. A rate of 0 or
    1, where z is infinite, counts as half a trial: rates are held within [1/2n, 1 - 1/2n] for n trials of their kind
    (Macmillan and Kaplan 1985), so that the largest d' grows with the number of trials.
    """
    signals, others = hits + misses, false_alarms + rejections
    if not signals or not others:
        raise ValueError(f"{signals} signals and {others} other trials: both are needed")

    def z(found: int, of: int) -> float:
        return NormalDist().inv_cdf(min(max(found / of, 1 / (2 * of)), 1 - 1 / (2 * of)))

    return z(hits, signals) - z(false_alarms, others)


def capacity(reached: Mapping[int, float], threshold: float = 1.0) -> int:
    """The largest n up to which everything is above the threshold, 0 if not even the smallest is; d' of 1 is where
    Gong et al. 2024 (arXiv 2305.03731) put the limit.

    Args:
        reached: d' (or an accuracy) for each n.
    """
    largest = 0
    for n in sorted(reached):
        if reached[n] <= threshold:
            break
        largest = n
    return largest
