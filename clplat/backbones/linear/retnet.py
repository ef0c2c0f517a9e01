"""The retentive network: linear attention with rotary positions and a fixed decay for each head."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from clplat.backbones.base import State, require
from clplat.backbones.block import Stack
from clplat.backbones.linear.memory import Memory, Rule, head_width, padded
from clplat.backbones.ops.attention import positions, rotate
from clplat.backbones.ops.backend import Backend, scalar_decay


class Retention(Rule):
    """Retention at one decay for each head (eq. 5-8)::

        q, k = rotary(q), rotary(k) / sqrt(K)
        S_t = c_h S_{t-1} + k v'          c_h = 1 - 2^(-5 - h), h = 0 .. H - 1
        y = S_t' q

    State: ``S`` (B, heads, K, V), and ``position`` (B,), the next one to give out.
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
        B, H, T, K = k_BHTK.shape
        none_BT = torch.zeros((B, T), device=v_BHTV.device, dtype=torch.bool)
        position_BT, next_B = positions(
            state["position"], none_BT if reset_BT is None else reset_BT, ~none_BT if mask_BT is None else mask_BT
        )
        q, k = rotate(q_BHTK, position_BT), padded(rotate(k_BHTK, position_BT) * K**-0.5, mask_BT)
        g_H = torch.log1p(-(2.0 ** (-5 - torch.arange(H, device=q.device, dtype=q.dtype))))
        g = padded(g_H[None, :, None, None].expand(B, -1, T, -1), mask_BT)[..., 0]
        S = state["S"].to(v_BHTV.dtype)
        y_BHTV, S = scalar_decay(q, k, v_BHTV, g, S, reset_BT, self.chunk)
        return y_BHTV, {"S": S, "position": next_B}

    def init_state(self, batch: int, *, device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
        first = torch.zeros(batch, device=device, dtype=torch.long)
        return {**super().init_state(batch, device=device, dtype=dtype), "position": first}

    def state_size(self) -> int:
        return super().state_size() + 1


class RetNet(Stack):
    """Retentive network (Sun et al. 2023, arXiv 2307.08621).

    (B, T, input_size) -> (B, T, dim), with a state of fixed size; see :class:`Retention`. As in the paper (section 2.2)
    values are twice as wide as keys, and what is read passes a norm for each head and a SiLU gate; the norm is RMS, as
    in the authors' code. Assumed: positions turn by the angles of the transformer here.

    Args:
        heads: retention heads in each block; dim is an even multiple of heads.
        expand: width of the values in units of dim.
        chunk: steps that are computed at once; the result is the same for all.
        conv: width in steps of a causal convolution with SiLU behind the projections; 0 for none, as in the paper.
        backend: whose kernels compute: torch: ours; fla: flash-linear-attention's; auto: those where they can.
    """

    def __init__(
        self,
        input_size: int,
        *,
        heads: int = 4,
        expand: float = 2.0,
        chunk: int = 64,
        conv: int = 0,
        backend: Backend = "auto",
        **block: Any,
    ) -> None:
        def mixer(dim: int, number: int) -> Memory:
            key, value = head_width(dim, heads), head_width(dim, heads, expand)
            require(key % 2 == 0, f"dim {dim} must be an even multiple of heads {heads}")
            return Memory(dim, Retention(heads, key, value, chunk), conv=conv, backend=backend)

        super().__init__(input_size, mixer, **block)
