"""Cutting T steps into N chunks of C, and which steps belong together where sequences begin within them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Segments(NamedTuple):
    """Who may see whom in chunks of C steps; all are boolean, and None means everywhere.

    It is decided on sequence numbers, so nothing has to decay to zero and every reset is exact.

    Attributes:
        seen: step t sees step j of its own chunk, j <= t: (C, C), or (B, 1, N, C, C).
        entering: the step is of the sequence that the chunk begins in, so it sees the state: (B, 1, N, C, 1).
        leaving: the step is of the sequence that the chunk ends in, so the next chunk sees it: (B, 1, N, C, 1).
        through: no sequence begins within the chunk, so the state passes on: (B, 1, N, 1, 1).
    """

    seen: Tensor
    entering: Tensor | None = None
    leaving: Tensor | None = None
    through: Tensor | None = None

    def kept(self, total: Tensor | None = None) -> Tensor | None:
        """The factor with which the state before each chunk is left behind it, (B, H, N, ...); None: 1.

        Args:
            total: by what it decays over the chunk; none of it is left where a sequence began, whatever that is.
        """
        if self.through is None or total is None:
            return total if self.through is None else self.through
        return total.masked_fill(~self.through, 0)


def segments(reset_BT: Tensor | None, T: int, C: int, device: torch.device) -> Segments:
    """The :class:`Segments` of T steps in chunks of C; ``reset_BT`` is True where a new sequence begins."""
    lower_CC = torch.ones((C, C), device=device, dtype=torch.bool).tril()
    if reset_BT is None:
        return Segments(lower_CC)
    sequence = F.pad(reset_BT.long(), (0, -T % C)).cumsum(1).unflatten(1, (-1, C))[:, None, :, :, None]
    last = sequence[..., -1:, :]  # of each chunk
    before = F.pad(last[:, :, :-1], (0, 0, 0, 0, 1, 0))  # the state given at the start belongs to sequence 0
    return Segments(lower_CC & (sequence == sequence.mT), sequence == before, sequence == last, last == before)


def cut(x_BHTK: Tensor, C: int) -> Tensor:
    """(B, H, T, K) -> (B, H, N, C, K), with zeros behind the last step."""
    return F.pad(x_BHTK, (0, 0, 0, -x_BHTK.shape[2] % C)).unflatten(2, (-1, C))


def join(y_BHNCV: Tensor, T: int) -> Tensor:
    """(B, H, N, C, V) -> (B, H, T, V), without what lies behind the last step."""
    return y_BHNCV.flatten(2, 3)[:, :, :T]


def each(x: Tensor | None, N: int) -> Sequence[Any]:
    """The N chunks of a tensor (B, H, N, ...) to loop over, not by index, whose backward fills the whole each time."""
    return [None] * N if x is None else x.unbind(2)


def states(S: Tensor, added: Tensor, kept: Tensor | None) -> tuple[Tensor, Tensor]:
    """The state before each chunk, (B, H, N, ...), where ``kept * S + added`` is behind it; and the last one.

    Args:
        S: before the first chunk, (B, H, ...).
        added: by each chunk, (B, H, N, ...).
        kept: broadcast over ``added``; None: 1.
    """
    found = []
    for more, factor in zip(added.unbind(2), each(kept, added.shape[2]), strict=True):
        found.append(S)
        S = (S if factor is None else S * factor) + more
    return torch.stack(found, 2), S


def keep(x: Tensor, where: Tensor | None) -> Tensor:
    """Zeros where the condition does not hold."""
    return x if where is None else x.masked_fill(~where, 0)
