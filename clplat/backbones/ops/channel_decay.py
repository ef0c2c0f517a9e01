"""Linear attention that forgets by one number for each key channel and step: a loop and an equal chunked form.

As in scalar_decay.py, with a log-decay g_t <= 0 of K numbers (Yang et al. 2023, arXiv 2312.06635, eq. 3)::

    S_t = diag(exp(g_t)) S_{t-1} + k_t v_t'
    y_t = S_t' q_t

Padding is a step with k = 0 and g = 0. A reset makes S zero before its step.
"""

from __future__ import annotations

import torch
from torch import Tensor

from clplat.backbones.ops.chunks import cut, join, keep, segments, states
from clplat.backbones.ops.flow import before, spans


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
        chunk: C, steps in one chunk; see :func:`decayed_scores` for a good choice.
    """
    T = v_BHTV.shape[2]
    c = part(chunk)
    C = min(chunk, -(-T // c) * c)
    q, k, v, g = (cut(x, C) for x in (q_BHTK, k_BHTK, v_BHTV, g_BHTK))  # k = 0 behind the end: no change
    pairs = segments(reset_BT, T, C, q.device)

    sums = keep(k * before(g).exp(), pairs.leaving).mT @ v
    S_BHNKV, S_BHKV = states(S_BHKV, sums, pairs.kept(g.sum(-2).exp()[..., None]))
    inner = keep(decayed_scores(q, k, g, c), pairs.seen) @ v
    return join(inner + keep(q * g.cumsum(-2).exp(), pairs.entering) @ S_BHNKV, T), S_BHKV


def part(C: int) -> int:
    """The largest divisor of C that is no larger than its root."""
    return max(c for c in range(1, int(C**0.5) + 1) if C % c == 0)


def decayed_scores(q_CK: Tensor, k_CK: Tensor, g_CK: Tensor, c: int) -> Tensor:
    """``sum_k q_tk k_jk exp(g_{j+1,k} + ... + g_tk)`` for j <= t, else 0: (..., C, K) -> (..., C, C).

    The decay cannot be split into a factor of t and one of j, which would overflow. In parts of c steps it can be split
    at the first step of t's part: what lies from there to t, what lies from j to the end of its own part, and the whole
    parts between them, all at most 1. Only pairs within one part take the decay between them as it is. This needs
    C K (C / c + c) numbers, so c near the root of C is best (Yang et al. 2023, section 4.3, has the same two levels).

    Args:
        c: steps in a part, a divisor of C.
    """
    q, k, g = (x.unflatten(-2, (-1, c)) for x in (q_CK, k_CK, g_CK))
    n = q.shape[-3]
    lower_cc, below_nn = (
        torch.ones((size, size), device=q.device, dtype=torch.bool).tril(at) for size, at in ((c, 0), (n, -1))
    )

    own = torch.einsum("...tk,...jk,...tjk->...tj", q, k, spans(g).exp())
    own = own.masked_fill(~lower_cc, 0)

    upto_nnK = spans(g.sum(-2))  # from behind part j to the end of part i
    between_nnK = torch.cat([torch.zeros_like(upto_nnK[..., :1, :, :]), upto_nnK[..., :-1, :, :]], -3)
    q_nc = q * g.cumsum(-2).exp()
    k_nnc = (k * before(g).exp())[..., None, :, :, :] * between_nnK.exp()[..., None, :]
    scores = torch.einsum("...itk,...ijsk->...itjs", q_nc, k_nnc).masked_fill(~below_nn[:, None, :, None], 0)
    same_n1n1 = torch.eye(n, device=q.device, dtype=torch.bool)[:, None, :, None]
    return torch.where(same_n1n1, own[..., None, :], scores).flatten(-4, -3).flatten(-2)
