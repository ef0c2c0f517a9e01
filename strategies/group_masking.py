"""Group masking: a step trains only the outputs of the classes that are in its batch (Lesort et al. 2023,
"Challenging Common Assumptions about Catastrophic Forgetting and Knowledge Accumulation", CoLLAs, arXiv 2207.04543)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from clplat.strategy import Strategy

if TYPE_CHECKING:
    from clplat.batch import Batch
    from clplat.learner import Learner, Output


class GroupMasking(Strategy):
    """Cross-entropy over the classes of the batch alone: those that are absent from it are not pushed down.

    The logits of classes that no label of the global batch names are left out of the softmax of the training loss.
    Predictions go over all classes. As in the authors' code (TLESORT/SCoLe-SCaling-Continual-Learning), which masks by
    the labels of a mini-batch; rehearsed samples count among them.
    """

    needs = ("classes",)

    def base_loss(self, learner: Learner, batch: Batch, output: Output) -> Tensor:
        logits_NC = output.logits
        present_C = logits_NC.new_zeros(logits_NC.shape[-1], requires_grad=False).index_fill(0, batch.y, 1)
        present_C = learner.ranks.all_reduce(present_C) > 0  # of all ranks' rows, so that each masks the same
        return learner.base_loss(logits_NC.masked_fill(~present_C, -torch.inf), batch.y)
