"""LightNet: linear attention whose keys are normalised over the steps so far."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from clplat.backbones.base import State, in_reference_form
from clplat.backbones.block import Stack, join_heads, split_heads
from clplat.backbones.linear.memory import Memory, Rule, head_width, padded
from clplat.backbones.ops.channel_decay import channel_decay_chunk, channel_decay_loop
from clplat.backbones.ops.log_sums import LOW, log_sums, log_sums_loop


class Additive(Rule):
    """The additive recurrence: each channel of the keys is a softmax over all steps so far, without a decay that would
    depend on the order in which they came::

        q = silu(q)
        S_t = sum_{j <= t} exp(k_j - z_t) v_j'          z_t = log sum_{j <= t} exp(k_j)
            = diag(exp(z_{t-1} - z_t)) S_{t-1} + exp(k_t - z_t) v_t'
        y_t = S_t' q_t

    which is linear attention with a decay for each channel. State: ``S`` (B, heads, K, V), and ``z`` (B, heads * K).
    """

    def forward(
        self,
        q_BHTK: Tensor,
        k_BHTK: Tensor,
        v_BHTV: Tensor,
        gates_BTG: Tensor,
        state: State,
        reset_BT: Tensor | None,
        mask_BT: Tensor | None,
    ) -> tuple[Tensor, State]:
        x_BTD = join_heads(padded(k_BHTK, mask_BT, LOW))
        before_BD, S = state["z"].to(x_BTD.dtype), state["S"].to(x_BTD.dtype)
        z_BTD = (log_sums_loop if in_reference_form() else log_sums)(x_BTD, before_BD, reset_BT)
        g_BTD = torch.cat([before_BD[:, None], z_BTD[:, :-1]], 1) - z_BTD
        if reset_BT is not None:  # there S is zero, and the z before is another sequence's
            g_BTD = g_BTD.masked_fill(reset_BT[..., None], 0)
        k, g = (split_heads(part, self.heads) for part in ((x_BTD - z_BTD).exp(), g_BTD))
        q, k = F.silu(q_BHTK), padded(k, mask_BT)
        if in_reference_form():
            y_BHTV, S = channel_decay_loop(q, k, v_BHTV, g, S, reset_BT)
        else:
            y_BHTV, S = channel_decay_chunk(q, k, v_BHTV, g, S, reset_BT, self.chunk)
        return y_BHTV, {"S": S, "z": z_BTD[:, -1]}

    def init_state(self, batch: int, *, device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
        z = torch.full((batch, self.heads * self.key), LOW, device=device, dtype=dtype)
        return {**super().init_state(batch, device=device, dtype=dtype), "z": z}

    def state_size(self) -> int:
        return super().state_size() + self.heads * self.key


class LightNet(Stack):
    """LightNet (Qin et al. 2024, arXiv 2405.21022) for sequences, causal.

    (B, T, input_size) -> (B, T, dim), with a state of fixed size; see :class:`Additive`. What is read passes an RMS
    norm over all heads and a SiLU gate, and the keys themselves are the logits, as in the flash-linear-attention
    library's layer, whose gate is of low rank. Without the paper's position encodings and its scan over several
    dimensions at once: order is known by causality.

    Args:
        heads: in each block; dim is a multiple of heads.
        chunk: steps that are computed at once; the result is the same for all.
    """

    def __init__(self, input_size: int, *, heads: int = 4, chunk: int = 64, **block: Any) -> None:
        def mixer(dim: int, number: int) -> Memory:
            size = head_width(dim, heads)
            return Memory(dim, Additive(heads, size, size, chunk), whole=True)

        super().__init__(input_size, mixer, **block)
