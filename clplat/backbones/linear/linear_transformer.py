"""The linear transformer: causal linear attention, trained in parallel and run as a recurrent network."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from clplat.backbones.base import State, in_reference_form
from clplat.backbones.block import Stack
from clplat.backbones.linear.memory import Memory, Rule, head_width, padded
from clplat.backbones.ops.linear_attention import feature, linear_attention_chunk, linear_attention_loop


class LinearAttention(Rule):
    """Causal linear attention with the feature map phi(x) = elu(x) + 1 (eq. 7, 16-20)::

        S_t = S_{t-1} + phi(k) v'        z_t = z_{t-1} + phi(k)
        y = S_t' phi(q) / (z_t . phi(q))

    State: ``S`` (B, heads, K, V), the sum of key-value products, and ``z`` (B, heads, K), the sum of keys.
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
        q, k = feature(q_BHTK), padded(feature(k_BHTK), mask_BT)
        S, z = state["S"].to(v_BHTV.dtype), state["z"].to(v_BHTV.dtype)
        if in_reference_form():
            y, S, z = linear_attention_loop(q, k, v_BHTV, S, z, reset_BT)
        else:
            y, S, z = linear_attention_chunk(q, k, v_BHTV, S, z, reset_BT, self.chunk)
        return y, {"S": S, "z": z}

    def init_state(self, batch: int, *, device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
        S = super().init_state(batch, device=device, dtype=dtype)["S"]
        return {"S": S, "z": S.new_zeros(S.shape[:-1])}

    def state_size(self) -> int:
        return super().state_size() + self.heads * self.key


class LinearTransformer(Stack):
    """Linear transformer (Katharopoulos et al. 2020, arXiv 2006.16236), pre-norm blocks, GELU, no token embedding.

    (B, T, input_size) -> (B, T, dim), with a state of fixed size; see :class:`LinearAttention`. It knows the order of
    the steps only by causality: turning features by rotary positions would make the normaliser z . q change sign.

    Args:
        heads: attention heads in each block; dim is a multiple of heads.
        chunk: steps that are computed at once; the result is the same for all.
        conv: width in steps of a causal convolution with SiLU behind the projections; 0 for none, as in the paper.
    """

    def __init__(self, input_size: int, *, heads: int = 4, chunk: int = 64, conv: int = 0, **block: Any) -> None:
        def mixer(dim: int, number: int) -> Memory:
            size = head_width(dim, heads)
            return Memory(dim, LinearAttention(heads, size, size, chunk), conv=conv, gated=False, normed="none")

        super().__init__(input_size, mixer, **block)
