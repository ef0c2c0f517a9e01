"""Aaren: softmax attention by one query, run as a recurrent network."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from clplat.backbones.base import State, in_reference_form, require
from clplat.backbones.block import Mixer, Stack, join_heads, split_heads
from clplat.backbones.linear.memory import head_width
from clplat.backbones.ops.log_sums import LOW
from clplat.backbones.ops.running_softmax import Average, running_softmax_chunk, running_softmax_loop


class QueryAttention(Mixer):
    """Causal attention by a learned query that is the same for all steps: (B, T, D) -> (B, T, D), for each head::

        s_j = q . k_j / sqrt(K)          y_t = softmax(s_1 .. s_t) [v_1 .. v_t]

    State: ``max`` and ``sum`` (B, heads), and ``mean`` (B, heads, K), the weighted sum of the values: the m, c and a of
    running_softmax.py. They are kept in float32 at least.

    Args:
        dim: D.
        heads: number of heads; divides D.
        chunk: steps that are computed at once.
    """

    def __init__(self, dim: int, heads: int, chunk: int = 64) -> None:
        super().__init__()
        require(chunk >= 1, f"chunk must be at least 1, not {chunk}")
        self.heads, self.size, self.chunk = heads, head_width(dim, heads), chunk
        self.query = nn.Parameter(torch.randn(heads, self.size))
        self.kv = nn.Linear(dim, 2 * dim)
        self.out = nn.Linear(dim, dim)

    def forward(
        self, x_BTD: Tensor, state: State = None, *, reset_BT: Tensor | None = None, mask_BT: Tensor | None = None
    ) -> tuple[Tensor, State]:
        dtype = torch.promote_types(x_BTD.dtype, torch.float32)
        k, v = (split_heads(part, self.heads).to(dtype) for part in self.kv(x_BTD).chunk(2, -1))
        if state is None:
            state = self.init_state(len(x_BTD), device=x_BTD.device, dtype=dtype)
        before = Average(*(state[name].to(dtype) for name in ("max", "sum", "mean")))
        with torch.autocast(x_BTD.device.type, enabled=False):
            s_BHT = (k * self.query[:, None].to(dtype)).sum(-1) * self.size**-0.5
            if mask_BT is not None:
                s_BHT = s_BHT.masked_fill(~mask_BT[:, None], -torch.inf)
            if in_reference_form():
                y, after = running_softmax_loop(s_BHT, v, before, reset_BT)
            else:
                y, after = running_softmax_chunk(s_BHT, v, before, reset_BT, self.chunk)
        return self.out(join_heads(y).to(x_BTD.dtype)), {"max": after.m, "sum": after.c, "mean": after.a}

    def init_state(self, batch: int, *, device: torch.device, dtype: torch.dtype) -> State:
        dtype = torch.promote_types(dtype, torch.float32)
        nothing = torch.zeros((batch, self.heads, self.size), device=device, dtype=dtype)
        return {"max": nothing[..., 0] + LOW, "sum": nothing[..., 0].clone(), "mean": nothing}

    def state_size(self, T: int) -> int:
        return self.heads * (self.size + 2)


class Aaren(Stack):
    """Aaren (Feng et al. 2024, Attention as an RNN, arXiv 2405.13956), in this package's pre-norm blocks.

    (B, T, input_size) -> (B, T, dim), with a state of fixed size; see :class:`QueryAttention`. Assumed: one query for
    each head of each layer, learned as it is (the paper's passes a projection), from a normal distribution.

    Args:
        heads: attention heads in each block; dim is a multiple of heads.
        chunk: steps that are computed at once; the result is the same for all.
    """

    def __init__(self, input_size: int, *, heads: int = 4, chunk: int = 64, **block: Any) -> None:
        super().__init__(input_size, lambda dim, number: QueryAttention(dim, heads, chunk), **block)
