"""Samples for probes: drawn by the run's seed, on its device, in batches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from clplat.scenario import TensorData

if TYPE_CHECKING:
    from clplat.learner import Learner

BATCH = 128


def draw(learner: Learner, data: TensorData, samples: int, purpose: str, *numbers: int) -> TensorData:
    """Up to ``samples`` different samples, in the order of the data, always the same ones for a seed and purpose."""
    order = torch.randperm(len(data), generator=learner.generator(purpose, *numbers))
    chosen = data.subset(order[:samples].sort().values)
    return chosen.to(learner.ranks.device, next(learner.parameters()).dtype)


def batches(data: TensorData, size: int = BATCH) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """x, y and task, ``size`` samples at a time."""
    for start in range(0, len(data), size):
        yield data.rows(slice(start, start + size))
