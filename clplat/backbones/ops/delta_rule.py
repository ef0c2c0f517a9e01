"""The delta rule (Schlag et al. 2021, arXiv 2102.11174; Yang et al. 2024, arXiv 2406.06484): a loop and an equal
chunked form.

A matrix S (K, V) maps keys to values. Step t corrects what it holds for the key k_t towards v_t, by the part b_t::

    d_t = b_t (v_t - S_{t-1}' k_t)
    S_t = S_{t-1} + k_t d_t' = (I - b_t k_t k_t') S_{t-1} + b_t k_t v_t'
    y_t = S_t' q_t

With |k_t| <= 1 and b_t in [0, 1] the eigenvalues of I - b k k' lie in [0, 1]. Padding is a step with b = 0. A reset
makes S zero before its step.
"""

from __future__ import annotations

import torch
from torch import Tensor

from clplat.backbones.ops.chunks import cut, join, keep, segments

EPS = 1e-6  # as in the paper's own code


def unit(x: Tensor) -> Tensor:
    """x with length 1 along the last dimension, or less than 1 where it is tiny: smooth at zero."""
    return x * (x.square().sum(-1, keepdim=True) + EPS).rsqrt()


def delta_rule_loop(
    q_BHTK: Tensor, k_BHTK: Tensor, v_BHTV: Tensor, b_BHT: Tensor, S_BHKV: Tensor, reset_BT: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The equations above, one step at a time.

    Args:
        q_BHTK: queries.
        k_BHTK: keys, no longer than 1.
        v_BHTV: values.
        b_BHT: how far each step corrects, in [0, 1].
        S_BHKV: the matrix before the first step.
        reset_BT: True where a new sequence begins.

    Returns:
        y (B, H, T, V), and S after the last step.
    """
    outputs = []
    for t in range(q_BHTK.shape[2]):
        q, k, v, b = q_BHTK[:, :, t], k_BHTK[:, :, t], v_BHTV[:, :, t], b_BHT[:, :, t, None]
        if reset_BT is not None:
            S_BHKV = S_BHKV.masked_fill(reset_BT[:, t, None, None, None], 0)
        d = b * (v - (k[..., :, None] * S_BHKV).sum(-2))
        S_BHKV = S_BHKV + k[..., :, None] * d[..., None, :]
        outputs.append((q[..., :, None] * S_BHKV).sum(-2))
    return torch.stack(outputs, 2), S_BHKV


def delta_rule_chunk(
    q_BHTK: Tensor,
    k_BHTK: Tensor,
    v_BHTV: Tensor,
    b_BHT: Tensor,
    S_BHKV: Tensor,
    reset_BT: Tensor | None = None,
    chunk: int = 64,
) -> tuple[Tensor, Tensor]:
    """Equal to :func:`delta_rule_loop`: chunks of C steps, in each a triangular system instead of a loop.

    Within a chunk that starts with the matrix S, the rows d_t of D depend on those before them::

        d_t = b_t (v_t - S' k_t - sum_{j<t} (k_t . k_j) d_j)
        (I + A) D = diag(b) (V - K S)          A_tj = b_t (k_t . k_j) for j < t, else 0

    which is linear in S: ``D = U - W S`` with ``[U W] = (I + A)^-1 diag(b) [V K]``, one triangular solve for all chunks
    (the WY form of the paper, section 3.2). Only S then runs from chunk to chunk::

        Y = Q S + tril(Q K') D
        S' = S + K' D

    With resets a step sees only its own sequence: the pairs of different sequences vanish from A and tril(Q K'), and S
    from all but the sequence it belongs to.

    Args:
        chunk: C, steps in one chunk.
    """
    T, V = v_BHTV.shape[2:]
    C = min(chunk, T)
    q, k, v, b = (cut(x, C) for x in (q_BHTK, k_BHTK, v_BHTV, b_BHT[..., None]))  # b = 0 behind the end: no change
    pairs = segments(reset_BT, T, C, q.device)

    # the diagonal of I + A is known to be 1 and is not read
    A = keep(b * (k @ k.mT), pairs.seen)
    UW = torch.linalg.solve_triangular(
        A, b * torch.cat([v, keep(k, pairs.entering)], -1), upper=False, unitriangular=True
    )
    U, W = UW[..., :V], UW[..., V:]
    scores = keep(q @ k.mT, pairs.seen)
    q, k = keep(q, pairs.entering), keep(k, pairs.leaving)

    S, outputs = S_BHKV, []
    for n in range(q.shape[2]):
        D = U[:, :, n] - W[:, :, n] @ S
        outputs.append(q[:, :, n] @ S + scores[:, :, n] @ D)
        S = pairs.carried(S, n) + k[:, :, n].mT @ D
    return join(outputs, T), S
