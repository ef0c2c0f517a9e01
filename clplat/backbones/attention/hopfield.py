"""Modern Hopfield networks over the steps so far and over learned patterns."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from clplat.backbones.attention.transformer import SelfAttention
from clplat.backbones.base import State, in_reference_form, require
from clplat.backbones.block import Stack, split_heads
from clplat.backbones.ops.hopfield import hopfield, hopfield_loop, hopfield_weights
from clplat.backbones.seen import Seen


class HopfieldAttention(SelfAttention):
    """Each step's state moves among the patterns of the steps so far and of learned slots, (B, T, D) -> (B, T, D).

    For each head with the patterns Y of the slots and of the steps up to t, see :mod:`clplat.backbones.ops.hopfield`::

        q = W_q x_t    k = W_k Y    v = W_v Y        y = W_o hopfield(q, k, v)

    State: keys and values of all steps, as of :class:`SelfAttention`. Steps have no positions: what is retrieved is a
    mixture of patterns, which no position would fit.

    Args:
        dim: D.
        heads: number of heads; divides D.
        slots: learned patterns that every step may retrieve.
        updates: how often a state moves before it reads; 0 is attention.
        beta: inverse temperature; 0 for 1 / sqrt(D / heads).
        rest: whether a pattern of zeros is stored too, so that a step may read nothing.
    """

    rotary = False

    def __init__(self, dim: int, heads: int, slots: int, updates: int, beta: float, rest: bool) -> None:
        super().__init__(dim, heads)
        require(slots >= 0 and updates >= 0, f"slots {slots} and updates {updates} must not be negative")
        require(beta >= 0, f"beta must not be negative, as {beta}")
        self.beta = beta or (dim // heads) ** -0.5
        self.updates, self.rest = updates, rest
        self.patterns = nn.Parameter(torch.randn(slots, dim))

    def attend(self, q_BHTK: Tensor, k_BHSK: Tensor, v_BHSK: Tensor, visible_BTS: Tensor | None) -> Tensor:
        form = hopfield_loop if in_reference_form() else hopfield
        return form(q_BHTK, *self._stored(k_BHSK, v_BHSK, visible_BTS), self.beta, self.updates, self.rest)

    def look(
        self, x_BTD: Tensor, state: State = None, *, reset_BT: Tensor | None = None, mask_BT: Tensor | None = None
    ) -> Seen:
        (q, k, v, seen_BTS), _ = self.project(x_BTD, state, reset_BT, mask_BT)
        k, v, visible_BTS = self._stored(k, v, seen_BTS)
        return Seen(x_BTD, k, v, hopfield_weights(q, k, visible_BTS, self.beta, self.updates, self.rest))

    def _stored(self, k_BHSK: Tensor, v_BHSK: Tensor, visible_BTS: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Patterns, what is read at them, and which of them each step may retrieve: those of the slots in front."""
        (B, _, S, _), slots = k_BHSK.shape, len(self.patterns)
        _, k, v = (split_heads(part, self.heads) for part in self.qkv(self.patterns)[None].chunk(3, -1))
        k_BHSK, v_BHSK = (
            torch.cat([part.to(steps.dtype).expand(B, -1, -1, -1), steps], 2)
            for part, steps in ((k, k_BHSK), (v, v_BHSK))
        )
        if visible_BTS is None:
            visible_BTS = torch.ones((B, S, S), dtype=torch.bool, device=k_BHSK.device).tril()
        return k_BHSK, v_BHSK, nn.functional.pad(visible_BTS, (slots, 0), value=True)


class Hopfield(Stack):
    """Modern Hopfield layers (Ramsauer et al. 2021, arXiv 2008.02217) in pre-norm blocks, with learned patterns.

    (B, T, input_size) -> (B, T, dim); see :class:`HopfieldAttention`. With ``updates=0``, ``slots=0`` it is a causal
    transformer without positions, which is the paper's point. With ``rest`` it is the outlier-efficient form (Hu et al.
    2024, arXiv 2404.03828): softmax_1 in place of softmax.

    Assumed: values have a projection of their own (the paper's W_K W_V), as in the authors' code; states are not normed
    between updates.

    Args:
        heads: heads in each block; dim is a multiple of heads.
        slots: learned patterns in each block.
        updates: how often a state moves before it reads.
        beta: inverse temperature; 0 for 1 / sqrt(dim / heads).
        rest: whether a pattern of zeros is stored too.
    """

    def __init__(
        self,
        input_size: int,
        *,
        heads: int = 4,
        slots: int = 8,
        updates: int = 1,
        beta: float = 0.0,
        rest: bool = False,
        **block: Any,
    ) -> None:
        super().__init__(
            input_size, lambda dim, number: HopfieldAttention(dim, heads, slots, updates, beta, rest), **block
        )
