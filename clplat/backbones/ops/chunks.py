"""Cutting T steps into N chunks of C, and which steps belong together where sequences begin within them."""

from __future__ import annotations

from typing import NamedTuple

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

    def carried(self, S: Tensor, n: int) -> Tensor:
        """What is left of the state S (B, H, ...) behind chunk n: all of it, or zeros where a sequence began."""
        return S if self.through is None else S.masked_fill(~self.through[:, :, n], 0)


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


def join(chunks: list[Tensor], T: int) -> Tensor:
    """N tensors (B, H, C, V), one for each chunk -> (B, H, T, V)."""
    return torch.cat(chunks, 2)[:, :, :T]


def keep(x: Tensor, where: Tensor | None) -> Tensor:
    """Zeros where the condition does not hold."""
    return x if where is None else x.masked_fill(~where, 0)
