"""Attention with relative positions (Dai et al. 2019, arXiv 1901.02860, section 3.3): a dense form and an equal loop.

Query i stands at place P + i of S = P + T keys. With a vector r_d for each distance d = P + i - j::

    s_ij = ((q_i + u) . k_j + (q_i + w) . r_d) / sqrt(K)        y_i = sum_j softmax_j(s_ij) v_j
"""

from __future__ import annotations

import torch
from torch import Tensor


def sinusoids(n: int, dim: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """``[sin(d f_i), cos(d f_i)]`` for d = 0..n-1 with f_i = 10000^(-2 i / dim), (n, dim)."""
    angle = torch.arange(n, device=device, dtype=dtype)[:, None] * 10000.0 ** (
        -torch.arange(0, dim, 2, device=device, dtype=dtype) / dim
    )
    return torch.cat([angle.sin(), angle.cos()], -1)[:, :dim]


def relative_attention(
    q_BHTK: Tensor, k_BHSK: Tensor, v_BHSV: Tensor, r_HSK: Tensor, u_HK: Tensor, w_HK: Tensor, visible_BTS: Tensor
) -> Tensor:
    """The equations above, (B, H, T, V).

    Args:
        v_BHSV: values; the others as of :func:`relative_weights`.
    """
    return relative_weights(q_BHTK, k_BHSK, r_HSK, u_HK, w_HK, visible_BTS) @ v_BHSV


def relative_weights(
    q_BHTK: Tensor, k_BHSK: Tensor, r_HSK: Tensor, u_HK: Tensor, w_HK: Tensor, visible_BTS: Tensor
) -> Tensor:
    """``softmax_j(s_ij)``.

    Args:
        q_BHTK: queries.
        k_BHSK: keys.
        r_HSK: r_d for d = 0..S-1.
        u_HK: u.
        w_HK: w.
        visible_BTS: True where query t sees key s; not later keys, and each query one at least.

    Returns:
        (B, H, T, S).
    """
    T, S = q_BHTK.shape[2], k_BHSK.shape[2]
    place_S = torch.arange(S, device=q_BHTK.device)
    distance_TS = (place_S[S - T :, None] - place_S).clamp(min=0)  # later keys are not seen
    by_distance = (q_BHTK + w_HK[:, None]) @ r_HSK.mT
    scores = (q_BHTK + u_HK[:, None]) @ k_BHSK.mT + by_distance.take_along_dim(distance_TS[None, None], -1)
    scores = scores / q_BHTK.shape[-1] ** 0.5
    return scores.masked_fill(~visible_BTS[:, None], -torch.inf).softmax(-1)


def relative_attention_loop(
    q_BHTK: Tensor, k_BHSK: Tensor, v_BHSV: Tensor, r_HSK: Tensor, u_HK: Tensor, w_HK: Tensor, visible_BTS: Tensor
) -> Tensor:
    """The naive reference of :func:`relative_attention`: one query and one key at a time."""
    T, S = q_BHTK.shape[2], k_BHSK.shape[2]
    outputs = []
    for t in range(T):
        q, scores = q_BHTK[:, :, t], []
        for s in range(S):
            r = r_HSK[:, max(S - T + t - s, 0)]
            score = ((q + u_HK) * k_BHSK[:, :, s] + (q + w_HK) * r).sum(-1) / q.shape[-1] ** 0.5
            scores.append(score.masked_fill(~visible_BTS[:, None, t, s], -torch.inf))
        weights_BHS = torch.stack(scores, -1).softmax(-1)
        outputs.append((weights_BHS[..., None] * v_BHSV).sum(2))
    return torch.stack(outputs, 2)
