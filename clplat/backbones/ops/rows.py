"""Laying steps out as rows of one chunk each, for layers whose chunks are part of the model.

Where what a layer computes depends on where its chunks begin (gradients taken at a chunk's start, attention within a
segment), they are counted from the start of each sequence, over its steps that are not padding. Then sequences packed
into one row, padding, and a cut anywhere give what whole sequences give.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as nnf
from torch import Tensor


class Rows(NamedTuple):
    """N rows of C slots for each sample; a row holds steps of one chunk of one sequence.

    Slot i of a row is the chunk's step i. The first row may go on with a chunk that an earlier call began: its first
    slots are then empty here. A sample with fewer rows than another has empty rows at the end.

    Attributes:
        step: the step that lies in each slot, (B, N, C); 0 where the slot is empty.
        live: whether a step lies there, (B, N, C).
        fresh: the row begins a sequence: what was carried before it is forgotten, (B, N).
        slot: where each step lies, counted over all rows, n * C + i, (B, T); 0 for padding.
        ended: no step has come since the latest reset, so after the last row comes the initial state, (B,).
        position: slots of the last row's chunk that are filled, 0 to C - 1, (B,); 0 also when it has become full.
    """

    step: Tensor
    live: Tensor
    fresh: Tensor
    slot: Tensor
    ended: Tensor
    position: Tensor

    def lay(self, x_BTD: Tensor) -> Tensor:
        """(B, T, ...) -> (B, N, C, ...), zeros in empty slots."""
        B, N, C = self.step.shape
        free = [1] * (x_BTD.ndim - 2)
        index = self.step.reshape(B, N * C, *free).expand(-1, -1, *x_BTD.shape[2:])
        empty = ~self.live.reshape(B, N * C, *free)
        return x_BTD.gather(1, index).masked_fill(empty, 0).unflatten(1, (N, C))

    def collect(self, y_BNCD: Tensor) -> Tensor:
        """(B, N, C, ...) -> (B, T, ...), the inverse; what it gives for padding means nothing."""
        B, T = self.slot.shape
        index = self.slot.reshape(B, T, *[1] * (y_BNCD.ndim - 3)).expand(-1, -1, *y_BNCD.shape[3:])
        return y_BNCD.flatten(1, 2).gather(1, index)


def rows(T: int, C: int, start_B: Tensor, reset_BT: Tensor | None = None, mask_BT: Tensor | None = None) -> Rows:
    """The :class:`Rows` of T steps in chunks of C.

    Args:
        start_B: slots that are already filled of the chunk that each sample is in, 0 to C - 1.
        reset_BT: True where a new sequence begins.
        mask_BT: False for padding.
    """
    B, device = len(start_B), start_B.device
    reset_BT = torch.zeros((B, T), dtype=torch.bool, device=device) if reset_BT is None else reset_BT
    mask_BT = torch.ones((B, T), dtype=torch.bool, device=device) if mask_BT is None else mask_BT
    sequence_BT = reset_BT.long().cumsum(1)
    count_BT = mask_BT.long().cumsum(1)
    before_BT = count_BT - mask_BT.long()
    # the count at which the step's sequence began: it never falls, so the latest is the largest
    origin_BT = torch.where(reset_BT, before_BT, -start_B[:, None]).cummax(1).values
    place_BT = before_BT - origin_BT  # of the step within its sequence

    # a live step begins a row when its chunk or sequence is another than that of the live step before
    chunk_BT = place_BT // C
    steps_T = torch.arange(T, device=device)
    latest_BT = torch.where(mask_BT, steps_T, -1).cummax(1).values
    previous_BT = nnf.pad(latest_BT[:, :-1], (1, 0), value=-1)
    first_BT = previous_BT < 0
    at_BT = previous_BT.clamp(min=0)
    moved_BT = (sequence_BT != sequence_BT.gather(1, at_BT)) | (chunk_BT != chunk_BT.gather(1, at_BT))
    begins_BT = mask_BT & (first_BT | moved_BT)
    row_BT = (begins_BT.long().cumsum(1) - 1).clamp(min=0)
    N = int(row_BT.max()) + 1 if B and T else 1
    slot_BT = (row_BT * C + place_BT % C).masked_fill(~mask_BT, 0)

    spare = N * C  # where padding goes, thrown away
    target_BT = slot_BT.masked_fill(~mask_BT, spare)
    filled = torch.zeros((B, spare + 1), dtype=torch.long, device=device)
    step_BNC = filled.scatter(1, target_BT, steps_T.expand(B, T))[:, :spare].unflatten(1, (N, C))
    live_BNC = filled.scatter(1, target_BT, 1)[:, :spare].unflatten(1, (N, C)).bool()
    before_first_BT = torch.where(first_BT, 0, sequence_BT.gather(1, at_BT))
    changes_BT = begins_BT & (sequence_BT != before_first_BT)
    fresh = torch.zeros((B, N + 1), dtype=torch.long, device=device)
    fresh_BN = fresh.scatter(1, row_BT.masked_fill(~begins_BT, N), changes_BT.long())[:, :N].bool()

    last_BT = latest_BT[:, -1:].clamp(min=0)
    none_B = latest_BT[:, -1] < 0
    now_B, of_last_B = sequence_BT[:, -1], torch.where(none_B, 0, sequence_BT.gather(1, last_BT)[:, 0])
    ended_B = now_B != of_last_B
    filled_B = torch.where(none_B, start_B, (place_BT.gather(1, last_BT)[:, 0] + 1) % C)
    return Rows(step_BNC, live_BNC, fresh_BN, slot_BT, ended_B, filled_B.masked_fill(ended_B, 0))
