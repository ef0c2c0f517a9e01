"""Sliding-window attention, with a state of fixed size."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from clplat.backbones.base import State, in_reference_form, require
from clplat.backbones.block import Mixer, join_heads, split_heads
from clplat.backbones.ops.attention import (
    attention_weights,
    latest,
    positions,
    rotate,
    visibility,
    window_attention,
    window_attention_loop,
)
from clplat.backbones.seen import Seen


class WindowAttention(Mixer):
    """Causal multi-head attention of each step to itself and the ``window - 1`` steps before it (Child et al. 2019,
    arXiv 1904.10509; Beltagy et al. 2020, arXiv 2004.05150), with rotary positions: (B, T, D) -> (B, T, D).

    State: ``key`` and ``value`` (B, heads, window - 1, D / heads) of the last steps, keys already turned, zeros in
    front where a sequence has had fewer; ``live`` (B, window - 1), which they are; ``position`` (B,), the next one to
    give out.

    Args:
        dim: D.
        heads: number of heads; D / heads must be an even whole number.
        window: steps in sight, itself included; padding does not count.
    """

    attends = True

    def __init__(self, dim: int, heads: int, window: int) -> None:
        super().__init__()
        require(heads >= 1 and dim % (2 * heads) == 0, f"dim {dim} must be an even multiple of heads {heads}")
        require(window >= 1, f"window must be at least 1, not {window}")
        self.dim, self.heads, self.window = dim, heads, window
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)

    def forward(
        self, x_BTD: Tensor, state: State = None, *, reset_BT: Tensor | None = None, mask_BT: Tensor | None = None
    ) -> tuple[Tensor, State]:
        state, reset_BT = self._before(x_BTD, state, reset_BT)
        step_BT = torch.ones_like(reset_BT) if mask_BT is None else mask_BT
        (q, k, v), next_B = self._project(x_BTD, state, reset_BT, step_BT)
        y_BTD = self.out(join_heads(self.attend(q, k, v, state["live"], reset_BT, mask_BT)))

        over_BT = reset_BT.long().cumsum(1)  # sequences that have begun
        live_BS = torch.cat([state["live"] & (over_BT[:, -1:] == 0), step_BT & (over_BT == over_BT[:, -1:])], 1)
        index_BN, live_BN = latest(live_BS, self.window - 1)
        k, v = (
            x.take_along_dim(index_BN[:, None, :, None], 2).masked_fill(~live_BN[:, None, :, None], 0) for x in (k, v)
        )
        return y_BTD, {"key": k, "value": v, "live": live_BN, "position": next_B}

    def look(
        self, x_BTD: Tensor, state: State = None, *, reset_BT: Tensor | None = None, mask_BT: Tensor | None = None
    ) -> Seen:
        state, reset_BT = self._before(x_BTD, state, reset_BT)
        step_BT = torch.ones_like(reset_BT) if mask_BT is None else mask_BT
        (q, k, v), _ = self._project(x_BTD, state, reset_BT, step_BT)
        k, v, visible_BTS = self.in_sight(k, v, visibility(state["live"], reset_BT, step_BT, self.window)[0])
        return Seen(x_BTD, k, v, attention_weights(q, k, visible_BTS))

    def in_sight(self, k: Tensor, v: Tensor, visible_BTS: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Keys and values that steps may see, the steps' own last, and who sees whom."""
        return k, v, visible_BTS

    def _before(self, x_BTD: Tensor, state: State, reset_BT: Tensor | None) -> tuple[State, Tensor]:
        if state is None:
            state = self.init_state(len(x_BTD), device=x_BTD.device, dtype=x_BTD.dtype)
        return state, x_BTD.new_zeros(x_BTD.shape[:2], dtype=torch.bool) if reset_BT is None else reset_BT

    def _project(
        self, x_BTD: Tensor, state: State, reset_BT: Tensor, step_BT: Tensor
    ) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor]:
        """Queries, the carried and the new keys and values, and the next position."""
        q, k, v = (split_heads(part, self.heads) for part in self.qkv(x_BTD).chunk(3, -1))
        position_BT, next_B = positions(state["position"], reset_BT, step_BT)
        q, k = rotate(q, position_BT), rotate(k, position_BT)
        k, v = torch.cat([state["key"].to(k.dtype), k], 2), torch.cat([state["value"].to(v.dtype), v], 2)
        return (q, k, v), next_B

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, live_BP: Tensor, reset_BT: Tensor, mask_BT: Tensor | None
    ) -> Tensor:
        """Attention of the T steps to the carried and the new keys, (B, heads, T, D / heads)."""
        form = window_attention_loop if in_reference_form() else window_attention
        return form(q, k, v, live_BP, reset_BT, mask_BT, self.window)

    def init_state(self, batch: int, *, device: torch.device, dtype: torch.dtype) -> State:
        key = torch.zeros((batch, self.heads, self.window - 1, self.dim // self.heads), device=device, dtype=dtype)
        return {
            "key": key,
            "value": key.clone(),
            "live": torch.zeros((batch, self.window - 1), device=device, dtype=torch.bool),
            "position": torch.zeros(batch, device=device, dtype=torch.long),
        }

    def state_size(self, T: int) -> int:
        return (self.window - 1) * (2 * self.dim + 1) + 1
