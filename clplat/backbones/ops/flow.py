"""How much of each step is left at later steps of a chunk and behind it, with decay and where sequences begin."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from clplat.backbones.ops.chunks import Segments, cut, keep, segments


def spans(g_CK: Tensor) -> Tensor:
    """Sums over what lies between two steps: (..., C, K) -> (..., C, C, K), ``sum_{j < i <= t} g_i``, 0 for t <= j.

    Each sum is taken by itself: a difference of two running sums loses the digits that they share.
    """
    C = g_CK.shape[-2]
    below_CC = torch.ones((C, C), device=g_CK.device, dtype=torch.bool).tril(-1)
    return g_CK[..., :, None, :].expand(*g_CK.shape[:-1], C, -1).masked_fill(~below_CC[..., None], 0).cumsum(-3)


def before(g_CK: Tensor) -> Tensor:
    """``sum_{i > t} g_i`` for each step t: what still lies before the end of its chunk, (..., C, K)."""
    later = torch.cat([g_CK[..., 1:, :], torch.zeros_like(g_CK[..., :1, :])], -2)
    return later.flip(-2).cumsum(-2).flip(-2)


class Flow(NamedTuple):
    """:class:`Segments` in which what is seen also decays, by one number for each head and step.

    Attributes:
        pairs: who sees whom.
        within: what step t sees of step j of its chunk, (B, H, N, C, C); None: all.
        since: what step t sees of the state before its chunk, (B, H, N, C, 1).
        total: what passes on of that state behind the chunk, (B, H, N, 1, 1).
    """

    pairs: Segments
    within: Tensor | None = None
    since: Tensor | None = None
    total: Tensor | None = None

    def inside(self, scores_CC: Tensor) -> Tensor:
        """Scores of the pairs within a chunk, as far as t sees j."""
        return keep(scores_CC if self.within is None else scores_CC * self.within, self.pairs.seen)

    def entering(self, q_CK: Tensor) -> Tensor:
        """What reads the state before the chunk."""
        return keep(q_CK if self.since is None else q_CK * self.since, self.pairs.entering)

    def leaving(self, k_CK: Tensor) -> Tensor:
        """What is added to the state behind the chunk."""
        return keep(k_CK if self.within is None else k_CK * self.within[..., -1, :, None], self.pairs.leaving)

    def kept(self) -> Tensor | None:
        """The factor with which the state before each chunk is left behind it; None: 1."""
        return self.pairs.kept(self.total)


def flow(g_BHT: Tensor | None, reset_BT: Tensor | None, T: int, C: int, device: torch.device) -> Flow:
    """The :class:`Flow` of T steps in chunks of C.

    Args:
        g_BHT: logarithm of what a step leaves of the state before it, at most 0; None: all.
        reset_BT: True where a new sequence begins.
    """
    pairs = segments(reset_BT, T, C, device)
    if g_BHT is None:
        return Flow(pairs)
    g = cut(g_BHT[..., None], C)
    return Flow(pairs, spans(g)[..., 0].exp(), g.cumsum(-2).exp(), g.sum(-2, keepdim=True).exp())
