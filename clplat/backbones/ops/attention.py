"""Causal softmax attention, rotary positions, and who may see whom across resets, padding and carried keys."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def attention(q_BHTK: Tensor, k_BHSK: Tensor, v_BHSV: Tensor, visible_BTS: Tensor | None = None) -> Tensor:
    """``softmax(q k' / sqrt(K)) v`` over the visible keys (Vaswani et al. 2017, arXiv 1706.03762, eq. 1).

    Args:
        q_BHTK: queries.
        k_BHSK: keys.
        v_BHSV: values.
        visible_BTS: True where query t sees key s; each query must see one at least. None: S = T and s <= t.

    Returns:
        (B, H, T, V).
    """
    if visible_BTS is None:
        return F.scaled_dot_product_attention(q_BHTK, k_BHSK, v_BHSV, is_causal=True)
    return F.scaled_dot_product_attention(q_BHTK, k_BHSK, v_BHSV, attn_mask=visible_BTS[:, None])


def attention_loop(q_BHTK: Tensor, k_BHSK: Tensor, v_BHSV: Tensor, visible_BTS: Tensor | None = None) -> Tensor:
    """The naive reference of :func:`attention`: one query at a time."""
    outputs = []
    for t in range(q_BHTK.shape[2]):
        scores_BHS = (k_BHSK @ q_BHTK[:, :, t, :, None]).squeeze(-1) / q_BHTK.shape[-1] ** 0.5
        if visible_BTS is None:
            weights_BHS = scores_BHS[..., : t + 1].softmax(-1)
        else:
            weights_BHS = scores_BHS.masked_fill(~visible_BTS[:, None, t], -torch.inf).softmax(-1)
        seen_BHSV = v_BHSV[:, :, : weights_BHS.shape[-1]]
        outputs.append((weights_BHS[..., None, :] @ seen_BHSV).squeeze(-2))
    return torch.stack(outputs, 2)


def rotate(x_BHTK: Tensor, position_BT: Tensor, base: float = 10000.0) -> Tensor:
    """Rotary positions (Su et al. 2021, arXiv 2104.09864, eq. 34): turn the pairs (x_i, x_{i + K/2}) of each step by
    the angle ``position * base ** (-2 i / K)``, so that q . k depends on the difference of positions alone.

    Args:
        x_BHTK: queries or keys, K even.
        position_BT: integer positions; B may be 1 for all samples.
    """
    dtype = torch.promote_types(x_BHTK.dtype, torch.float32)  # bf16 cannot count beyond 256
    half = x_BHTK.shape[-1] // 2
    frequency = base ** (-torch.arange(half, device=x_BHTK.device, dtype=dtype) / half)
    angle = position_BT[:, None, :, None].to(dtype) * frequency
    cos, sin = angle.cos(), angle.sin()
    a, b = x_BHTK.to(dtype).chunk(2, -1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1).to(x_BHTK.dtype)


def positions(start_B: Tensor, reset_BT: Tensor, mask_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Position of each step within its own sequence, and the next free one after the last step.

    Padding takes no position; a reset starts again at 0; before the first reset counting goes on from ``start_B``.

    Returns:
        ``position_BT`` and ``next_B``, integers.
    """
    after_BT = mask_BT.long().cumsum(1)
    before_BT = after_BT - mask_BT.long()
    # the count at which the step's sequence began: it never falls, so the latest is the largest
    origin_BT = torch.where(reset_BT, before_BT, -start_B[:, None]).cummax(1).values
    return before_BT - origin_BT, after_BT[:, -1] - origin_BT[:, -1]


def visibility(live_BP: Tensor, reset_BT: Tensor, mask_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Which keys each step sees when P carried keys come before the T new ones (S = P + T).

    A step sees the live carried keys and new ones up to itself, of its own sequence and not padding. Itself it always
    sees: a softmax over nothing would be NaN, and the output of padding is thrown away.

    Args:
        live_BP: True for carried keys of the sequence that the samples are in.
        reset_BT: True where a new sequence begins.
        mask_BT: False for padding.

    Returns:
        ``visible_BTS``, and ``live_BS`` to carry on.
    """
    (_, P), T = live_BP.shape, reset_BT.shape[1]
    sequence_BT = reset_BT.long().cumsum(1)
    sequence_BS = F.pad(sequence_BT, (P, 0))  # what is carried belongs to sequence 0
    usable_BS = torch.cat([live_BP, mask_BT], 1)
    age_TS = torch.arange(T, device=reset_BT.device)[:, None] + P - torch.arange(P + T, device=reset_BT.device)
    same_BTS = sequence_BT[:, :, None] == sequence_BS[:, None]
    visible_BTS = (usable_BS[:, None] & same_BTS & (age_TS >= 0)) | (age_TS == 0)
    return visible_BTS, usable_BS & (sequence_BS == sequence_BT[:, -1:])
