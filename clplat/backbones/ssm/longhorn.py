"""Longhorn: a state space whose step solves a small regression, so that it needs no forget gate."""

from __future__ import annotations

import torch
from torch import Tensor

from clplat.backbones.ops.selective_scan import Decay
from clplat.backbones.ssm.mamba import Mamba, step_rank
from clplat.backbones.ssm.selective import SelectiveScan


class OnlineRegression(SelectiveScan):
    """The layer of Longhorn in the block of Mamba (Liu et al. 2024, arXiv 2407.14207)::

        b = sigmoid(W_s r + c)        s = b / (1 + b |k|^2)        decay(s, k) = 1 - s k^2

    A channel's row h of a matrix that maps k to x is moved to the minimum over h' of ``|h' - h|^2 + b (h' . k - x)^2``,
    which is ``h' = (I - s k k') h + s x k``. Of k k' only the diagonal is kept, so that the steps
    can be scanned. The decay lies in [0, 1].

    Args:
        dim: D.
        expand: E / D.
        state: N.
        conv: width of the convolution in steps.
        chunk: steps that are computed at once.
    """

    def __init__(self, dim: int, *, expand: int, state: int, conv: int, chunk: int) -> None:
        super().__init__(dim, inner=expand * dim, state=state, rank=step_rank(dim), conv=conv, chunk=chunk)

    def sizes(self, r_BTE: Tensor, k_BTN: Tensor) -> Tensor:
        return step_size(r_BTE.sigmoid(), k_BTN)

    def decay(self, dtype: torch.dtype) -> Decay:
        return lambda s, k: 1 - s * k.square()


def step_size(b: Tensor, k: Tensor) -> Tensor:
    """``b / (1 + b |k|^2)`` for weights b (..., E) and keys k (..., N)."""
    return b / (1 + b * k.square().sum(-1, keepdim=True))


class Longhorn(Mamba):
    """Longhorn (Liu et al. 2024, arXiv 2407.14207): a state space as an online learner.

    (B, T, input_size) -> (B, T, dim), with a state of fixed size; see :class:`SelectiveScan` and
    :class:`OnlineRegression`. As in the authors' code the block is Mamba's, and the map to the weights b is initialised
    as any linear map.
    """

    kind = OnlineRegression
