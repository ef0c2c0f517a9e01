"""A batch: the rows of one training step that this rank holds, from one or more sources."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from clplat.randomness import Rows


def part(n: int, rank: int, world: int) -> slice:
    """The rows of a global batch of ``n`` that ``rank`` of ``world`` holds: consecutive, uneven, possibly none."""
    return slice(n * rank // world, n * (rank + 1) // world)


@dataclass
class Part:
    """The rows that come from one source.

    Args:
        source: ``stream`` for the experience's own data, else a name of the strategy's choice.
        x, y, task: this rank's rows.
        index: (n_global,) positions of ALL rows of the global batch in the source, in global order.
        local: which of the global rows these are.
        weight: the weight of this source's mean in the loss.
    """

    source: str
    x: Tensor
    y: Tensor
    task: Tensor
    index: Tensor
    local: slice
    weight: float = 1.0

    @property
    def n_global(self) -> int:
        return len(self.index)


class Batch:
    """Parts from several sources, run through the network in one go: first all rows of the first part, and so on.

    Attributes:
        parts: the sources in order.
        experience, epoch, step: where in the run we are; ``step`` counts optimiser steps over the whole run.
        micro: number of this micro-batch within the step (0 unless gradients are accumulated).
    """

    def __init__(self, parts: list[Part], *, experience: int, epoch: int, step: int, micro: int = 0) -> None:
        self.parts, self.experience, self.epoch, self.step, self.micro = parts, experience, epoch, step, micro

    def with_part(self, added: Part, stream_weight: float) -> Batch:
        """This batch and one more source; the weights of the sources so far are multiplied by ``stream_weight``."""
        parts = [Part(p.source, p.x, p.y, p.task, p.index, p.local, p.weight * stream_weight) for p in self.parts]
        return Batch([*parts, added], experience=self.experience, epoch=self.epoch, step=self.step, micro=self.micro)

    def __getitem__(self, source: str) -> Part:
        for p in self.parts:
            if p.source == source:
                return p
        raise KeyError(source)

    def __contains__(self, source: str) -> bool:
        return any(p.source == source for p in self.parts)

    def __len__(self) -> int:
        return sum(len(p.x) for p in self.parts)

    @cached_property
    def x(self) -> Tensor:
        return self.parts[0].x if len(self.parts) == 1 else torch.cat([p.x for p in self.parts])

    @cached_property
    def y(self) -> Tensor:
        return self.parts[0].y if len(self.parts) == 1 else torch.cat([p.y for p in self.parts])

    @cached_property
    def task(self) -> Tensor:
        return self.parts[0].task if len(self.parts) == 1 else torch.cat([p.task for p in self.parts])

    @property
    def rows(self) -> Rows:
        """Where the local rows lie in the global batch, for noise that is drawn for all and sliced."""
        return Rows([(p.n_global, p.local.start, p.local.stop) for p in self.parts])

    def spans(self) -> Iterator[tuple[Part, slice]]:
        """Each part with the slice of the concatenated rows that it fills."""
        start = 0
        for p in self.parts:
            yield p, slice(start, start + len(p.x))
            start += len(p.x)

    def of(self, source: str, values: Tensor) -> Tensor:
        """The rows of ``values`` (n_local, ...) that belong to a source."""
        for p, span in self.spans():
            if p.source == source:
                return values[span]
        raise KeyError(source)

    def on(self, source: str, values: Tensor) -> Tensor:
        """A term that concerns one source alone: a vector (n_local,) whose global mean is that of ``values``.

        Args:
            source: which part.
            values: one value for each of the part's local rows.
        """
        return torch.cat([values / p.weight if p.source == source else values.new_zeros(len(p.x)) for p in self.parts])

    def reduce(self, values: Tensor) -> Tensor:
        """This rank's share of the global mean of per-sample values: ``sum_s weight_s / n_s * sum of its rows``.

        Summed over ranks it is the weighted sum of the sources' means.
        """
        if len(self.parts) == 1:
            return values.sum() * (self.parts[0].weight / self.parts[0].n_global)
        return torch.stack([values[span].sum() * (p.weight / p.n_global) for p, span in self.spans()]).sum()
