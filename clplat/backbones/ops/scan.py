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

    Two steps after each other are one step with ``(a, b) = (a_2 a_1, a_2 b_1 + b_2)``. So a loop over the C places of a
    chunk, for all chunks at once, gives each step's product and sum from its chunk's start; then only the chunks' last
    h runs from chunk to chunk. That is C + T / C operations one after the other, with three products for each number.
    Nothing is divided and no logarithm is taken: any a will do.

    Args:
        chunk: C, steps in one chunk.
    """
    T = b_BTD.shape[1]
    C = min(chunk, T)
    a_BTD = _cleared(a_BTD.expand_as(b_BTD), reset_BT)
    free = [0, 0] * (b_BTD.ndim - 2)
    a, b = (nnf.pad(x, (*free, 0, -T % C)).unflatten(1, (-1, C)) for x in (a_BTD, b_BTD))  # (B, N, C, ...)

    products, sums = [a[:, :, 0]], [b[:, :, 0]]
    for a_BND, b_BND in zip(a[:, :, 1:].unbind(2), b[:, :, 1:].unbind(2), strict=True):
        products.append(a_BND * products[-1])
        sums.append(a_BND * sums[-1] + b_BND)

    starts = [h_BD]
    for through_BD, added_BD in zip(products[-1][:, :-1].unbind(1), sums[-1][:, :-1].unbind(1), strict=True):
        starts.append(through_BD * starts[-1] + added_BD)
    start_BND = torch.stack(starts, 1)

    h_BNCD = torch.stack([added + through * start_BND for through, added in zip(products, sums, strict=True)], 2)
    h_BTD = h_BNCD.flatten(1, 2)[:, :T]
    return h_BTD, h_BTD[:, -1]
