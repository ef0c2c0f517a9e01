"""When something counts as learned: what is measured on training batches has reached a value."""

from __future__ import annotations

from torch import Tensor


class Criterion:
    """The first measure of what is predicted, on the samples of training batches, averaged over the last steps.

    Sums of whole numbers are kept, so that ranks agree and a run that goes on knows as much as one that was never
    stopped; the average weighs samples, not steps. Where several things are measured (the outputs of bits), each
    that was asked for in the window must reach the value.

    Args:
        value: that is to be reached.
        window: steps; with fewer nothing is reached.
        smaller: less is better.

    Attributes:
        recent: the sums of each step in the window, numerators and then denominators; plain, for checkpoints.
    """

    def __init__(self, value: float, window: int, *, smaller: bool = False) -> None:
        self.value, self.window, self.smaller = value, window, smaller
        self.recent: list[list[float]] = []

    def take(self, parts: Tensor, micro: int) -> None:
        """Add the sums of a batch.

        Args:
            parts: over all ranks, numerators and denominators, (2,) or (2, K).
            micro: number of the batch within its step.
        """
        found = parts.flatten().tolist()
        if micro:
            found = [a + b for a, b in zip(self.recent.pop(), found, strict=True)]
        self.recent = [*self.recent, found][-self.window :]

    @property
    def reached(self) -> bool:
        if len(self.recent) < self.window:
            return False
        sums = [sum(column) for column in zip(*self.recent, strict=True)]
        pairs = zip(sums[: len(sums) // 2], sums[len(sums) // 2 :], strict=True)
        asked = [of / over for of, over in pairs if over]
        return bool(asked) and all(v <= self.value if self.smaller else v >= self.value for v in asked)
