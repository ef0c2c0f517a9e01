"""Causal linear attention (Katharopoulos et al. 2020, arXiv 2006.16236): a loop and an equal chunked form.

For non-negative features q_t, k_t (K numbers) and values v_t (V numbers), section 3.4::

    S_t = S_{t-1} + k_t v_t'          (eq. 18)
    z_t = z_{t-1} + k_t               (eq. 19)
    y_t = S_t' q_t / (z_t . q_t + eps)    (eq. 20)

Padding is a step with k = 0. A reset makes S and z zero before its step.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from clplat.backbones.ops.scalar_decay import scalar_decay_chunk

EPS = 1e-6  # as in the paper's own code; all features may underflow to zero


def feature(x: Tensor) -> Tensor:
    """``elu(x) + 1``, positive (eq. 7)."""
    return F.elu(x) + 1


def linear_attention_loop(
    q_BHTK: Tensor, k_BHTK: Tensor, v_BHTV: Tensor, S_BHKV: Tensor, z_BHK: Tensor, reset_BT: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """The equations above, one step at a time.

    Args:
        q_BHTK: features of the queries.
        k_BHTK: features of the keys.
        v_BHTV: values.
        S_BHKV: sum of key-value products so far.
        z_BHK: sum of keys so far.
        reset_BT: True where a new sequence begins.

    Returns:
        y (B, H, T, V), and S and z after the last step.
    """
    outputs = []
    for t in range(q_BHTK.shape[2]):
        q, k, v = q_BHTK[:, :, t], k_BHTK[:, :, t], v_BHTV[:, :, t]
        if reset_BT is not None:
            fresh_B11 = reset_BT[:, t, None, None]
            S_BHKV, z_BHK = S_BHKV.masked_fill(fresh_B11[..., None], 0), z_BHK.masked_fill(fresh_B11, 0)
        S_BHKV = S_BHKV + k[..., :, None] * v[..., None, :]
        z_BHK = z_BHK + k
        above, below = (q[..., :, None] * S_BHKV).sum(-2), (q * z_BHK).sum(-1, keepdim=True)
        outputs.append(above / (below + EPS))
    return torch.stack(outputs, 2), S_BHKV, z_BHK


def linear_attention_chunk(
    q_BHTK: Tensor,
    k_BHTK: Tensor,
    v_BHTV: Tensor,
    S_BHKV: Tensor,
    z_BHK: Tensor,
    reset_BT: Tensor | None = None,
    chunk: int = 64,
) -> tuple[Tensor, Tensor, Tensor]:
    """Equal to :func:`linear_attention_loop`: N = T / C chunks, masked products inside, the state between them.

    With a column of ones behind v the numerator and denominator, and S and z, are one matrix.

    Args:
        chunk: C, steps in one chunk.
    """
    V = v_BHTV.shape[3]
    v_BHTV = torch.cat([v_BHTV, torch.ones_like(v_BHTV[..., :1])], -1)
    S = torch.cat([S_BHKV, z_BHK[..., None]], -1)
    y, S = scalar_decay_chunk(q_BHTK, k_BHTK, v_BHTV, None, S, reset_BT, chunk)
    return y[..., :V] / (y[..., V:] + EPS), S[..., :V], S[..., V]
