"""Linear attention that forgets by one number for each key channel and step: a loop and an equal chunked form.

As in scalar_decay.py, with a log-decay g_t <= 0 of K numbers (Yang et al. 2023, arXiv 2312.06635, eq. 3)::

    S_t = diag(exp(g_t)) S_{t-1} + k_t v_t'
    y_t = S_t' q_t

Padding is a step with k = 0 and g = 0. A reset makes S zero before its step.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from clplat.backbones.ops.chunks import cut, join, keep, segments, states
from clplat.backbones.ops.flow import before


def channel_decay_loop(
    q_BHTK: Tensor, k_BHTK: Tensor, v_BHTV: Tensor, g_BHTK: Tensor, S_BHKV: Tensor, reset_BT: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The equations above, one step at a time.

    Args:
        q_BHTK: queries.
        k_BHTK: keys.
        v_BHTV: values.
        g_BHTK: logarithm of the decay, at most 0.
        S_BHKV: the matrix before the first step.
        reset_BT: True where a new sequence begins.

    Returns:
        y (B, H, T, V), and S after the last step.
    """
    outputs = []
    for t in range(q_BHTK.shape[2]):
        q, k, v, g = q_BHTK[:, :, t], k_BHTK[:, :, t], v_BHTV[:, :, t], g_BHTK[:, :, t]
        if reset_BT is not None:
            S_BHKV = S_BHKV.masked_fill(reset_BT[:, t, None, None, None], 0)
        S_BHKV = S_BHKV * g[..., :, None].exp() + k[..., :, None] * v[..., None, :]
        outputs.append((q[..., :, None] * S_BHKV).sum(-2))
    return torch.stack(outputs, 2), S_BHKV


def channel_decay_chunk(
    q_BHTK: Tensor,
    k_BHTK: Tensor,
    v_BHTV: Tensor,
    g_BHTK: Tensor,
    S_BHKV: Tensor,
    reset_BT: Tensor | None = None,
    chunk: int = 64,
) -> tuple[Tensor, Tensor]:
    """Equal to :func:`channel_decay_loop`: N = T / C chunks, scores with decay inside, the state between them.

    Args:
        chunk: C, steps in one chunk.
    """
    T = v_BHTV.shape[2]
    C = min(chunk, T)
    q, k, v, g = (cut(x, C) for x in (q_BHTK, k_BHTK, v_BHTV, g_BHTK))  # k = 0 behind the end: no change
    pairs = segments(reset_BT, T, C, q.device)

    sums = keep(k * before(g).exp(), pairs.leaving).mT @ v
    S_BHNKV, S_BHKV = states(S_BHKV, sums, pairs.kept(g.sum(-2).exp()[..., None]))
    inner = keep(decayed_scores(q, k, g), pairs.seen) @ v
    return join(inner + keep(q * g.cumsum(-2).exp(), pairs.entering) @ S_BHNKV, T), S_BHKV


def decayed_scores(q_CK: Tensor, k_CK: Tensor, g_CK: Tensor) -> Tensor:
    """``sum_k q_tk k_jk exp(g_{j+1,k} + ... + g_tk)`` for j <= t, else 0: (..., C, K) -> (..., C, C).

    The decay cannot be split into a factor of t and one of j over the whole chunk: one of them would overflow. It can
    where t lies in the second half of the chunk and j in the first: at the middle, into what lies from there to t and
    from j to there, both at most 1. Pairs within a half are the same question of half the length, so all pairs take
    log2(C) products of matrices, and C K log2(C) exponentials. (Yang et al. 2023, section 4.3, have two levels, and
    take the pairs of the inner one apart.)
    """
    C = q_CK.shape[-2]
    missing = (1 << (C - 1).bit_length()) - C  # to a power of two
    q, k, g = (F.pad(x, (0, 0, 0, missing)) if missing else x for x in (q_CK, k_CK, g_CK))
    scores = (q * k).sum(-1)[..., None, None]  # of parts of h = 1 steps: (..., parts, h, h)
    while (h := scores.shape[-1]) < C:
        (_, q1), (k0, _), (g0, g1) = (x.unflatten(-2, (-1, 2, h)).unbind(-3) for x in (q, k, g))
        across = (q1 * g1.cumsum(-2).exp()) @ (k0 * before(g0).exp()).mT
        first, second = scores.unflatten(-3, (-1, 2)).unbind(-3)
        upper = torch.cat([first, torch.zeros_like(across)], -1)
        scores = torch.cat([upper, torch.cat([across, second], -1)], -2)
    return scores[..., 0, :C, :C]
