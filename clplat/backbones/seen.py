"""What a layer of attention saw: the one form in which every backbone that has such layers tells their weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor


class Attending(Protocol):
    """What a module has that weighs steps and tells the weights.

    Attributes:
        attends: what goes into ``out`` is ``weights of steps times values``, head by head, and ``look``, called like
            ``forward``, tells the weights as :class:`Seen`.
        heads: how many.
    """

    attends: ClassVar[bool]
    heads: int


@dataclass(frozen=True)
class Seen:
    """What a layer of attention saw in one call.

    Args:
        x: what the layer was given, (B, T, dim).
        key, value: (B, heads, S, K).
        weights: of each key for each step, (B, heads, T, S).
        steps: which of the T steps each key stands for, -1 for none of them (a memory, a learned pattern); a step may
            stand behind several keys. None: the last T keys are the steps in order, and others are none.
        gate: what the joined heads are multiplied with before ``out``, (B, T, dim); None for nothing.
    """

    x: Tensor
    key: Tensor
    value: Tensor
    weights: Tensor
    steps: Tensor | None = None
    gate: Tensor | None = None

    @property
    def own_weights(self) -> Tensor:
        """The weights of the steps alone, (B, heads, T, T)."""
        T = self.x.shape[1]
        if self.steps is None:
            return self.weights[..., -T:]
        own = self.steps >= 0
        found = self.weights.new_zeros((*self.weights.shape[:-1], T))
        return found.index_add_(-1, self.steps[own], self.weights[..., own])

    @property
    def shares(self) -> Tensor:
        """:attr:`own_weights` as shares of all weights of a step, which need not sum to 1."""
        return self.own_weights / self.weights.sum(-1, keepdim=True).clamp(min=1e-8)

    @property
    def own_key(self) -> Tensor:
        """The key of each step, (B, heads, T, K): the first that stands for it, zeros where none does."""
        return self._own(self.key)

    @property
    def own_value(self) -> Tensor:
        """The value of each step, as :attr:`own_key`."""
        return self._own(self.value)

    def _own(self, of_BHSK: Tensor) -> Tensor:
        T = self.x.shape[1]
        if self.steps is None:
            return of_BHSK[:, :, -T:]
        same_TS = self.steps == torch.arange(T, device=of_BHSK.device)[:, None]
        return of_BHSK[:, :, same_TS.int().argmax(1)].masked_fill(~same_TS.any(1)[:, None], 0)


def joined(parts: Sequence[Seen], lead: int, segment: int, T: int) -> Seen:
    """What a layer saw of T steps that were given to it in segments.

    Args:
        parts: what it saw of each segment. ``steps`` counts from the segment's first step on, negative before it;
            None: keys are the segment's own places.
        lead: places in front of a segment's steps, which are none.
        segment: steps of a segment.
        T: steps; the last segments may hold fewer, or none.
    """
    x, key, value, step, rows = [], [], [], [], []
    for n in range(-(-T // segment)):
        part, start, count = parts[n], n * segment, min(segment, T - n * segment)
        place_S = torch.arange(part.key.shape[2], device=part.x.device) - lead if part.steps is None else part.steps
        step_S = place_S + start
        real_S = (step_S >= 0) & (step_S < T)
        if part.steps is None:
            real_S &= (place_S >= 0) & (place_S < segment)
        step.append(step_S.where(real_S, -1))
        x.append(part.x[:, lead : lead + count])
        key.append(part.key)
        value.append(part.value)
        rows.append(part.weights[:, :, lead : lead + count])
    weights = rows[0].new_zeros((*rows[0].shape[:2], T, sum(row.shape[-1] for row in rows)))
    t = s = 0
    for row in rows:
        weights[:, :, t : t + row.shape[2], s : s + row.shape[3]] = row
        t, s = t + row.shape[2], s + row.shape[3]
    return Seen(torch.cat(x, 1), torch.cat(key, 2), torch.cat(value, 2), weights, torch.cat(step))
