"""The matrix memory of xLSTM, mLSTM (Beck et al. 2024, arXiv 2405.04517, eq. 19-27): a loop and an equal chunked form.

With input gate exp(i_t), forget gate exp(f_t) and f_t <= 0, for each head::

    C_t = exp(f_t) C_{t-1} + exp(i_t) k_t v_t'
    n_t = exp(f_t) n_{t-1} + exp(i_t) k_t
    y_t = C_t' q_t / max(|n_t . q_t|, 1)

exp(i_t) may overflow, so that what is kept is C_t exp(-m_t) and n_t exp(-m_t) with ``m_t = max(f_t + m_{t-1}, i_t)``
and m_0 = 0. This changes nothing in y. Padding is a step with i = -inf and f = 0. A reset makes C, n and m zero before
its step.
"""

from __future__ import annotations

import torch
import torch.nn.functional as nnf
from torch import Tensor

from clplat.backbones.ops.chunks import cut, each, join, keep, segments
from clplat.backbones.ops.flow import spans

EPS = 1e-6  # as in the authors' code; |n . q| and exp(-m) may both underflow

Memory = tuple[Tensor, Tensor, Tensor]  # C (B, H, K, V), n (B, H, K), m (B, H)


def readout(above: Tensor, below: Tensor, m: Tensor) -> Tensor:
    """``a / max(|b|, exp(-m))`` for a (..., V), b and m (...); both parts are scaled so that neither overflows."""
    scale = m.clamp(max=0).exp()
    floor = (-m.clamp(min=0)).exp()
    return above * scale[..., None] / (torch.maximum(below.abs() * scale, floor) + EPS)[..., None]


def mlstm_loop(
    q_BHTK: Tensor,
    k_BHTK: Tensor,
    v_BHTV: Tensor,
    i_BHT: Tensor,
    f_BHT: Tensor,
    memory: Memory,
    reset_BT: Tensor | None = None,
) -> tuple[Tensor, Memory]:
    """The equations above, one step at a time.

    Args:
        q_BHTK: queries.
        k_BHTK: keys.
        v_BHTV: values.
        i_BHT: logarithms of the input gates.
        f_BHT: logarithms of the forget gates, not above 0.
        memory: C, n and m before the first step.
        reset_BT: True where a new sequence begins.

    Returns:
        y (B, H, T, V), and the memory after the last step.
    """
    C, n, m = memory
    outputs = []
    for t in range(q_BHTK.shape[2]):
        q, k, v, i, f = (x[:, :, t] for x in (q_BHTK, k_BHTK, v_BHTV, i_BHT, f_BHT))
        if reset_BT is not None:
            fresh_B1 = reset_BT[:, t, None]
            C, n, m = (x.masked_fill(fresh_B1.reshape(-1, *[1] * (x.ndim - 1)), 0) for x in (C, n, m))
        before, m = m, torch.maximum(f + m, i)
        kept, added = (f + before - m).exp(), (i - m).exp()
        C = kept[..., None, None] * C + (added[..., None] * k)[..., None] * v[..., None, :]
        n = kept[..., None] * n + added[..., None] * k
        outputs.append(readout((q[..., None] * C).sum(-2), (q * n).sum(-1), m))
    return torch.stack(outputs, 2), (C, n, m)


def mlstm_chunk(
    q_BHTK: Tensor,
    k_BHTK: Tensor,
    v_BHTV: Tensor,
    i_BHT: Tensor,
    f_BHT: Tensor,
    memory: Memory,
    reset_BT: Tensor | None = None,
    chunk: int = 64,
) -> tuple[Tensor, Memory]:
    """Equal to :func:`mlstm_loop`, in chunks of steps, between which the memory is carried.

    Within a chunk that starts with (C, n, m) step t finds step j of its own sequence with weight exp(D_tj - m_t), and
    the memory with weight exp(e_t + m - m_t)::

        D_tj = f_{j+1} + ... + f_t + i_j        e_t = f_1 + ... + f_t
        m_t = max(e_t + m, max_j D_tj)

    which is the same m_t as the loop's. With a reset in the chunk, e_t begins at it, C and n are not seen, and m is 0.

    Args:
        chunk: steps in one chunk.
    """
    T, V = v_BHTV.shape[2:]
    size = min(chunk, T)
    i_BHT = nnf.pad(i_BHT, (0, -T % size), value=-torch.inf)  # behind the end nothing is added
    v_BHTV = torch.cat([v_BHTV, torch.ones_like(v_BHTV[..., :1])], -1)  # with it n is a column of C
    q, k, v, i, f = (cut(x, size) for x in (q_BHTK, k_BHTK, v_BHTV, i_BHT[..., None], f_BHT[..., None]))
    pairs = segments(reset_BT, T, size, q.device)
    D = (spans(f)[..., 0] + i.mT).masked_fill(~pairs.seen, -torch.inf)
    entered = keep(f.mT.expand_as(D), pairs.seen).sum(-1, keepdim=True)
    most, scores = D.amax(-1, keepdim=True), q @ k.mT
    q = keep(q, pairs.entering)

    C, n, m = memory
    S, m, outputs = torch.cat([C, n[..., None]], -1), m[..., None, None], []
    parts = (each(x, q.shape[2]) for x in (q, k, v, scores, D, entered, most, pairs.entering, pairs.kept()))
    for q_CK, k_CK, v_CV, scores_CC, D_CC, entered_C1, most_C1, enters_C1, kept in zip(*parts, strict=True):
        start = entered_C1 + (m if enters_C1 is None else m.masked_fill(~enters_C1, 0))
        m_t = torch.maximum(start, most_C1)
        weights, carried = (D_CC - m_t).exp(), (start - m_t).exp()
        y = (scores_CC * weights) @ v_CV + carried * (q_CK @ S)
        outputs.append(readout(y[..., :V], y[..., V], m_t[..., 0]))
        m = m_t[..., -1:, :]
        S = carried[..., -1:, :] * (S if kept is None else S * kept)
        S = S + (weights[..., -1, :, None] * k_CK).mT @ v_CV
    return join(torch.stack(outputs, 2), T), (S[..., :V], S[..., V], m[..., 0, 0])
