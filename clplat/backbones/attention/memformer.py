"""The Memformer: slots of memory that are read by cross-attention and written one by one."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from clplat.backbones.attention.segments import Attention, Layer, SegmentRecurrent, causal
from clplat.backbones.base import State, require
from clplat.backbones.block import join_heads, split_heads
from clplat.backbones.dropout import Dropout
from clplat.backbones.ops.delta_rule import unit


class ReadingLayer(nn.Module):
    """A block with attention to a memory between its two halves: ``x = x + dropout(attention(norm(x), memory))``.

    Args:
        dim, heads, ratio, dropout: of the block.
    """

    def __init__(self, dim: int, heads: int, *, ratio: float, dropout: float) -> None:
        super().__init__()
        self.block = Layer(dim, heads, ratio=ratio, dropout=dropout)
        self.memory_norm, self.memory = nn.LayerNorm(dim), Attention(dim, heads)
        self.dropout = Dropout(dropout)

    def forward(self, x_BTD: Tensor, visible_BTT: Tensor, memory_BMD: Tensor) -> Tensor:
        x_BTD = self.block.mix(x_BTD, visible_BTT)
        all_BTM = torch.ones((*x_BTD.shape[:2], memory_BMD.shape[1]), dtype=torch.bool, device=x_BTD.device)
        x_BTD = x_BTD + self.dropout(self.memory(self.memory_norm(x_BTD), memory_BMD, all_BTM))
        return self.block.think(x_BTD)


class SlotAttention(nn.Module):
    """Writes memory slots m_i, each from itself and the steps x alone, (B, M, D) -> (B, M, D), for each head with
    K = D / heads::

        m_i' = W_o softmax(q(m_i) [k(m_i) k(x)]' / (tau sqrt(K))) [v(m_i) v(x)]
        m_i  = (m_i' + b_i) / |m_i' + b_i|

    Args:
        dim: D.
        heads: number of heads; divides D.
        slots: M.
        temperature: tau; the lower, the more a slot either keeps or takes.
    """

    def __init__(self, dim: int, heads: int, slots: int, temperature: float) -> None:
        super().__init__()
        self.heads, self.temperature = heads, temperature
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.bias = nn.Parameter(torch.randn(slots, dim))

    def forward(self, memory_BMD: Tensor, x_BTD: Tensor, live_BT: Tensor) -> Tensor:
        q, own_k, own_v = (split_heads(part, self.heads) for part in self.qkv(memory_BMD).chunk(3, -1))
        _, k, v = (split_heads(part, self.heads) for part in self.qkv(x_BTD).chunk(3, -1))
        q = q / (self.temperature * q.shape[-1] ** 0.5)
        scores = (q @ k.mT).masked_fill(~live_BT[:, None, None], -torch.inf)
        weights = torch.cat([(q * own_k).sum(-1, keepdim=True), scores], -1).softmax(-1)
        new = weights[..., :1] * own_v + weights[..., 1:] @ v
        return unit(self.out(join_heads(new)) + self.bias)


class Memformer(SegmentRecurrent):
    """Memformer (Wu et al. 2020, arXiv 2010.06891), a causal encoder with its memory.

    (B, T, input_size) -> (B, T, dim). Each block reads the M memory slots by cross-attention; the last block's vectors
    of a full segment are written to them, slot by slot and forgetting towards a learned bias, so that slots neither
    blow up nor mix; see :class:`SlotAttention`. The first memory is b / |b|. The memory is
    ``{"slots": (B, M, dim)}``, of length 1 each; see :class:`SegmentRecurrent` for the state.

    Assumed: the paper's encoder reads its segment in both directions and a decoder speaks; here the encoder is causal
    and its outputs are used. Slots and steps share the projections of keys and values. tau is not known from the paper
    beyond tau < 1. Pre-norm blocks with rotary positions.

    Args:
        slots: memory slots, M.
        temperature: tau of the writing, above 0.
    """

    def __init__(
        self,
        input_size: int,
        *,
        slots: int = 8,
        temperature: float = 0.25,
        **network: Any,
    ) -> None:
        super().__init__(input_size, ReadingLayer, **network)
        require(slots >= 1, f"slots must be at least 1, not {slots}")
        require(temperature > 0, f"temperature must be above 0, not {temperature}")
        dim = self.output_size
        self.write_norm, self.write = nn.LayerNorm(dim), SlotAttention(dim, self.heads, slots, temperature)

    def read(self, h_BLD: Tensor, live_BL: Tensor, memory: State) -> tuple[Tensor, State]:
        visible_BLL = causal(live_BL)
        for layer in self.layers:
            h_BLD = layer(h_BLD, visible_BLL, memory["slots"])
        return h_BLD, {"slots": self.write(memory["slots"], self.write_norm(h_BLD), live_BL)}

    def memory(self, batch: int, *, device: torch.device, dtype: torch.dtype) -> State:
        return {"slots": unit(self.write.bias).to(device=device, dtype=dtype).expand(batch, -1, -1)}

    def memory_size(self) -> int:
        return self.write.bias.numel()
