"""Causal convolution of long sequences: a loop and an equal form by the fast Fourier transform.

::

    y_t = sum_{j=0}^{min(t, L-1)} k_j u_{t-j}

In the Fourier form rounding mixes all steps: output t is free of later inputs up to a few units of the last digit of
the largest input only, so a network that uses it declares ``exact_causality: false``.
"""

from __future__ import annotations

import torch
from torch import Tensor


def convolution_loop(u_BTD: Tensor, kernel_LD: Tensor) -> Tensor:
    """The equation above, one output at a time.

    Args:
        u_BTD: inputs, real, with any dimensions behind the steps.
        kernel_LD: k_0 .. k_{L-1}, whose dimensions behind the first broadcast against those of u.

    Returns:
        y (B, T, D).
    """
    outputs = []
    for t in range(u_BTD.shape[1]):
        seen_BLD = u_BTD[:, : t + 1].flip(1)[:, : len(kernel_LD)]
        outputs.append((seen_BLD * kernel_LD[: seen_BLD.shape[1]]).sum(1))
    return torch.stack(outputs, 1)


def fft_convolution(u_BTD: Tensor, kernel_LD: Tensor) -> Tensor:
    """Equal to :func:`convolution_loop` in T log T: the product of the transforms, with zeros behind both so that
    nothing comes round from the end."""
    T = u_BTD.shape[1]
    kernel_LD = kernel_LD[:T]
    size = 1 << (T + len(kernel_LD) - 2).bit_length()  # the power of two that holds T + L - 1 steps
    product = torch.fft.rfft(u_BTD, size, dim=1) * torch.fft.rfft(kernel_LD, size, dim=0)
    return torch.fft.irfft(product, size, dim=1)[:, :T]
