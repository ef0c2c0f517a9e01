"""Memoria: a transformer over segments with engrams that live, associate and die by use."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from clplat.backbones.attention.segments import Layer, SegmentRecurrent, causal
from clplat.backbones.base import State, require
from clplat.backbones.block import join_heads, split_heads
from clplat.backbones.dropout import Dropout
from clplat.backbones.ops.engrams import Engrams, add, remind, settle


class Abstractor(nn.Module):
    """What stays of L vectors X, as M of them: ``W_2 W_1 softmax(Q k(X)') v(X)`` with learned Q.

    Args:
        dim: width of the vectors.
        wide: width between W_1 and W_2.
        slots: M.
    """

    def __init__(self, dim: int, wide: int, slots: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(0.02 * torch.randn(slots, dim))
        self.key_value = nn.Linear(dim, 2 * dim)
        self.out = nn.Sequential(nn.Linear(dim, wide), nn.Linear(wide, dim))

    def forward(self, x_BLD: Tensor) -> Tensor:
        k_BLD, v_BLD = self.key_value(x_BLD).chunk(2, -1)
        found_BMD: Tensor = self.out((self.queries @ k_BLD.mT).softmax(-1) @ v_BLD)
        return found_BMD


class MemoryLayer(nn.Module):
    """A block with attention, by the same weights, to working memory and to engrams that are reminded::

        x = x + dropout(attention(norm(x)))
        x = x + dropout(memory(norm(x), working memory))
        x = x + dropout(memory(norm(x), reminded engrams))
        x = x + dropout(mlp(norm(x)))

    Args:
        dim, heads, ratio, dropout: of the block.
    """

    def __init__(self, dim: int, heads: int, *, ratio: float, dropout: float) -> None:
        super().__init__()
        self.block = Layer(dim, heads, ratio=ratio, dropout=dropout)
        self.working_norm, self.reminded_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.heads = heads
        self.query, self.key_value, self.out = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim), nn.Linear(dim, dim)
        self.dropout = Dropout(dropout)

    def remember(self, x_BLD: Tensor, memory_BED: Tensor, seen_BE: Tensor) -> tuple[Tensor, Tensor]:
        """What is found, nothing where nothing is seen, and the weight of each memory, the mean over heads and
        steps, (B, E)."""
        q = split_heads(self.query(x_BLD), self.heads)
        k, v = (split_heads(part, self.heads) for part in self.key_value(memory_BED).chunk(2, -1))
        scores = q @ k.mT / q.shape[-1] ** 0.5
        seen_B11E = seen_BE[:, None, None]
        weights = scores.masked_fill(~seen_B11E, torch.finfo(scores.dtype).min).softmax(-1) * seen_B11E
        y_BLD = self.out(join_heads(weights.to(v.dtype) @ v)) * seen_BE.any(1)[:, None, None]
        return y_BLD, weights.mean((1, 2))

    def forward(
        self,
        x_BLD: Tensor,
        visible_BLL: Tensor,
        working_BMD: Tensor,
        there_B: Tensor,
        engrams_BED: Tensor,
        seen_BE: Tensor,
    ) -> tuple[Tensor, Tensor]:
        x_BLD = self.block.mix(x_BLD, visible_BLL)
        there_BM = there_B[:, None].expand(working_BMD.shape[:2])
        x_BLD = x_BLD + self.dropout(self.remember(self.working_norm(x_BLD), working_BMD, there_BM)[0])
        found_BLD, weight_BE = self.remember(self.reminded_norm(x_BLD), engrams_BED, seen_BE)
        return self.block.think(x_BLD + self.dropout(found_BLD)), weight_BE


class Memoria(SegmentRecurrent):
    """Memoria (Park & Bak 2024, arXiv 2310.03052) with a causal transformer.

    (B, T, input_size) -> (B, T, dim). The last vectors of a segment become M vectors of working memory for the next,
    which remind it of engrams from short- and long-term memory; see :mod:`clplat.backbones.ops.engrams`. All blocks
    attend to both; see :class:`MemoryLayer`. When the segment is over, each engram that was reminded gains lifespan by
    its mean weight w_e in the attention, ``w_e * (number reminded) * extension``. The memory is ``hidden``
    (B, L, dim), the last vectors of the segment before, ``begun`` (B,), whether there was one, and E = short + long
    engrams: ``data`` (B, E, dim), ``kind`` and ``lifespan`` (B, E), ``counts`` (B, E, E); see
    :class:`SegmentRecurrent` for the state. Gradients reach the abstractor within a segment, and nothing before it.

    As the authors' code, but for two things that keep it a function of its inputs with a state of fixed size: of
    long-term engrams that fired with another equally often any may be found, not one at random, and beyond ``long``
    the oldest are lost. Their reset after many segments is the caller's. Attention heads, rotary positions and pre-norm
    blocks are as in the neighbours.

    Args:
        slots: vectors of working memory, M.
        short: capacity of short-term memory.
        long: capacity of long-term memory.
        remind_short: short-term engrams that are reminded.
        remind_long: long-term engrams that are reminded.
        depth: steps of each walk through long-term memory.
        lifespan: segments that a new engram has to live.
        extension: see above.
    """

    def __init__(
        self,
        input_size: int,
        *,
        slots: int = 4,
        short: int = 16,
        long: int = 32,
        remind_short: int = 8,
        remind_long: int = 8,
        depth: int = 4,
        lifespan: float = 5.0,
        extension: float = 8.0,
        **network: Any,
    ) -> None:
        super().__init__(input_size, MemoryLayer, **network)
        require(min(slots, short, long, remind_short, remind_long) >= 1, "all numbers of engrams must be at least 1")
        require(depth >= 0, f"depth must not be negative, as {depth}")
        self.short, self.places, self.depth = short, short + long, depth
        self.remind_short, self.remind_long = remind_short, remind_long
        self.lifespan, self.extension = lifespan, extension
        self.abstractor = Abstractor(self.output_size, int(self.ratio * self.output_size), slots)

    def read(self, h_BLD: Tensor, live_BL: Tensor, memory: State) -> tuple[Tensor, State]:
        there_B, working_BMD = memory["begun"], self.abstractor(memory["hidden"].to(h_BLD.dtype))
        engrams = add(Engrams(*(memory[name] for name in Engrams._fields)), working_BMD, there_B, self.lifespan)
        seen_BE, engrams = remind(engrams, self.remind_short, self.remind_long, self.depth)
        visible_BLL, data_BED, weights = causal(live_BL), engrams.data.to(h_BLD.dtype), []
        for layer in self.layers:
            h_BLD, weight_BE = layer(h_BLD, visible_BLL, working_BMD, there_B, data_BED, seen_BE)
            weights.append(weight_BE.detach())
        gained_BE = torch.stack(weights).mean(0) * seen_BE.sum(1, keepdim=True) * self.extension
        engrams = settle(engrams, gained_BE, self.short, self.places)
        after = {"hidden": self.norm(h_BLD).detach(), "begun": torch.ones_like(there_B), **engrams._asdict()}
        return h_BLD, after

    def memory(self, batch: int, *, device: torch.device, dtype: torch.dtype) -> State:
        def zeros(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
            return torch.zeros((batch, *shape), device=device, dtype=dtype)

        E, D, long, exact = self.places, self.output_size, torch.long, torch.promote_types(dtype, torch.float32)
        engrams = Engrams(
            zeros(E, D, dtype=exact), zeros(E, dtype=long), zeros(E, dtype=exact), zeros(E, E, dtype=long)
        )
        return {"hidden": zeros(self.segment, D), "begun": zeros(dtype=torch.bool), **engrams._asdict()}

    def memory_size(self) -> int:
        return self.segment * self.output_size + 1 + self.places * (self.output_size + 2 + self.places)
