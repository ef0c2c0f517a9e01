"""Causal softmax attention, dense, by chunks of keys and within a window; rotary positions; and who may see whom
across resets, padding and carried keys."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

Weighing = Literal["softmax", "sigmoid", "relu"]


def weigh(scores: Tensor, visible: Tensor, weighing: Weighing = "softmax") -> Tensor:
    """Weights of keys from their scores, which are already divided by sqrt(K); zero where a key is not visible.

    Args:
        scores, visible: (..., S).
        weighing: softmax; sigmoid, each key by itself (without sinks in Gu et al. 2024, arXiv 2410.10781); relu,
            divided by the number of visible keys (Wortsman et al. 2023, arXiv 2309.08586).
    """
    if weighing == "softmax":
        return scores.masked_fill(~visible, -torch.inf).softmax(-1)
    if weighing == "sigmoid":
        return scores.sigmoid() * visible
    return scores.relu() * visible / visible.sum(-1, keepdim=True)


def attention_weights(
    q_BHTK: Tensor, k_BHSK: Tensor, visible_BTS: Tensor | None = None, weighing: Weighing = "softmax"
) -> Tensor:
    """What each query weighs each key with, (B, H, T, S); see :func:`weigh`. None: S = T and s <= t."""
    if visible_BTS is None:
        visible_BTS = q_BHTK.new_ones((1, q_BHTK.shape[2], k_BHSK.shape[2]), dtype=torch.bool).tril()
    return weigh(q_BHTK @ k_BHSK.mT / q_BHTK.shape[-1] ** 0.5, visible_BTS[:, None], weighing)


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


def attention_loop(
    q_BHTK: Tensor,
    k_BHSK: Tensor,
    v_BHSV: Tensor,
    visible_BTS: Tensor | None = None,
    weighing: Weighing = "softmax",
) -> Tensor:
    """The naive reference of :func:`attention`, and of :func:`attention_weights` times v: one query at a time."""
    outputs = []
    for t in range(q_BHTK.shape[2]):
        scores_BHS = (k_BHSK @ q_BHTK[:, :, t, :, None]).squeeze(-1) / q_BHTK.shape[-1] ** 0.5
        if visible_BTS is None:
            past_BHS = scores_BHS[..., : t + 1]
            weights_BHS = weigh(past_BHS, torch.ones_like(past_BHS, dtype=torch.bool), weighing)
        else:
            weights_BHS = weigh(scores_BHS, visible_BTS[:, None, t], weighing)
        seen_BHSV = v_BHSV[:, :, : weights_BHS.shape[-1]]
        outputs.append((weights_BHS[..., None, :] @ seen_BHSV).squeeze(-2))
    return torch.stack(outputs, 2)


def attention_chunks(
    q_BHTK: Tensor, k_BHSK: Tensor, v_BHSV: Tensor, visible_BTS: Tensor | None = None, chunk: int = 64
) -> Tensor:
    """Equal to :func:`attention`, over chunks of C keys, so that (T, C) scores exist at a time instead of (T, S): in
    the backward pass as well, which makes each chunk's anew.

    A running maximum m, sum z and weighted sum a of the values are put right whenever the maximum grows (Milakov and
    Gimelshein 2018, arXiv 1805.02867)::

        m' = max(m, max_j s_j)    z' = e^(m - m') z + sum_j e^(s_j - m')    a' = e^(m - m') a + sum_j e^(s_j - m') v_j

    Args:
        chunk: C.
    """
    T, S = q_BHTK.shape[2], k_BHSK.shape[2]
    q_BHTK = q_BHTK / q_BHTK.shape[-1] ** 0.5
    if visible_BTS is None:
        visible_BTS = q_BHTK.new_ones((1, T, S), dtype=torch.bool).tril()
    m = q_BHTK.new_full((*q_BHTK.shape[:3], 1), torch.finfo(q_BHTK.dtype).min)
    z, a = torch.zeros_like(m), torch.zeros_like(q_BHTK[..., :1]) * v_BHSV[:, :, :1]

    def more(k: Tensor, v: Tensor, visible_BTC: Tensor, m: Tensor, z: Tensor, a: Tensor) -> tuple[Tensor, ...]:
        scores = (q_BHTK @ k.mT).masked_fill(~visible_BTC[:, None], -torch.inf)
        top = torch.maximum(m, scores.detach().amax(-1, keepdim=True))  # it cancels out, and so does its gradient
        weights, fade = (scores - top).exp(), (m - top).exp()
        return top, fade * z + weights.sum(-1, keepdim=True), fade * a + weights @ v

    for k, v, visible in zip(
        *(x.split(chunk, -2) for x in (k_BHSK, v_BHSV)), visible_BTS.split(chunk, -1), strict=True
    ):
        m, z, a = checkpoint(more, k, v, visible, m, z, a, use_reentrant=False)
    return a / z


def window_attention(
    q_BHTK: Tensor,
    k_BHSK: Tensor,
    v_BHSV: Tensor,
    live_BP: Tensor,
    reset_BT: Tensor,
    mask_BT: Tensor | None,
    window: int,
    block: int = 64,
) -> Tensor:
    """Attention of each step to itself and the ``window - 1`` steps of its own sequence before it.

    Padding does not count as a step. The cost is T times the window and not T squared: queries are cut into blocks,
    and each block takes the keys in its reach. Padding is sorted out of the way first.

    Args:
        q_BHTK: queries.
        k_BHSK: keys, P = window - 1 carried ones, the living ones last, and T new ones.
        v_BHSV: values.
        live_BP: True for carried keys of the sequence that the samples are in.
        reset_BT: True where a new sequence begins.
        mask_BT: False for padding; None: there is none.
        window: steps in sight.
        block: queries in a block, or as many as the window if that is more.

    Returns:
        (B, H, T, V); what stands where a step is padding means nothing.
    """
    P, T = window - 1, q_BHTK.shape[2]
    C = min(T, max(block, window))
    sequence_BS = torch.cat([torch.where(live_BP, 0, -1), reset_BT.long().cumsum(1)], 1)  # -1: nobody's
    order_BT = None
    if mask_BT is not None:
        usable_BS = torch.cat([live_BP, mask_BT], 1)
        order_BT, order_BS = (x.long().argsort(dim=1, stable=True) for x in (mask_BT, usable_BS))
        sequence_BS = sequence_BS.masked_fill(~usable_BS, -1).gather(1, order_BS)
        q_BHTK = q_BHTK.take_along_dim(order_BT[:, None, :, None], 2)
        k_BHSK, v_BHSV = (x.take_along_dim(order_BS[:, None, :, None], 2) for x in (k_BHSK, v_BHSV))

    more = -T % C
    q_BHNCK = F.pad(q_BHTK, (0, 0, 0, more)).unflatten(2, (-1, C))
    k_BHNRK, v_BHNRV = (F.pad(x, (0, 0, 0, more)).unfold(2, P + C, C).mT for x in (k_BHSK, v_BHSV))
    sequence_BNR = F.pad(sequence_BS, (0, more), value=-1).unfold(1, P + C, C)
    steps = torch.arange(P + C, device=q_BHTK.device)
    age_CR = steps[P:, None] - steps
    visible_BNCR = (sequence_BNR[..., P:, None] == sequence_BNR[..., None, :]) & (sequence_BNR >= 0)[..., None, :]
    visible_BNCR = (visible_BNCR & (age_CR >= 0) & (age_CR < window)) | (age_CR == 0)

    def rows(x: Tensor) -> Tensor:  # fused kernels take four dimensions
        return x.transpose(1, 2).flatten(0, 1)

    y = F.scaled_dot_product_attention(
        rows(q_BHNCK), rows(k_BHNRK), rows(v_BHNRV), attn_mask=visible_BNCR.flatten(0, 1)[:, None]
    )
    y_BHTV = y.unflatten(0, visible_BNCR.shape[:2]).transpose(1, 2).flatten(2, 3)[:, :, :T]
    return y_BHTV if order_BT is None else y_BHTV.take_along_dim(order_BT.argsort(1)[:, None, :, None], 2)


def window_attention_loop(
    q_BHTK: Tensor,
    k_BHSK: Tensor,
    v_BHSV: Tensor,
    live_BP: Tensor,
    reset_BT: Tensor,
    mask_BT: Tensor | None,
    window: int,
) -> Tensor:
    """The naive reference of :func:`window_attention`."""
    mask_BT = torch.ones_like(reset_BT) if mask_BT is None else mask_BT
    return attention_loop(q_BHTK, k_BHSK, v_BHSV, visibility(live_BP, reset_BT, mask_BT, window)[0])


def latest(live_BS: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Where the last n living entries stand, in order: indices (B, n), for ``take_along_dim``, and which are entries at
    all, (B, n): where fewer than n live, these come last."""
    index_BN = live_BS.long().argsort(dim=1, stable=True)[:, live_BS.shape[1] - n :]
    return index_BN, live_BS.gather(1, index_BN)


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


def visibility(live_BP: Tensor, reset_BT: Tensor, mask_BT: Tensor, window: int = 0) -> tuple[Tensor, Tensor]:
    """Which keys each step sees when P carried keys come before the T new ones (S = P + T).

    A step sees the live carried keys and new ones up to itself, of its own sequence and not padding. Itself it always
    sees: a softmax over nothing would be NaN, and the output of padding is thrown away.

    Args:
        live_BP: True for carried keys of the sequence that the samples are in.
        reset_BT: True where a new sequence begins.
        mask_BT: False for padding.
        window: a step sees that many steps, itself included; padding does not count. 0: all.

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
    if window:
        count_BS = usable_BS.long().cumsum(1)
        visible_BTS &= count_BS[:, P:, None] - count_BS[:, None] < window
    return visible_BTS, usable_BS & (sequence_BS == sequence_BT[:, -1:])
