"""Attention within stored blocks of keys, of which each query takes the best: a dense form and an equal loop.

For N blocks of C keys, with a weight w_n of each query for each block, zero for those it does not take::

    y = sum_n w_n sum_c softmax_c(q . k_nc / sqrt(K)) v_nc
"""

from __future__ import annotations

import torch
from torch import Tensor


def best(scores_BHTN: Tensor, live_BN: Tensor, n: int) -> Tensor:
    """Where each query's n largest scores lie, among the living blocks alone; boolean, (B, H, T, N)."""
    live_B11N = live_BN[:, None, None]
    ranked = scores_BHTN.detach().masked_fill(~live_B11N, -torch.inf)
    index = ranked.topk(min(n, ranked.shape[-1]), -1).indices
    return torch.zeros_like(ranked).scatter(-1, index, 1.0).bool() & live_B11N


def retrieve(q_BHTK: Tensor, k_BHNCK: Tensor, v_BHNCV: Tensor, w_BHTN: Tensor) -> Tensor:
    """The equation above; all blocks are scored, whatever their weights.

    Args:
        q_BHTK: queries.
        k_BHNCK: keys of the blocks.
        v_BHNCV: values of the blocks.
        w_BHTN: weights of the blocks; H may be 1 for all heads.

    Returns:
        (B, H, T, V).
    """
    return torch.einsum("bhtnc,bhncv->bhtv", retrieval_weights(q_BHTK, k_BHNCK, w_BHTN), v_BHNCV)


def retrieval_weights(q_BHTK: Tensor, k_BHNCK: Tensor, w_BHTN: Tensor) -> Tensor:
    """``w_n softmax_c(q . k_nc / sqrt(K))``, (B, H, T, N, C), arguments as of :func:`retrieve`."""
    scores = torch.einsum("bhtk,bhnck->bhtnc", q_BHTK, k_BHNCK) / q_BHTK.shape[-1] ** 0.5
    return w_BHTN[..., None] * scores.softmax(-1)


def retrieve_loop(q_BHTK: Tensor, k_BHNCK: Tensor, v_BHNCV: Tensor, w_BHTN: Tensor) -> Tensor:
    """The naive reference of :func:`retrieve`: one query and one block at a time."""
    outputs = []
    for t in range(q_BHTK.shape[2]):
        reads = []
        for n in range(k_BHNCK.shape[2]):
            scores_BHC = (k_BHNCK[:, :, n] * q_BHTK[:, :, t, None]).sum(-1) / q_BHTK.shape[-1] ** 0.5
            reads.append((scores_BHC.softmax(-1)[..., None] * v_BHNCV[:, :, n]).sum(2))
        outputs.append((w_BHTN[:, :, t, :, None] * torch.stack(reads, 2)).sum(2))
    return torch.stack(outputs, 2)
