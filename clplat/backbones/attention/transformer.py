"""The causal transformer with a key-value state."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from clplat.backbones.attention.local import WindowAttention
from clplat.backbones.base import Prefix, State, in_reference_form, require
from clplat.backbones.block import Mixer, Stack, join_heads, split_heads
from clplat.backbones.ops.attention import (
    Weighing,
    attention,
    attention_chunks,
    attention_loop,
    attention_weights,
    positions,
    rotate,
    visibility,
)
from clplat.backbones.seen import Seen


class SelfAttention(Mixer):
    """Causal multi-head attention with rotary positions: (B, T, D) -> (B, T, D).

    State, after P steps: ``key`` and ``value`` (B, heads, P, D / heads), keys already turned; ``live`` (B, P), False
    for padding and for what lies before a sample's latest reset; ``position`` (B,), the next one to give out.

    Attributes:
        rotary: whether queries and keys know their positions.

    Args:
        dim: D.
        heads: number of heads; D / heads must be an even whole number, or a whole number where nothing is turned.
        keys_at_once: keys whose scores exist at a time, see :func:`attention_chunks`; 0 leaves it to torch.
        weighing: how scores become weights, see :func:`weigh`.
    """

    takes_prefix = True
    attends = True
    rotary: ClassVar[bool] = True

    def __init__(self, dim: int, heads: int, keys_at_once: int = 0, weighing: Weighing = "softmax") -> None:
        super().__init__()
        require(keys_at_once >= 0, f"keys_at_once must be 0 or a number of keys, not {keys_at_once}")
        require(weighing == "softmax" or not keys_at_once, f"keys_at_once is for softmax, not for weighing {weighing}")
        even = 2 if self.rotary else 1
        require(
            heads >= 1 and dim % (even * heads) == 0,
            f"dim {dim} must be {'an even' if self.rotary else 'a'} multiple of heads {heads}",
        )
        self.dim, self.heads, self.keys_at_once, self.weighing = dim, heads, keys_at_once, weighing
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)

    def forward(
        self, x_BTD: Tensor, state: State = None, *, reset_BT: Tensor | None = None, mask_BT: Tensor | None = None
    ) -> tuple[Tensor, State]:
        given, state = self.project(x_BTD, state, reset_BT, mask_BT)
        return self.out(join_heads(self.attend(*given))), state

    def look(
        self, x_BTD: Tensor, state: State = None, *, reset_BT: Tensor | None = None, mask_BT: Tensor | None = None
    ) -> Seen:
        (q, k, v, visible_BTS), _ = self.project(x_BTD, state, reset_BT, mask_BT)
        return Seen(x_BTD, k, v, attention_weights(q, k, visible_BTS, self.weighing))

    def project(
        self, x_BTD: Tensor, state: State, reset_BT: Tensor | None, mask_BT: Tensor | None
    ) -> tuple[tuple[Tensor, Tensor, Tensor, Tensor | None], State]:
        """Queries, keys, values and who sees whom, as :meth:`attend` takes them; and the state to carry on."""
        q, k, v = (split_heads(part, self.heads) for part in self.qkv(x_BTD).chunk(3, -1))
        B, T, _ = x_BTD.shape
        if state is None and reset_BT is None and mask_BT is None:  # the same positions and sight for all samples
            position_BT = torch.arange(T, device=x_BTD.device)[None]
            q, k = self.turn(q, position_BT), self.turn(k, position_BT)
            visible_BTS, live_BS = None, x_BTD.new_ones((B, T), dtype=torch.bool)
            next_B = position_BT.new_full((B,), T)
        else:
            state = self.init_state(B, device=k.device, dtype=k.dtype) if state is None else state
            reset_BT = x_BTD.new_zeros((B, T), dtype=torch.bool) if reset_BT is None else reset_BT
            mask_BT = x_BTD.new_ones((B, T), dtype=torch.bool) if mask_BT is None else mask_BT
            position_BT, next_B = positions(state["position"], reset_BT, mask_BT)
            visible_BTS, live_BS = visibility(state["live"], reset_BT, mask_BT)
            q, k = self.turn(q, position_BT), self.turn(k, position_BT)
            k = torch.cat([state["key"].to(k.dtype), k], 2)
            v = torch.cat([state["value"].to(v.dtype), v], 2)
        return (q, k, v, visible_BTS), {"key": k, "value": v, "live": live_BS, "position": next_B}

    def turn(self, x_BHTK: Tensor, position_BT: Tensor) -> Tensor:
        """Queries or keys with their positions."""
        return rotate(x_BHTK, position_BT) if self.rotary else x_BHTK

    def attend(self, q_BHTK: Tensor, k_BHSK: Tensor, v_BHSK: Tensor, visible_BTS: Tensor | None) -> Tensor:
        """What each query finds, (B, H, T, K)."""
        given = (q_BHTK, k_BHSK, v_BHSK, visible_BTS)
        if in_reference_form():
            return attention_loop(*given, self.weighing)
        if self.weighing != "softmax":
            return attention_weights(q_BHTK, k_BHSK, visible_BTS, self.weighing) @ v_BHSK
        return attention_chunks(*given, self.keys_at_once) if self.keys_at_once else attention(*given)

    def prefixed(self, prefix: Prefix) -> State:
        """As if keys and values had been carried here: all are seen, and they take no position from the steps."""
        key, value = (split_heads(part, self.heads) for part in prefix)
        B, P, _ = prefix[0].shape
        return {
            "key": key,
            "value": value,
            "live": torch.ones((B, P), device=key.device, dtype=torch.bool),
            "position": torch.zeros(B, device=key.device, dtype=torch.long),
        }

    def init_state(self, batch: int, *, device: torch.device, dtype: torch.dtype) -> State:
        empty = torch.zeros((batch, self.heads, 0, self.dim // self.heads), device=device, dtype=dtype)
        return {
            "key": empty,
            "value": empty.clone(),
            "live": torch.zeros((batch, 0), device=device, dtype=torch.bool),
            "position": torch.zeros(batch, device=device, dtype=torch.long),
        }

    def state_size(self, T: int) -> int:
        return T * (2 * self.dim + 1) + 1


class Transformer(Stack):
    """Causal transformer (Vaswani et al. 2017, arXiv 1706.03762), pre-norm, rotary positions, GELU, no token embedding.

    (B, T, input_size) -> (B, T, dim). The state holds the keys and values of every step so far, so it grows with T;
    see :class:`SelfAttention`. Two samples' states can be joined when they come from equally many steps. With a window
    the state is of fixed size and the cost linear in T; see :class:`~clplat.backbones.attention.local.WindowAttention`.

    Args:
        heads: attention heads in each block; dim is an even multiple of heads.
        window: steps that a step sees in each block, itself included; 0 for all.
        keys_at_once: keys whose scores exist at a time, for long sequences in little memory; 0 leaves it to torch.
        weighing: how scores become weights: softmax; sigmoid, each key by itself; relu, by the number of visible keys.
    """

    def __init__(
        self,
        input_size: int,
        *,
        heads: int = 4,
        window: int = 0,
        keys_at_once: int = 0,
        weighing: Literal["softmax", "sigmoid", "relu"] = "softmax",
        **block: Any,
    ) -> None:
        require(not window or weighing == "softmax", f"a window is for softmax, not for weighing {weighing}")

        def make_mixer(dim: int, number: int) -> Mixer:
            return WindowAttention(dim, heads, window) if window else SelfAttention(dim, heads, keys_at_once, weighing)

        super().__init__(input_size, make_mixer, **block)
