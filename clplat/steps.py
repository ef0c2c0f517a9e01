"""The step stream of one phase: all its optimiser steps in order, over all its epochs.

For Lightning one phase is one epoch over this stream; the data's own epochs live inside it, so that there is a single
position to save and nothing happens at an epoch's end that a resumed run would miss.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import torch
from torch import Tensor

from clplat import lanes
from clplat.batch import Batch, Part
from clplat.criterion import Criterion
from clplat.randomness import generator
from clplat.ranks import Ranks
from clplat.scenario import Experience, TensorData
from clplat.settings import TrainerSettings
from clplat.strategy import Phase


class Steps:
    """Yields ranges (start, stop) of positions, ``trainer.dispatch`` at a time, from ``position`` on.

    Args:
        phase: what is trained.
        number: the phase's place in its experience; the order of samples depends on it.
        experience: which experience.
        data: the samples, on this rank's device.
        settings: batch size, epochs, accumulation.
        seed: of the run.
        position: steps done already.
        in_lanes: where samples go on from one another; None takes them in random order.
        criterion: when the phase is over before its last step; None goes to the end.
    """

    def __init__(
        self,
        phase: Phase,
        number: int,
        experience: Experience,
        data: TensorData,
        settings: TrainerSettings,
        seed: int,
        position: int = 0,
        in_lanes: lanes.Lanes | None = None,
        criterion: Criterion | None = None,
    ) -> None:
        self.phase, self.number, self.experience, self.data = phase, number, experience, data
        self.settings, self.seed, self.position, self.lanes = settings, seed, position, in_lanes
        self.criterion = criterion
        batches = -(-len(data) // settings.batch_size)
        self.steps_per_epoch = -(-batches // settings.accumulate)
        self.epochs = settings.max_epochs if phase.epochs is None else phase.epochs
        self.total = self.steps_per_epoch * self.epochs
        self._order = lru_cache(maxsize=1)(self._draw_order)

    def samples(self, position: int) -> int:
        """Samples that the first ``position`` steps take, over all epochs."""
        epochs, within = divmod(position, self.steps_per_epoch)
        taken = within * self.settings.accumulate * self.settings.batch_size
        return epochs * len(self.data) + min(taken, len(self.data))

    @property
    def over(self) -> bool:
        """Whether no step is to come: all are done, or the criterion is reached."""
        return self.position >= self.total or (self.criterion is not None and self.criterion.reached)

    def __len__(self) -> int:
        return -(-(self.total - self.position) // self.settings.dispatch)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        # From where the phase stands when Lightning asks, not from where it stood: its sanity checks may ask twice.
        for start in range(self.position, self.total, self.settings.dispatch):
            if self.over:
                return
            yield start, min(start + self.settings.dispatch, self.total)

    def _draw_order(self, epoch: int) -> Tensor:
        if self.lanes is not None:
            return lanes.order(len(self.data), self.lanes.lanes)
        numbers = (self.experience.current_experience, self.number, epoch)
        return torch.randperm(len(self.data), generator=generator(self.seed, "order", *numbers))

    def batches(self, position: int, step: int, ranks: Ranks) -> list[Batch]:
        """The micro-batches of one optimiser step: this rank's rows of each global batch."""
        epoch, within = divmod(position, self.steps_per_epoch)
        order = self._order(epoch)
        size, accumulate = self.settings.batch_size, self.settings.accumulate
        if self.lanes is not None and within == 0:
            self.lanes.state = None
        found = []
        for micro in range(accumulate):
            first = (within * accumulate + micro) * size
            if first >= len(order):
                break
            index = order[first : first + size]
            local = ranks.part(len(index)) if self.lanes is None else self.lanes.local(len(index))
            x, y, task = self.data.rows(index[local])
            part = Part("stream", x, y, task, index, local)
            number = self.experience.current_experience
            found.append(Batch([part], experience=number, epoch=epoch, step=step, micro=micro))
        return found
