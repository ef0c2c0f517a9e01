"""RAT: a gated recurrence within segments, and attention over the segments."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from clplat.backbones.base import State, in_reference_form, require
from clplat.backbones.block import Mixer, Stack, join_heads, split_heads
from clplat.backbones.linear.memory import head_width, padded
from clplat.backbones.ops.attention import attention_weights, positions, rotate
from clplat.backbones.ops.scan import diagonal, diagonal_loop
from clplat.backbones.ops.summaries import first, summary_attention, summary_attention_loop, take
from clplat.backbones.seen import Seen


class SegmentAttention(Mixer):
    """Recurrence in segments of L steps, attention between them: (B, T, D) -> (B, T, D)::

        z = sigmoid(W_z x)    g = sigmoid(W_g x + b)    q, k, v = W x, with few heads of q and k, each for several
        u_t = g_t u_{t-1} + (1 - g_t) k_t      w_t = g_t w_{t-1} + (1 - g_t) v_t      from 0 in each segment
        y_t = softmax(q_t . [u of the last step of each earlier segment, u_t] / sqrt(K)) [w of these, w_t]
        out = W_o (z * y)

    q and u are turned by rotary positions that count segments. Segments are counted from each sequence's own start.

    State, after S steps: ``key`` and ``value`` (B, heads, S // L, K), u (turned) and w of the segments that have ended,
    zeros behind the last; ``running_key`` and ``running_value`` (B, heads, K); ``position`` (B,), steps of the present
    sequence so far; and ``rest`` (B, S % L), which holds nothing: its length says when there must be room for one
    segment more. Kept in float32 at least.

    Args:
        dim: D.
        heads: number of heads; D / heads must be an even whole number.
        groups: heads of q and k; divides heads.
        segment: L.
    """

    attends = True

    def __init__(self, dim: int, heads: int, groups: int, segment: int) -> None:
        super().__init__()
        size = head_width(dim, heads)
        require(size % 2 == 0, f"dim {dim} must be an even multiple of heads {heads}")
        require(groups >= 1 and heads % groups == 0, f"heads {heads} must be a multiple of groups {groups}")
        require(segment >= 1, f"segment must be at least 1, not {segment}")
        self.heads, self.groups, self.size, self.segment = heads, groups, size, segment
        self.project = nn.Linear(dim, 3 * dim + 2 * groups * size)
        self.out = nn.Linear(dim, dim)
        if segment > 1:  # as long as a gate is open, it remembers 1 to L steps (Tallec & Ollivier 2018, eq. 16)
            with torch.no_grad():
                self.project.bias[dim : 2 * dim].uniform_(1, segment - 1).log_()

    def forward(
        self, x_BTD: Tensor, state: State = None, *, reset_BT: Tensor | None = None, mask_BT: Tensor | None = None
    ) -> tuple[Tensor, State]:
        B, T, _ = x_BTD.shape
        L, dtype = self.segment, torch.promote_types(x_BTD.dtype, torch.float32)
        if state is None:
            state = self.init_state(B, device=x_BTD.device, dtype=dtype)
        state = {name: part.to(dtype) if part.is_floating_point() else part for name, part in state.items()}
        reset_BT = x_BTD.new_zeros((B, T), dtype=torch.bool) if reset_BT is None else reset_BT
        mask_BT = x_BTD.new_ones((B, T), dtype=torch.bool) if mask_BT is None else mask_BT
        position_BT, next_B = positions(state["position"], reset_BT, mask_BT)
        sequence_BT = reset_BT.long().cumsum(1)

        z_BTD, q, u, w, turned = self._project(x_BTD, state, position_BT, reset_BT, mask_BT)
        with torch.autocast(x_BTD.device.type, enabled=False):
            end_BT = mask_BT & (position_BT % L == L - 1)
            P, more = state["key"].shape[2], (state["rest"].shape[1] + T) // L
            live_BP = torch.arange(P, device=x_BTD.device) < (state["position"] // L)[:, None]
            known = (end_BT, sequence_BT, state["key"], state["value"], live_BP)
            if in_reference_form():
                y_BHTK = summary_attention_loop(q, turned, w, *known)
            else:
                y_BHTK = summary_attention(q, turned, w, *known, most=(T + L - 1) // L)

        last_B1 = sequence_BT[:, -1:]
        kept_BS = torch.cat([live_BP & (last_B1 == 0), end_BT & (sequence_BT == last_B1)], 1)
        step_BE = first(kept_BS, P + more)
        empty_B1E1 = ~kept_BS.gather(1, step_BE)[:, None, :, None]
        key, value = (
            take(torch.cat(parts, 2), step_BE).masked_fill(empty_B1E1, 0)
            for parts in ((state["key"], turned), (state["value"], w))
        )
        after = {
            "key": key,
            "value": value,
            "running_key": u[:, :, -1],
            "running_value": w[:, :, -1],
            "position": next_B,
            "rest": x_BTD.new_zeros((B, (state["rest"].shape[1] + T) % L), dtype=torch.bool),
        }
        return self.out(z_BTD.sigmoid() * join_heads(y_BHTK).to(x_BTD.dtype)), after

    def look(
        self, x_BTD: Tensor, state: State = None, *, reset_BT: Tensor | None = None, mask_BT: Tensor | None = None
    ) -> Seen:
        """The key of a step is the summary of its segment up to it; steps that end a segment, and itself, are seen."""
        whole = state is None and reset_BT is None and mask_BT is None
        require(whole, "attention to summaries is told of whole sequences without padding")
        (B, T, _), dtype = x_BTD.shape, torch.promote_types(x_BTD.dtype, torch.float32)
        state = self.init_state(B, device=x_BTD.device, dtype=dtype)
        none_BT = x_BTD.new_zeros((B, T), dtype=torch.bool)
        position_BT = torch.arange(T, device=x_BTD.device).expand(B, T)
        z_BTD, q, _, w, turned = self._project(x_BTD, state, position_BT, none_BT, ~none_BT)
        end_BT = position_BT % self.segment == self.segment - 1
        itself_TT = torch.eye(T, dtype=torch.bool, device=x_BTD.device)
        visible_BTS = end_BT[:, None] & itself_TT.logical_not().tril() | itself_TT
        return Seen(x_BTD, turned, w, attention_weights(q, turned, visible_BTS), gate=z_BTD.sigmoid())

    def _project(
        self, x_BTD: Tensor, state: State, position_BT: Tensor, reset_BT: Tensor, mask_BT: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """The gate z of the output, (B, T, D); queries, running summaries u and w, and u turned, (B, heads, T, K)."""
        D, few, dtype = x_BTD.shape[2], self.groups * self.size, torch.promote_types(x_BTD.dtype, torch.float32)
        z_BTD, g, v, q, k = self.project(x_BTD).split([D, D, D, few, few], -1)
        with torch.autocast(x_BTD.device.type, enabled=False):
            g, v = (split_heads(part.to(dtype), self.heads) for part in (g, v))
            q, k = (
                split_heads(part.to(dtype), self.groups).repeat_interleave(self.heads // self.groups, 1)
                for part in (q, k)
            )
            u, w = self.summarise(g, k, v, state, position_BT % self.segment == 0, reset_BT, mask_BT)
            q, turned = (rotate(part, position_BT // self.segment) for part in (q, u))
        return z_BTD, q, u, w, turned

    def summarise(
        self,
        g_BHTK: Tensor,
        k_BHTK: Tensor,
        v_BHTK: Tensor,
        state: State,
        begins_BT: Tensor,
        reset_BT: Tensor,
        mask_BT: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """The running summaries u and w of keys and values."""
        kept, new = g_BHTK.sigmoid(), (-g_BHTK).sigmoid()
        kept = padded(kept.masked_fill(begins_BT[:, None, :, None], 0), mask_BT, 1.0)
        scan = diagonal_loop if in_reference_form() else diagonal
        u_BTHK, w_BTHK = (
            scan(kept.transpose(1, 2), padded(new * x, mask_BT).transpose(1, 2), state[name], reset_BT)[0]
            for x, name in ((k_BHTK, "running_key"), (v_BHTK, "running_value"))
        )
        return u_BTHK.transpose(1, 2), w_BTHK.transpose(1, 2)

    def init_state(self, batch: int, *, device: torch.device, dtype: torch.dtype) -> State:
        running = torch.zeros(
            (batch, self.heads, self.size), device=device, dtype=torch.promote_types(dtype, torch.float32)
        )
        return {
            "key": running[:, :, None][:, :, :0],
            "value": running[:, :, None][:, :, :0].clone(),
            "running_key": running,
            "running_value": running.clone(),
            "position": torch.zeros(batch, device=device, dtype=torch.long),
            "rest": torch.zeros((batch, 0), device=device, dtype=torch.bool),
        }

    def state_size(self, T: int) -> int:
        return 2 * self.heads * self.size * (T // self.segment + 1) + 1 + T % self.segment


class RAT(Stack):
    """RAT (Wei et al. 2025, arXiv 2507.04416): between a recurrent network and attention.

    (B, T, input_size) -> (B, T, dim). The state grows by one key and value every L steps; see
    :class:`SegmentAttention`. With L = 1 it is attention, with L no less than T a gated recurrent network. As in the
    authors' code heads of queries and keys are fewer than those of values, and gates begin by remembering 1 to L steps;
    projections have biases here.

    Args:
        heads: attention heads in each block; dim is an even multiple of heads.
        groups: heads of queries and keys, each used by several heads; divides heads.
        segment: L, steps in a segment; the model depends on it.
    """

    def __init__(self, input_size: int, *, heads: int = 4, groups: int = 2, segment: int = 16, **block: Any) -> None:
        super().__init__(input_size, lambda dim, number: SegmentAttention(dim, heads, groups, segment), **block)
