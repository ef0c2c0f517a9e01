"""Linear attention that forgets by one number for each head and step: a loop and an equal chunked form.

A matrix S (K, V) for each head, keys k_t, values v_t, queries q_t and a log-decay g_t <= 0::

    S_t = exp(g_t) S_{t-1} + k_t v_t'
    y_t = S_t' q_t

This is retention with a constant g (Sun et al. 2023, arXiv 2307.08621, eq. 5-7), the state space duality of Mamba-2
(Dao & Gu 2024, arXiv 2405.21060, section 6) with k = B, q = C and v = dt x, and with g = 0 causal linear attention
without its normaliser. Padding is a step with k = 0 and g = 0. A reset makes S zero before its step.
"""

from __future__ import annotations

import torch
from torch import Tensor

from clplat.backbones.ops.chunks import cut, join, states
from clplat.backbones.ops.flow import flow


def scalar_decay_loop(
    q_BHTK: Tensor,
    k_BHTK: Tensor,
    v_BHTV: Tensor,
    g_BHT: Tensor | None,
    S_BHKV: Tensor,
    reset_BT: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The equations above, one step at a time.

    Args:
        q_BHTK: queries.
        k_BHTK: keys.
        v_BHTV: values.
        g_BHT: logarithm of the decay, at most 0; None: no decay.
        S_BHKV: the matrix before the first step.
        reset_BT: True where a new sequence begins.

    Returns:
        y (B, H, T, V), and S after the last step.
    """
    outputs = []
    for t in range(q_BHTK.shape[2]):
        q, k, v = q_BHTK[:, :, t], k_BHTK[:, :, t], v_BHTV[:, :, t]
        if reset_BT is not None:
            S_BHKV = S_BHKV.masked_fill(reset_BT[:, t, None, None, None], 0)
        if g_BHT is not None:
            S_BHKV = S_BHKV * g_BHT[:, :, t, None, None].exp()
        S_BHKV = S_BHKV + k[..., :, None] * v[..., None, :]
        outputs.append((q[..., :, None] * S_BHKV).sum(-2))
    return torch.stack(outputs, 2), S_BHKV


def scalar_decay_chunk(
    q_BHTK: Tensor,
    k_BHTK: Tensor,
    v_BHTV: Tensor,
    g_BHT: Tensor | None,
    S_BHKV: Tensor,
    reset_BT: Tensor | None = None,
    chunk: int = 64,
) -> tuple[Tensor, Tensor]:
    """Equal to :func:`scalar_decay_loop`: N = T / C chunks, masked products inside, the state between them.

    With ``L_tj = exp(g_{j+1} + ... + g_t)`` for j <= t and 0 else, and p_t = exp(g_1 + ... + g_t), in each chunk::

        Y = (Q K' * L) V + diag(p) Q S
        S' = p_C S + K' diag(L_C) V

    Args:
        chunk: C, steps in one chunk.
    """
    T = v_BHTV.shape[2]
    C = min(chunk, T)
    q, k, v = (cut(x, C) for x in (q_BHTK, k_BHTK, v_BHTV))  # k = 0 behind the end: no change
    seen = flow(g_BHT, reset_BT, T, C, q.device)

    before, S_BHKV = states(S_BHKV, seen.leaving(k).mT @ v, seen.kept())
    return join(seen.inside(q @ k.mT) @ v + seen.entering(q) @ before, T), S_BHKV
