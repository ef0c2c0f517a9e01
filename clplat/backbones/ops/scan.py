"""The diagonal linear recurrence ``h_t = a_t h_{t-1} + b_t``: a loop and an equal scan.

All tensors are real or complex, and the dimensions behind the steps are free: (B, T, D), (B, T, D, N) ... Padding is a
step with a = 1 and b = 0. A reset makes h zero before its step, whatever a is.
"""

from __future__ import annotations

import torch
import torch.nn.functional as nnf
from torch import Tensor


def _cleared(a_BTD: Tensor, reset_BT: Tensor | None) -> Tensor:
    """a, with zeros where a new sequence begins."""
    return a_BTD if reset_BT is None else a_BTD.masked_fill(_like(reset_BT, a_BTD), 0)


def _like(reset_BT: Tensor, a_BTD: Tensor) -> Tensor:
    return reset_BT.reshape(*reset_BT.shape, *[1] * (a_BTD.ndim - 2))


def diagonal_loop(a_BTD: Tensor, b_BTD: Tensor, h_BD: Tensor, reset_BT: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The equation above, one step at a time.

    Args:
        a_BTD: factors; broadcast against b.
        b_BTD: what is added.
        h_BD: h_0.
        reset_BT: True where a new sequence begins.

    Returns:
        h_1 .. h_T (B, T, D), and h_T (B, D).
    """
    a_BTD = _cleared(a_BTD.expand_as(b_BTD), reset_BT)
    outputs = []
    for a_BD, b_BD in zip(a_BTD.unbind(1), b_BTD.unbind(1), strict=True):
        h_BD = a_BD * h_BD + b_BD
        outputs.append(h_BD)
    return torch.stack(outputs, 1), h_BD


def diagonal(
    a_BTD: Tensor, b_BTD: Tensor, h_BD: Tensor, reset_BT: Tensor | None = None, chunk: int = 64
) -> tuple[Tensor, Tensor]:
    """Equal to :func:`diagonal_loop`, in chunks of C steps.

    Two steps after each other are one step with ``(a, b) = (a_2 a_1, a_2 b_1 + b_2)``, so within all chunks at once
    log2 C rounds of doubling give each step's product and sum from its chunk's start (Hillis & Steele 1986, Data
    parallel algorithms). Only the chunks' last h then runs from chunk to chunk. Nothing is divided and no logarithm is
    taken: any a will do.

    Args:
        chunk: C, steps in one chunk.
    """
    T = b_BTD.shape[1]
    C = min(chunk, T)
    a = _cleared(a_BTD.expand_as(b_BTD), reset_BT)
    short = -T % C
    free = [0, 0] * (b_BTD.ndim - 2)
    a, b = (nnf.pad(x, (*free, 0, short)).unflatten(1, (-1, C)) for x in (a, b_BTD))  # (B, N, C, ...)
    span = 1
    while span < C:
        head_a, head_b = a[:, :, :span], b[:, :, :span]
        b = torch.cat([head_b, b[:, :, span:] + a[:, :, span:] * b[:, :, :-span]], 2)
        a = torch.cat([head_a, a[:, :, span:] * a[:, :, :-span]], 2)
        span *= 2
    starts = []
    for n, (through, added) in enumerate(zip(a[:, :, -1].unbind(1), b[:, :, -1].unbind(1), strict=True)):
        starts.append(h_BD)
        if n < a.shape[1] - 1:
            h_BD = through * h_BD + added
    h_BTD = (b + a * torch.stack(starts, 1)[:, :, None]).flatten(1, 2)[:, :T]
    return h_BTD, h_BTD[:, -1]
