"""Heads: from features to logits."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from clplat.heads.linear import StackedLinear


class SharedHead(nn.Linear):
    """One linear head for all tasks: ``logits = W f + b``.

    All classes of the scenario exist from the start, and none is masked: what a class that has not come yet gets is
    part of what is learned, as in most class-incremental code.
    """

    def forward(self, features_NF: Tensor, task_N: Tensor | None = None) -> Tensor:
        """Logits (N, classes); the task label is not looked at."""
        return super().forward(features_NF)


class PerTaskHead(nn.Module):
    """A linear head for each task, stacked in one parameter and gathered by task label.

    Stacked, because every rank then has the same parameters in use whatever its rows are, and because a gather neither
    branches nor breaks ``vmap``.

    Args:
        features: F.
        classes_per_task: classes of each task; all heads are as wide as the largest and the surplus is masked (-inf).
    """

    valid: Tensor

    def __init__(self, features: int, classes_per_task: Sequence[int]) -> None:
        super().__init__()
        widest = max(classes_per_task)
        self.linear = StackedLinear(len(classes_per_task), features, widest)
        valid = torch.arange(widest) < torch.tensor(classes_per_task)[:, None]
        self.register_buffer("valid", valid, persistent=False)
        self.uneven = not bool(valid.all())

    def forward(self, features_NF: Tensor, task_N: Tensor) -> Tensor:
        """Logits (N, classes of the largest task); -inf where a task has fewer."""
        logits_NC = self.linear(features_NF, task_N)
        return logits_NC.masked_fill(~self.valid[task_N], -torch.inf) if self.uneven else logits_NC
