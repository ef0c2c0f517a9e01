"""Retrieval from a modern Hopfield network (Ramsauer et al. 2021, arXiv 2008.02217) and its outlier-efficient form (Hu
et al. 2024, arXiv 2404.03828): through fused attention, and an equal loop.

A state q moves among stored patterns k_s, U times, and then reads what stands beside them::

    p_s(q) = exp(b q . k_s) / sum_j exp(b q . k_j)
    q <- sum_s p_s(q) k_s    (U times)
    y = sum_s p_s(q) v_s

In the outlier-efficient form a pattern of zeros that says nothing is stored too: the sum below the line has a 1 more
("softmax_1"), and a state that fits no pattern reads nothing. No step raises the energy (:func:`energy`).
"""

from __future__ import annotations

import torch
import torch.nn.functional as nnf
from torch import Tensor


def hopfield(
    q_BHTK: Tensor,
    k_BHSK: Tensor,
    v_BHSV: Tensor,
    visible_BTS: Tensor,
    beta: float,
    updates: int = 0,
    rest: bool = False,
) -> Tensor:
    """The equations above.

    Args:
        q_BHTK: states, one for each step.
        k_BHSK: stored patterns.
        v_BHSV: what is read at them.
        visible_BTS: True where step t may retrieve pattern s; each step one at least.
        beta: b, the inverse temperature.
        updates: U.
        rest: whether the pattern of zeros is stored too.

    Returns:
        y (B, H, T, V).
    """
    if rest:
        k_BHSK, v_BHSV = nnf.pad(k_BHSK, (0, 0, 0, 1)), nnf.pad(v_BHSV, (0, 0, 0, 1))
        visible_BTS = nnf.pad(visible_BTS, (0, 1), value=True)
    for values in [*[k_BHSK] * updates, v_BHSV]:
        q_BHTK = nnf.scaled_dot_product_attention(q_BHTK, k_BHSK, values, attn_mask=visible_BTS[:, None], scale=beta)
    return q_BHTK


def hopfield_weights(
    q_BHTK: Tensor, k_BHSK: Tensor, visible_BTS: Tensor, beta: float, updates: int = 0, rest: bool = False
) -> Tensor:
    """``p_s(q)`` of the last read, (B, H, T, S), arguments as of :func:`hopfield`; with ``rest`` they may sum to less
    than 1."""
    q_BHTK = hopfield(q_BHTK, k_BHSK, k_BHSK, visible_BTS, beta, updates - 1, rest) if updates else q_BHTK
    scores = (beta * q_BHTK @ k_BHSK.mT).masked_fill(~visible_BTS[:, None], -torch.inf)
    return nnf.pad(scores, (0, int(rest))).softmax(-1)[..., : k_BHSK.shape[2]]


def hopfield_loop(
    q_BHTK: Tensor,
    k_BHSK: Tensor,
    v_BHSV: Tensor,
    visible_BTS: Tensor,
    beta: float,
    updates: int = 0,
    rest: bool = False,
) -> Tensor:
    """The naive reference of :func:`hopfield`: one step at a time, with the softmax written out."""
    outputs = []
    for t in range(q_BHTK.shape[2]):
        q_BHK = q_BHTK[:, :, t]
        for values in [*[k_BHSK] * updates, v_BHSV]:
            scores_BHS = beta * (k_BHSK * q_BHK[:, :, None]).sum(-1)
            scores_BHS = scores_BHS.masked_fill(~visible_BTS[:, None, t], -torch.inf)
            top_BH1 = scores_BHS.amax(-1, keepdim=True)
            top_BH1 = top_BH1.clamp(min=0) if rest else top_BH1
            parts_BHS = (scores_BHS - top_BH1).exp()
            whole_BH1 = parts_BHS.sum(-1, keepdim=True) + ((-top_BH1).exp() if rest else 0)
            q_BHK = ((parts_BHS / whole_BH1)[..., None] * values).sum(2)
        outputs.append(q_BHK)
    return torch.stack(outputs, 2)


def energy(q_BHTK: Tensor, k_BHSK: Tensor, beta: float, rest: bool = False) -> Tensor:
    """``-log(sum_s exp(b q . k_s)) / b + q . q / 2``, with a 1 more in the sum if the pattern of zeros is stored,
    (B, H, T)."""
    scores = beta * q_BHTK @ k_BHSK.mT
    scores = nnf.pad(scores, (0, 1)) if rest else scores
    return -scores.logsumexp(-1) / beta + 0.5 * q_BHTK.square().sum(-1)
