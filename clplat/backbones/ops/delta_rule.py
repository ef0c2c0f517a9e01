"""The delta rule (Schlag et al. 2021, arXiv 2102.11174; Yang et al. 2024, arXiv 2406.06484): a loop and an equal
chunked form.

A matrix S (K, V) maps keys to values. Step t corrects what it holds for the key k_t towards v_t, by the part b_t::

    d_t = b_t (v_t - S_{t-1}' k_t)
    S_t = S_{t-1} + k_t d_t' = (I - b_t k_t k_t') S_{t-1} + b_t k_t v_t'
    y_t = S_t' q_t

With |k_t| <= 1 and b_t in [0, 1] the eigenvalues of I - b k k' lie in [0, 1]; b_t up to 2 lets them reach -1 (Grazzi et
al. 2024, arXiv 2411.12537). The gated delta rule (Yang et al. 2024, arXiv 2412.06464, eq. 10) first makes the matrix
fade by a log-decay g_t <= 0: ``exp(g_t) S_{t-1}`` in place of S_{t-1}. Padding is a step with b = 0 and g = 0. A reset
makes S zero before its step.
"""

from __future__ import annotations

import torch
from torch import Tensor

from clplat.backbones.ops.chunks import cut, each, join
from clplat.backbones.ops.flow import flow

EPS = 1e-6  # as in the paper's own code


def unit(x: Tensor) -> Tensor:
    """x with length 1 along the last dimension, or less than 1 where it is tiny: smooth at zero."""
    return x * (x.square().sum(-1, keepdim=True) + EPS).rsqrt()


def delta_rule_loop(
    q_BHTK: Tensor,
    k_BHTK: Tensor,
    v_BHTV: Tensor,
    b_BHT: Tensor,
    S_BHKV: Tensor,
    reset_BT: Tensor | None = None,
    *,
    g_BHT: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The equations above, one step at a time.

    Args:
        q_BHTK: queries.
        k_BHTK: keys, no longer than 1.
        v_BHTV: values.
        b_BHT: how far each step corrects, in [0, 1] or [0, 2].
        S_BHKV: the matrix before the first step.
        reset_BT: True where a new sequence begins.
        g_BHT: logarithm of the decay, at most 0; None: no decay.

    Returns:
        y (B, H, T, V), and S after the last step.
    """
    outputs = []
    for t in range(q_BHTK.shape[2]):
        q, k, v, b = q_BHTK[:, :, t], k_BHTK[:, :, t], v_BHTV[:, :, t], b_BHT[:, :, t, None]
        if reset_BT is not None:
            S_BHKV = S_BHKV.masked_fill(reset_BT[:, t, None, None, None], 0)
        if g_BHT is not None:
            S_BHKV = S_BHKV * g_BHT[:, :, t, None, None].exp()
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
    *,
    g_BHT: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Equal to :func:`delta_rule_loop`: chunks of C steps, in each a triangular system instead of a loop.

    Within a chunk that starts with the matrix S, the rows d_t of D depend on those before them::

        d_t = b_t (v_t - S' k_t - sum_{j<t} (k_t . k_j) d_j)
        (I + A) D = diag(b) (V - K S)          A_tj = b_t (k_t . k_j) for j < t, else 0

    which is linear in S: ``D = U - W S`` with ``[U W] = (I + A)^-1 diag(b) [V K]``, one triangular solve for all chunks
    (the WY form of the paper, section 3.2). Only S then runs from chunk to chunk::

        Y = Q S + tril(Q K') D
        S' = S + K' D

    With decay, L_tj = exp(g_{j+1} + ... + g_t) multiplies what step t sees of step j, and p_t = exp(g_1 + ... + g_t)
    what it sees of S. With resets a step sees only its own sequence: the pairs of different sequences vanish from A and
    tril(Q K'), and S from all but the sequence it belongs to.

    Args:
        chunk: C, steps in one chunk.
    """
    T, V = v_BHTV.shape[2:]
    C = min(chunk, T)
    q, k, v, b = (cut(x, C) for x in (q_BHTK, k_BHTK, v_BHTV, b_BHT[..., None]))  # b = 0 behind the end: no change
    seen = flow(g_BHT, reset_BT, T, C, q.device)

    A = seen.inside(b * (k @ k.mT))  # the diagonal of I + A is known to be 1 and is not read
    UW = torch.linalg.solve_triangular(A, b * torch.cat([v, seen.entering(k)], -1), upper=False, unitriangular=True)
    U, W = UW[..., :V], UW[..., V:]
    parts = (each(x, q.shape[2]) for x in (U, W, seen.leaving(k), seen.kept()))

    S, before, corrections = S_BHKV, [], []
    for U_CV, W_CK, k_CK, kept in zip(*parts, strict=True):
        D_CV = U_CV - W_CK @ S
        before.append(S)
        corrections.append(D_CV)
        S = (S if kept is None else S * kept) + k_CK.mT @ D_CV
    within = seen.inside(q @ k.mT) @ torch.stack(corrections, 2)
    return join(within + seen.entering(q) @ torch.stack(before, 2), T), S
