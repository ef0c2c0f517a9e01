"""Linear attention over the steps so far and over the whole beginning of a sequence: a loop and an equal parallel form.

For queries q_i, keys k_j and values v_j of all steps, and keys e_j and values u_j of the first steps of a sequence
(Arora et al. 2024, arXiv 2407.05483, eq. 6, without its normaliser)::

    y_i = (S_0 + sum_{j <= i} k_j v_j' + sum_j e_j u_j')' q_i
    S_T =  S_0 + sum_j k_j v_j' + sum_j e_j u_j'

where the sums go over the steps of i's own sequence, for S_T of the last one, and S_0 belongs to the first. Padding is
a step with k = 0 and e = 0; e = 0 also behind the beginning.
"""

from __future__ import annotations

import torch
from torch import Tensor

from clplat.backbones.ops.chunks import keep
from clplat.backbones.ops.scalar_decay import scalar_decay_chunk


def prefix_attention_loop(
    q_BHTK: Tensor,
    k_BHTK: Tensor,
    v_BHTV: Tensor,
    e_BHTK: Tensor,
    u_BHTV: Tensor,
    S_BHKV: Tensor,
    reset_BT: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The equations above, one step at a time.

    Args:
        q_BHTK: queries.
        k_BHTK: keys.
        v_BHTV: values.
        e_BHTK: keys of the beginning.
        u_BHTV: values of the beginning.
        S_BHKV: S_0.
        reset_BT: True where a new sequence begins.

    Returns:
        y (B, H, T, V), and S_T.
    """
    T = q_BHTK.shape[2]
    number_BT = torch.zeros_like(q_BHTK[:, 0, :, 0], dtype=torch.long)
    if reset_BT is not None:
        number_BT = number_BT + reset_BT.long().cumsum(1)

    def seen_at(t: int) -> Tensor:
        same_B1T11 = (number_BT == number_BT[:, t, None])[:, None, :, None, None]
        S = S_BHKV.masked_fill((number_BT[:, t] > 0)[:, None, None, None], 0)
        past = (k_BHTK[..., None] * v_BHTV[..., None, :]).masked_fill(~same_B1T11, 0)[:, :, : t + 1].sum(2)
        beginning = (e_BHTK[..., None] * u_BHTV[..., None, :]).masked_fill(~same_B1T11, 0).sum(2)
        return S + past + beginning

    states = [seen_at(t) for t in range(T)]
    outputs = [(q_BHTK[:, :, t, :, None] * S).sum(-2) for t, S in enumerate(states)]
    return torch.stack(outputs, 2), states[-1]


def prefix_attention(
    q_BHTK: Tensor,
    k_BHTK: Tensor,
    v_BHTV: Tensor,
    e_BHTK: Tensor,
    u_BHTV: Tensor,
    S_BHKV: Tensor,
    reset_BT: Tensor | None = None,
    chunk: int = 64,
) -> tuple[Tensor, Tensor]:
    """Equal to :func:`prefix_attention_loop`. Where one sequence fills the call its beginning is added to S_0, and the
    rest is linear attention in chunks; where sequences begin, (T, T) scores say who sees which beginning.

    Args:
        chunk: steps in one chunk.
    """
    if reset_BT is None:
        return scalar_decay_chunk(q_BHTK, k_BHTK, v_BHTV, None, S_BHKV + e_BHTK.mT @ u_BHTV, None, chunk)
    y_BHTV, S = scalar_decay_chunk(q_BHTK, k_BHTK, v_BHTV, None, S_BHKV, reset_BT, chunk)
    number_BT = reset_BT.long().cumsum(1)
    same_B1TT = (number_BT[:, :, None] == number_BT[:, None])[:, None]
    y_BHTV = y_BHTV + keep(q_BHTK @ e_BHTK.mT, same_B1TT) @ u_BHTV
    return y_BHTV, S + keep(e_BHTK.mT, same_B1TT[:, :, -1:]) @ u_BHTV
