"""LightNet: linear attention whose keys are normalised over the steps so far."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from clplat.backbones.base import State, in_reference_form
from clplat.backbones.block import Stack, join_heads, split_heads
from clplat.backbones.linear.memory import Memory, Rule, head_width, padded
from clplat.backbones.ops.backend import Backend, channel_decay
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
        last_BTD = torch.cat([before_BD[:, None], z_BTD[:, :-1]], 1)
        first_BTD = (
            last_BTD <= LOW / 2
        )  # S is zero there, and where z is another sequence's: no decay is as good as any
        if reset_BT is not None:
            first_BTD = first_BTD | reset_BT[..., None]
        g_BTD = (last_BTD - z_BTD).masked_fill(first_BTD, 0)
        k, g = (split_heads(part, self.heads) for part in ((x_BTD - z_BTD).exp(), g_BTD))
        q, k = F.silu(q_BHTK), padded(k, mask_BT)
        y_BHTV, S = channel_decay(q, k, v_BHTV, g, S, reset_BT, self.chunk)
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
        backend: whose kernels compute: torch: ours; fla: flash-linear-attention's; auto: those where they can.
    """

    def __init__(
        self, input_size: int, *, heads: int = 4, chunk: int = 64, backend: Backend = "auto", **block: Any
    ) -> None:
        def mixer(dim: int, number: int) -> Memory:
            size = head_width(dim, heads)
            return Memory(dim, Additive(heads, size, size, chunk), normed="all", backend=backend)

        super().__init__(input_size, mixer, **block)
