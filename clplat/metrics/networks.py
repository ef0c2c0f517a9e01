"""What metrics ask of a run's networks at the ends of its experiences, wherever these come from."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from clplat.learner import Learner
from clplat.metrics.evidence import NotMeasuredError
from clplat.scenario import TensorData

if TYPE_CHECKING:
    from clplat.loop import Run

BATCH = 256


class Networks:
    """The networks of a run. All of these raise :class:`NotMeasuredError` for what is not at hand."""

    def features(self, i: int, j: int) -> Tensor:
        """Features (N, D) of test experience j at the end of train experience i; steps count as samples."""
        raise TypeError(f"{type(self).__name__} does not define features")

    def head(self, i: int) -> dict[str, Tensor]:
        """The parameters of the head at the end of train experience i."""
        raise TypeError(f"{type(self).__name__} does not define head")

    def gradient(self, i: int, of: int, samples: int) -> Tensor:
        """The gradient of the mean loss on the first samples of train experience ``of``, at the end of i, flat."""
        raise TypeError(f"{type(self).__name__} does not define gradient")

    def fresh(self) -> Run:
        """The run as it stood before it began; it writes nothing."""
        raise NotMeasuredError("needs the run from its beginning: clplat metrics RUN --add NAME makes it again")


def features_of(learner: Learner, data: TensorData) -> Tensor:
    """Features (N, D) of a data set by the weights that answer, on every rank; steps count as samples."""
    with learner.deployed():
        return learner.features_of(data).flatten(0, -2).cpu()


def head_of(learner: Learner) -> dict[str, Tensor]:
    """The parameters of the head."""
    return {name: p.detach().clone().cpu() for name, p in learner.head.named_parameters()}


def gradient_of(learner: Learner, data: TensorData, samples: int) -> Tensor:
    """The gradient of the mean loss on the first samples of a data set, flat."""
    data = data.subset(torch.arange(min(samples, len(data))))
    data = data.to(learner.ranks.device, next(learner.parameters()).dtype)
    weights = [p for p in learner.network().values() if p.requires_grad]
    total = torch.zeros(sum(p.numel() for p in weights), dtype=torch.float64)
    for start in range(0, len(data), BATCH):
        x, y, task = data.rows(slice(start, start + BATCH))
        with torch.enable_grad():
            loss = learner.base_loss(learner.output_with({}, x, task).logits, y).sum() / len(data)
        found = torch.autograd.grad(loss, weights, allow_unused=True)
        flat = [torch.zeros_like(p) if g is None else g for p, g in zip(weights, found, strict=True)]
        total += torch.cat([g.flatten() for g in flat]).double().cpu()
    return total
