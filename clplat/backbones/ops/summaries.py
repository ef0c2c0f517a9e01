"""Attention of each step over the summaries of whole segments and over its own running summary: a loop and a form for
all steps at once, and the cache of summaries that goes on from call to call.

The running summary of the last step of a segment is the segment's.
"""

from __future__ import annotations

import torch
from torch import Tensor


def summary_attention_loop(
    q_BHTK: Tensor,
    k_BHTK: Tensor,
    v_BHTV: Tensor,
    end_BT: Tensor,
    sequence_BT: Tensor,
    key_BHPK: Tensor,
    value_BHPV: Tensor,
    live_BP: Tensor,
) -> Tensor:
    """``softmax(q k' / sqrt(K)) v`` over what a step sees, one step at a time: the segments of its own sequence that
    have ended before it, and itself.

    Args:
        q_BHTK: queries.
        k_BHTK: keys of the running summaries.
        v_BHTV: values of the running summaries.
        end_BT: True for the last step of a segment.
        sequence_BT: number of each step's sequence; what is cached belongs to sequence 0.
        key_BHPK: cached keys of segments.
        value_BHPV: cached values of segments.
        live_BP: True for those of the present sequence.

    Returns:
        (B, H, T, V).
    """
    outputs = []
    for t in range(q_BHTK.shape[2]):
        keys, values = (
            torch.cat(parts, 2) for parts in ((key_BHPK, k_BHTK[:, :, : t + 1]), (value_BHPV, v_BHTV[:, :, : t + 1]))
        )
        here_B1 = sequence_BT[:, t, None]
        new_Bt = end_BT[:, :t] & (sequence_BT[:, :t] == here_B1)
        seen_BS = torch.cat([live_BP & (here_B1 == 0), new_Bt, torch.ones_like(here_B1, dtype=torch.bool)], 1)
        scores_BHS = (keys * q_BHTK[:, :, t, None]).sum(-1) / q_BHTK.shape[-1] ** 0.5
        weights_BHS = scores_BHS.masked_fill(~seen_BS[:, None], -torch.inf).softmax(-1)
        outputs.append((weights_BHS[..., None] * values).sum(2))
    return torch.stack(outputs, 2)


def summary_attention(
    q_BHTK: Tensor,
    k_BHTK: Tensor,
    v_BHTV: Tensor,
    end_BT: Tensor,
    sequence_BT: Tensor,
    key_BHPK: Tensor,
    value_BHPV: Tensor,
    live_BP: Tensor,
    most: int,
) -> Tensor:
    """Equal to :func:`summary_attention_loop`: the segments that end in the call are gathered, so that each step has
    as many scores as there are segments, and one.

    Args:
        most: the largest number of segments that can end in the call.
    """
    T = q_BHTK.shape[2]
    step_BE = first(end_BT, most)
    ended_BE, sequence_BE = (x.gather(1, step_BE) for x in (end_BT, sequence_BT))
    keys = torch.cat([key_BHPK, take(k_BHTK, step_BE)], 2)
    values = torch.cat([value_BHPV, take(v_BHTV, step_BE)], 2)

    steps_T1 = torch.arange(T, device=end_BT.device)[:, None]
    same_BTE = sequence_BE[:, None] == sequence_BT[..., None]
    new_BTE = ended_BE[:, None] & same_BTE & (step_BE[:, None] < steps_T1)
    seen_BTS = torch.cat([live_BP[:, None] & (sequence_BT == 0)[..., None], new_BTE], 2)
    others_BHTS = (q_BHTK @ keys.mT).masked_fill(~seen_BTS[:, None], -torch.inf)
    own_BHT1 = (q_BHTK * k_BHTK).sum(-1, keepdim=True)
    weights = (torch.cat([others_BHTS, own_BHT1], -1) / q_BHTK.shape[-1] ** 0.5).softmax(-1)
    return weights[..., :-1] @ values + weights[..., -1:] * v_BHTV


def first(where_BT: Tensor, n: int) -> Tensor:
    """The first n steps for which the condition holds, and any others behind them: (B, n)."""
    return (~where_BT).long().argsort(dim=1, stable=True)[:, :n]


def take(x_BHTK: Tensor, step_BE: Tensor) -> Tensor:
    """The given steps: (B, H, E, K)."""
    return x_BHTK.gather(2, step_BE[:, None, :, None].expand(-1, x_BHTK.shape[1], -1, x_BHTK.shape[-1]))
