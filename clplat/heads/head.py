"""Heads: from features to logits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from clplat.heads.linear import StackedLinear


class SharedHead(nn.Module):
    """One linear head for all tasks: ``logits = W f + b``.

    All classes of the scenario exist from the start, and none is masked: what a class that has not come yet gets is
    part of what is learned, as in most class-incremental code.

    Args:
        features: F.
        classes: number of logits.
    """

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(features, classes)

    def forward(self, features_NF: Tensor, task_N: Tensor) -> Tensor:
        """Logits (N, classes), or (N, T, classes) for features (N, T, F); the task label is not looked at."""
        logits: Tensor = self.linear(features_NF)
        return logits


class TiedHead(nn.Module):
    """Scores a token by the embedding it comes in with: ``logits = E (W f) / sqrt(D)`` with the table E of the encoder
    (Press and Wolf 2017, arXiv 1608.05859). So a token that was never an answer in training can be one.

    Args:
        features: F.
        embedding: the encoder's own, of which E (vocabulary, D) is shared.
        classes: number of logits; class c is token c.
    """

    def __init__(self, features: int, embedding: nn.Embedding, classes: int) -> None:
        super().__init__()
        self.classes = classes
        self.shared = (embedding,)  # no submodule: its weight is the encoder's, under one name
        self.projection = nn.Linear(features, embedding.embedding_dim, bias=False)

    def forward(self, features_NF: Tensor, task_N: Tensor) -> Tensor:
        """Logits (N, classes), or (N, T, classes) for features (N, T, F); the task label is not looked at."""
        table_CD = self.shared[0].weight[: self.classes]
        logits: Tensor = self.projection(features_NF) @ table_CD.mT * table_CD.shape[1] ** -0.5
        return logits


class GrowingHead(nn.Module):
    """A linear head that has the classes seen so far; for a class that is still to come the logit is -inf.

    Args:
        features: F.
        classes: of the whole scenario; the logits are always that wide.
    """

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.features, self.classes = features, classes
        self.linear: nn.Linear | None = None

    @torch.no_grad()
    def grow(self, classes: int) -> None:
        """Make room for classes 0 to ``classes`` - 1; what exists keeps its values, new rows are as nn.Linear's."""
        old = self.linear
        if old is None:
            self.linear = nn.Linear(self.features, classes)
        elif classes > old.out_features:
            new = nn.Linear(self.features, classes, device=old.weight.device, dtype=old.weight.dtype)
            new.weight[: old.out_features], new.bias[: old.out_features] = old.weight, old.bias
            self.linear = new

    def forward(self, features_NF: Tensor, task_N: Tensor) -> Tensor:
        """Logits (N, classes); the task label is not looked at."""
        assert self.linear is not None, "the head has no class yet"
        logits_NC = self.linear(features_NF)
        return nnf.pad(logits_NC, (0, self.classes - logits_NC.shape[-1]), value=-torch.inf)


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
        """Logits (N, classes of the largest task), or (N, T, ...) for features (N, T, F); -inf for the surplus."""
        if features_NF.ndim == 3:
            N, T, F = features_NF.shape
            return self(features_NF.reshape(N * T, F), task_N.repeat_interleave(T)).reshape(N, T, -1)
        logits_NC = self.linear(features_NF, task_N)
        return logits_NC.masked_fill(~self.valid[task_N], -torch.inf) if self.uneven else logits_NC


def rows_of(head: nn.Module, classes: Mapping[int, Sequence[int]]) -> dict[str, Tensor]:
    """Which entries of a head's parameters make the logits of some classes: masks by the parameter's name in the head.

    Args:
        classes: by task label; the label counts only where each task has a head of its own.
    """
    masks = {name: torch.zeros_like(p, dtype=torch.bool, requires_grad=False) for name, p in head.named_parameters()}
    for task, of_it in classes.items():
        for mask in masks.values():
            rows = mask[task] if isinstance(head, PerTaskHead) else mask
            rows[[c for c in of_it if c < len(rows)]] = True
    return masks
