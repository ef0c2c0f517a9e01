"""The selective scan (Gu & Dao 2023, arXiv 2312.00752): a loop and an equal form in chunks of bounded memory.

Each of D channels has N states, with a step size s_t of its own and keys and queries k_t, q_t (N numbers each) that all
channels share::

    h_t = decay(s_t, k_t) * h_{t-1} + s_t x_t k_t
    y_t = h_t . q_t

``decay`` says what becomes of each state: ``exp(s A)`` in Mamba, ``1 - s k^2`` in Longhorn. It is 1 where s = 0, so
that padding is a step with s = 0. A reset makes h zero before its step.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from clplat.backbones.ops.scan import diagonal, diagonal_loop

Decay = Callable[[Tensor, Tensor], Tensor]  # s (..., D, 1), k (..., 1, N) -> (..., D, N)


def in_chunks(
    part: Callable[..., tuple[Tensor, Tensor]], h: Tensor, tensors: Sequence[Tensor | None], chunk: int
) -> tuple[Tensor, Tensor]:
    """Run ``y, h = part(h, *tensors)`` over chunks of steps one after the other.

    Backward computes each chunk's insides again, so only what is between the chunks is kept: the memory for states is
    that of one chunk and not of all T steps.

    Args:
        part: keeps to local tensors, since it is called again in backward; gives y (B, C, ...) and the next h.
        h: what goes from chunk to chunk.
        tensors: (B, T, ...) each, or None.
        chunk: steps in one.
    """
    T = next(x.shape[1] for x in tensors if x is not None)
    outputs = []
    for start in range(0, T, chunk):
        given = [None if x is None else x[:, start : start + chunk] for x in tensors]
        if chunk < T and torch.is_grad_enabled():
            y, h = checkpoint(part, h, *given, use_reentrant=False, preserve_rng_state=False)
        else:
            y, h = part(h, *given)
        outputs.append(y)
    return torch.cat(outputs, 1), h


def _coefficients(x: Tensor, s: Tensor, k: Tensor, decay: Decay) -> tuple[Tensor, Tensor]:
    s_BTD1, k_BT1N = s[..., None], k[..., None, :]
    return decay(s_BTD1, k_BT1N), (s * x)[..., None] * k_BT1N


def selective_scan_loop(
    x_BTD: Tensor,
    s_BTD: Tensor,
    k_BTN: Tensor,
    q_BTN: Tensor,
    h_BDN: Tensor,
    decay: Decay,
    reset_BT: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The equations above, one step at a time.

    Args:
        x_BTD: inputs.
        s_BTD: step sizes, 0 for padding.
        k_BTN: keys, B_t in Mamba.
        q_BTN: queries, C_t in Mamba.
        h_BDN: the state before the first step.
        decay: s (B, T, D, 1) and k (B, T, 1, N) -> factors (B, T, D, N).
        reset_BT: True where a new sequence begins.

    Returns:
        y (B, T, D), and the state after the last step.
    """
    h_BTDN, last_BDN = diagonal_loop(*_coefficients(x_BTD, s_BTD, k_BTN, decay), h_BDN, reset_BT)
    return (h_BTDN * q_BTN[:, :, None]).sum(-1), last_BDN


def selective_scan(
    x_BTD: Tensor,
    s_BTD: Tensor,
    k_BTN: Tensor,
    q_BTN: Tensor,
    h_BDN: Tensor,
    decay: Decay,
    reset_BT: Tensor | None = None,
    chunk: int = 64,
) -> tuple[Tensor, Tensor]:
    """Equal to :func:`selective_scan_loop`, in chunks of C steps: the states (B, C, D, N) of one chunk exist at a time.
    Within it they are scanned in parts of about the root of C, which takes the fewest operations after each other.

    Args:
        chunk: C, steps in one chunk.
    """

    def part(h: Tensor, x: Tensor, s: Tensor, k: Tensor, q: Tensor, reset: Tensor | None) -> tuple[Tensor, Tensor]:
        h_BCDN, h_BDN = diagonal(*_coefficients(x, s, k, decay), h, reset, math.isqrt(chunk))
        return (h_BCDN @ q[..., None]).squeeze(-1), h_BDN

    return in_chunks(part, h_BDN, (x_BTD, s_BTD, k_BTN, q_BTN, reset_BT), chunk)
