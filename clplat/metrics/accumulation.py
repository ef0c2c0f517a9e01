"""Whether knowledge accumulates over a long stream: read from one accuracy after each task (SCoLe, Lesort et al. 2023).

The definitions are ours: the paper shows the curve, accuracy over all classes against the number of tasks.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence


def accumulation(curve: Sequence[float], first: int = 20, last: int = 50) -> float:
    """Mean of the last values less the mean of the first: how much more is known at the end than at the start."""
    if not 0 < first <= len(curve) or not 0 < last <= len(curve):
        raise ValueError(f"a curve of {len(curve)} values has no first {first} and last {last}")
    return sum(curve[-last:]) / last - sum(curve[:first]) / first


def area(curve: Sequence[float]) -> float:
    """Area under the curve, over its length: the mean value."""
    return sum(curve) / len(curve)


def recency(right: Sequence[bool], labels: Sequence[int], recent: Collection[int]) -> float:
    """Accuracy on the classes of the last task less the accuracy on all others.

    Args:
        right: whether each test sample was answered rightly.
        labels: their classes.
        recent: the classes of the last task.
    """
    split: dict[bool, list[bool]] = {True: [], False: []}
    for answer, label in zip(right, labels, strict=True):
        split[label in recent].append(answer)
    if not split[True] or not split[False]:
        raise ValueError("recency needs test samples of the last task's classes and of others")
    return sum(split[True]) / len(split[True]) - sum(split[False]) / len(split[False])
