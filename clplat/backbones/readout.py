"""Readouts: which steps of a backbone's output the head sees. Pure functions ``(y_BTD, mask_BT) -> (B, F)``."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from clplat.backbones.base import blank
from clplat.errors import UsageError, suggestion


def last(y_BTD: Tensor, mask_BT: Tensor | None = None) -> Tensor:
    """The last step that is not padding; zeros for a sample that is all padding."""
    if mask_BT is None:
        return y_BTD[:, -1]
    steps_T = torch.arange(y_BTD.shape[1], device=y_BTD.device)
    is_last_BT = mask_BT & (steps_T == (steps_T * mask_BT).amax(1, keepdim=True))
    return blank(y_BTD, is_last_BT).sum(1)


def mean(y_BTD: Tensor, mask_BT: Tensor | None = None) -> Tensor:
    """The mean over the steps that are not padding; zeros for a sample that is all padding."""
    if mask_BT is None:
        return y_BTD.mean(1)
    return blank(y_BTD, mask_BT).sum(1) / mask_BT.sum(1, keepdim=True).clamp(min=1)


def flatten(y_BTD: Tensor, mask_BT: Tensor | None = None) -> Tensor:
    """All steps side by side, F = T * D; zeros for padding."""
    return blank(y_BTD, mask_BT).flatten(1)


_readouts: dict[str, Callable[[Tensor, Tensor | None], Tensor]] = {"last": last, "mean": mean, "flatten": flatten}


def _check(name: str) -> None:
    if name not in _readouts:
        raise UsageError(f"there is no readout '{name}'.{suggestion(name, _readouts)}")


def read(name: str, y_BTD: Tensor, mask_BT: Tensor | None = None) -> Tensor:
    """Apply readout ``name`` (last, mean, flatten): (B, T, D) -> (B, F); see :func:`readout_size`."""
    _check(name)
    return _readouts[name](y_BTD, mask_BT)


def readout_size(name: str, T: int, D: int) -> int:
    """F of readout ``name`` for outputs of shape (B, T, D)."""
    _check(name)
    return T * D if name == "flatten" else D
