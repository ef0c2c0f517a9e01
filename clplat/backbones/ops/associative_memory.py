"""Quasi-linear associative memory with a delta correction (Rodkin et al. 2024, arXiv 2407.04841): a loop and an equal
form without one.

A matrix A (K, V) and a vector z (K,) hold pairs of a key feature phi (K numbers, not negative) and a value. Reading::

    y = A' q / (z . q + eps)

Writing M pairs at once, each with a strength b, corrects what A holds for the keys, and counts in z only what of a key
is new::

    d_i = b_i (v_i - A' k_i / (z . k_i + eps))
    A' = A + sum_i k_i d_i'
    z' = z + sum_i g_i k_i        g_i = clip(1 - z . k_i / (k_i . k_i + eps), 0, 1)

No gradient passes through g. With A = 0 and z = 0 reading gives 0 and g is 1.
"""

from __future__ import annotations

import torch
import torch.nn.functional as nnf
from torch import Tensor

EPS = 1e-5  # as in the authors' code


def dpfp(x: Tensor, nu: int) -> Tensor:
    """Deterministic parameter-free projection (Schlag et al. 2021, arXiv 2102.11174, eq. 37) of length 1: products
    ``r_i r_{i-j}``, j = 1..nu, of r = [relu(x), relu(-x)]: (..., K) -> (..., 2 K nu)."""
    r = torch.cat([x.relu(), (-x).relu()], -1)
    return nnf.normalize(torch.cat([r * r.roll(j, -1) for j in range(1, nu + 1)], -1), dim=-1)


def recall(q_BTK: Tensor, A_BKV: Tensor, z_BK: Tensor) -> Tensor:
    """What the memory holds for each query, (B, T, V)."""
    return q_BTK @ A_BKV / (q_BTK @ z_BK[..., None] + EPS)


def store(k_BMK: Tensor, v_BMV: Tensor, b_BM: Tensor, A_BKV: Tensor, z_BK: Tensor) -> tuple[Tensor, Tensor]:
    """Write M pairs at once.

    Args:
        k_BMK: features of the keys.
        v_BMV: values.
        b_BM: strengths, in [0, 1].
        A_BKV: the matrix before.
        z_BK: the vector before.

    Returns:
        A and z after.
    """
    d_BMV = b_BM[..., None] * (v_BMV - recall(k_BMK, A_BKV, z_BK))
    known_BM = (k_BMK @ z_BK[..., None])[..., 0] / (k_BMK.square().sum(-1) + EPS)
    g_BM = (1 - known_BM).clamp(0, 1).detach()
    return A_BKV + k_BMK.mT @ d_BMV, z_BK + (g_BM[..., None] * k_BMK).sum(1)


def store_loop(k_BMK: Tensor, v_BMV: Tensor, b_BM: Tensor, A_BKV: Tensor, z_BK: Tensor) -> tuple[Tensor, Tensor]:
    """The naive reference of :func:`store`: one pair at a time, all of them corrected by what was there before."""
    A_after, z_after = A_BKV, z_BK
    for k, v, b in zip(k_BMK.unbind(1), v_BMV.unbind(1), b_BM.unbind(1), strict=True):
        known = (z_BK * k).sum(-1, keepdim=True)
        held = (k[..., None] * A_BKV).sum(-2) / (known + EPS)
        A_after = A_after + k[..., :, None] * (b[:, None] * (v - held))[..., None, :]
        z_after = z_after + (1 - known / ((k * k).sum(-1, keepdim=True) + EPS)).clamp(0, 1).detach() * k
    return A_after, z_after
