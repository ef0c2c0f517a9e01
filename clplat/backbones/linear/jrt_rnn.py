"""JRT-RNN: linear attention that reads the beginning of a sequence as a whole, then goes on step by step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from clplat.backbones.base import State, in_reference_form, require
from clplat.backbones.block import Mixer, Stack, join_heads, split_heads
from clplat.backbones.linear.memory import head_width, padded
from clplat.backbones.ops.attention import positions
from clplat.backbones.ops.prefix import prefix_attention, prefix_attention_loop


def taylor(x: Tensor) -> Tensor:
    """Features of which the product is the second-order Taylor series of an exponential: ``taylor(q) . taylor(k) =
    1 + s + s^2 / 2`` with ``s = q . k / sqrt(F)``; F numbers become 1 + F + F^2."""
    F = x.shape[-1]
    square = (x[..., :, None] * x[..., None, :]).flatten(-2)
    return torch.cat([torch.ones_like(x[..., :1]), x / F**0.25, square / (2 * F) ** 0.5], -1)


class PrefixLinearAttention(Mixer):
    """Linear attention over the steps so far and, by keys and values of another projection, over all of the first M
    steps of a sequence: (B, T, D) -> (B, T, D), for each head::

        q, k, v, e, u = W x          q, k and e with F numbers, each through ``taylor``
        S_i = sum_{j <= i} k_j [v_j, 1]' + sum_{j <= M} e_j [u_j, 1]'
        [a_i, c_i] = S_i' q_i                                            y_i = a_i / c_i

    A step within the first M sees those of the call it is in, and of the calls before: to read a beginning as a whole,
    give it in one call.

    State: ``S`` (B, heads, 1 + F + F^2, K + 1), kept in float32 at least, and ``position`` (B,), steps so far.

    Args:
        dim: D.
        heads: number of heads; divides D.
        features: F.
        prefix: M.
        chunk: steps that are computed at once.
    """

    def __init__(self, dim: int, heads: int, features: int, prefix: int, chunk: int = 64) -> None:
        super().__init__()
        require(features >= 1, f"features must be at least 1, not {features}")
        require(prefix >= 0, f"prefix must be a number of steps, not {prefix}")
        require(chunk >= 1, f"chunk must be at least 1, not {chunk}")
        self.heads, self.size = heads, head_width(dim, heads)
        self.features, self.prefix, self.chunk = features, prefix, chunk
        self.sizes = [features * heads] * 3 + [dim] * 2
        self.project = nn.Linear(dim, sum(self.sizes))
        self.out = nn.Linear(dim, dim)

    def forward(
        self, x_BTD: Tensor, state: State = None, *, reset_BT: Tensor | None = None, mask_BT: Tensor | None = None
    ) -> tuple[Tensor, State]:
        B, T, _ = x_BTD.shape
        dtype = torch.promote_types(x_BTD.dtype, torch.float32)
        if state is None:
            state = self.init_state(B, device=x_BTD.device, dtype=dtype)
        none_BT = x_BTD.new_zeros((B, T), dtype=torch.bool)
        live_BT = ~none_BT if mask_BT is None else mask_BT
        position_BT, next_B = positions(state["position"], none_BT if reset_BT is None else reset_BT, live_BT)
        first_BT = live_BT & (position_BT < self.prefix)

        q, k, e, v, u = (split_heads(x.to(dtype), self.heads) for x in self.project(x_BTD).split(self.sizes, -1))
        with torch.autocast(x_BTD.device.type, enabled=False):
            q, k, e = taylor(q), padded(taylor(k), mask_BT), padded(taylor(e), first_BT)
            v, u = (torch.cat([x, torch.ones_like(x[..., :1])], -1) for x in (v, u))
            S = state["S"].to(dtype)
            if in_reference_form():
                read, S = prefix_attention_loop(q, k, v, e, u, S, reset_BT)
            else:
                read, S = prefix_attention(q, k, v, e, u, S, reset_BT, self.chunk)
            y_BHTK = read[..., :-1] / (read[..., -1:] + 1e-12)  # at least 1/2, and 0 only at padding
        return self.out(join_heads(y_BHTK).to(x_BTD.dtype)), {"S": S, "position": next_B}

    def init_state(self, batch: int, *, device: torch.device, dtype: torch.dtype) -> State:
        shape = (batch, self.heads, 1 + self.features + self.features**2, self.size + 1)
        return {
            "S": torch.zeros(shape, device=device, dtype=torch.promote_types(dtype, torch.float32)),
            "position": torch.zeros(batch, device=device, dtype=torch.long),
        }

    def state_size(self, T: int) -> int:
        return self.heads * (1 + self.features + self.features**2) * (self.size + 1) + 1


class JRTRNN(Stack):
    """JRT-RNN (Arora et al. 2024, Just read twice, arXiv 2407.05483): prefix linear attention in every block.

    (B, T, input_size) -> (B, T, dim), with a state of fixed size; see :class:`PrefixLinearAttention`. It is not causal
    within the first steps of a sequence, and causal behind them. The authors' networks put such layers between short
    convolutions and attention within a window, and also train the prefix by a masked loss; neither is here.

    Args:
        heads: attention heads in each block; dim is a multiple of heads.
        features: F, width of a head's queries and keys before they become 1 + F + F^2 features.
        prefix: M, steps at the beginning of each sequence that are read as a whole; 0 for causal linear attention.
        chunk: steps that are computed at once; the result is the same for all.
    """

    causal = False

    def __init__(
        self,
        input_size: int,
        *,
        heads: int = 4,
        features: int = 8,
        prefix: int = 16,
        chunk: int = 64,
        **block: Any,
    ) -> None:
        def mixer(dim: int, number: int) -> PrefixLinearAttention:
            return PrefixLinearAttention(dim, heads, features, prefix, chunk)

        super().__init__(input_size, mixer, **block)
