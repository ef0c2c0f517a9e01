"""Steps that go to some of E memories: gathered into one lane for each memory, and what comes out brought back."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Lanes(NamedTuple):
    """One lane of N slots for each of B samples and E memories: the steps that go there, in order, in front.

    Attributes:
        step: (B, E, N), the step in a slot; any where no step is.
        used: (B, E, N), False where no step is.
        reset: (B, E, N), True where a slot is of another sequence than the one before; those behind the last step are
            of the sequence that the call ends in. None: nowhere.
        slot: (B, T, E), where a step lies in the lane of a memory to which it goes.
    """

    step: Tensor
    used: Tensor
    reset: Tensor | None
    slot: Tensor

    def gather(self, x_BTD: Tensor) -> Tensor:
        """(B, T, D) -> (B, E, N, D); any value where no step is."""
        index_BS = self.step.flatten(1)
        x_BSD = x_BTD.gather(1, index_BS[..., None].expand(-1, -1, x_BTD.shape[-1]))
        return x_BSD.unflatten(1, self.step.shape[1:])

    def back(self, y_BEND: Tensor, memory_BTk: Tensor) -> Tensor:
        """For each step what lies in its slot in the lanes of the given memories: (B, E, N, D) -> (B, T, k, D)."""
        index_BTk = memory_BTk * y_BEND.shape[2] + self.slot.gather(2, memory_BTk)
        y_BSD = y_BEND.flatten(1, 2).gather(1, index_BTk.flatten(1)[..., None].expand(-1, -1, y_BEND.shape[-1]))
        return y_BSD.unflatten(1, memory_BTk.shape[1:])


def lanes(goes_BTE: Tensor, reset_BT: Tensor | None) -> Lanes:
    """The :class:`Lanes` for steps of which True says to which memories they go.

    Lanes are as long as the fullest, which later steps have a say in: outputs may differ in their last digit by what
    comes behind. Where sequences begin there is a slot behind each lane's last step for one that begins later.
    """
    E = goes_BTE.shape[2]
    spare = 0 if reset_BT is None else 1
    count_BE1 = goes_BTE.sum(1)[..., None]
    N = max(1, spare + int(count_BE1.max())) if count_BE1.numel() else 1
    slot_BTE = (goes_BTE.long().cumsum(1) - 1).clamp(min=0)
    step_BET = (~goes_BTE).long().argsort(dim=1, stable=True).mT
    step_BEN = torch.cat([step_BET, step_BET[..., :spare]], -1)[..., :N]
    used_BEN = torch.arange(N, device=goes_BTE.device) < count_BE1
    if reset_BT is None:
        return Lanes(step_BEN, used_BEN, None, slot_BTE)
    sequence_BT = reset_BT.long().cumsum(1)
    sequence_BEN = sequence_BT[:, None].expand(-1, E, -1).gather(2, step_BEN)
    sequence_BEN = torch.where(used_BEN, sequence_BEN, sequence_BT[:, -1:, None])
    before_BEN = torch.cat([torch.zeros_like(sequence_BEN[..., :1]), sequence_BEN[..., :-1]], -1)
    return Lanes(step_BEN, used_BEN, sequence_BEN != before_BEN, slot_BTE)


def whole_lanes(goes_BTE: Tensor, reset_BT: Tensor | None) -> Lanes:
    """The naive form of :func:`lanes`: every step lies in every lane, and those that do not go there are not used."""
    B, T, E = goes_BTE.shape
    step_T = torch.arange(T, device=goes_BTE.device)
    reset_BET = None if reset_BT is None else reset_BT[:, None].expand(-1, E, -1)
    return Lanes(step_T.expand(B, E, T), goes_BTE.mT, reset_BET, step_T[:, None].expand(B, T, E))
