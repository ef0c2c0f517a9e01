"""The choices of Miras (Behrouz et al. 2025, arXiv 2504.13173): what a memory minimises, and how it keeps its weights.

An attentional bias is given by its derivative by the memory's output, a function of the output, the value v and a
``limit``, which only some use. A retention other than the decay of the weights is given by its link: the memory runs
as ``A_t = a_t A_{t-1} - eta_t gradient`` and is read with ``W_t = link(A_t)``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Bias = Callable[[Tensor, Tensor, Tensor | None], Tensor]
Link = Callable[[Tensor], Tensor]

SMOOTH = 1e-6


def squares(y: Tensor, v: Tensor, limit: Tensor | None) -> Tensor:
    """Of ``|y - v|^2 / 2``."""
    return y - v


def product(y: Tensor, v: Tensor, limit: Tensor | None) -> Tensor:
    """Of ``-y . v``: Hebbian."""
    return -v


def absolute(y: Tensor, v: Tensor, limit: Tensor | None) -> Tensor:
    """Of ``sum |y - v|``, with ``tanh(10 e)`` for the sign of e."""
    return torch.tanh(10 * (y - v))


def power(p: float) -> Bias:
    """Of ``sum |y - v|^p``: ``p sign(e) |e|^(p - 1)``, with ``tanh(10 e)`` for the sign of e and ``sqrt(e^2 + 1e-6)``
    for its size."""

    def derivative(y: Tensor, v: Tensor, limit: Tensor | None) -> Tensor:
        e = y - v
        return p * torch.tanh(10 * e) * (e.square() + SMOOTH) ** ((p - 1) / 2)

    return derivative


def huber(y: Tensor, v: Tensor, limit: Tensor | None) -> Tensor:
    """Of ``|e|^2 / 2`` where the error's length is within the limit, else of ``limit |e|``: an error that is cut off at
    the limit (Huber 1964)."""
    if limit is None:
        raise TypeError("the Huber bias needs a limit")
    e = y - v
    return e * (limit * (e.square().sum(-1, keepdim=True) + SMOOTH).rsqrt()).clamp(max=1)


def length_power(q: float) -> Link:
    """``A / |A|_q^(q - 2)`` over the whole matrix, which keeps |W|_q from growing (Moneta)."""

    def link(A: Tensor) -> Tensor:
        largest = A.detach().abs().amax((-2, -1), keepdim=True).clamp(min=1e-3)  # powers of large numbers overflow
        total = ((A / largest).abs() ** q).sum((-2, -1), keepdim=True) + SMOOTH
        return A / (largest * total ** (1 / q)) ** (q - 2)

    return link


def simplex(A: Tensor) -> Tensor:
    """``I softmax`` over the I inputs of each output: weights that are not negative, with mean 1 (Memora). Since adding
    a number to all logits changes nothing, ``softmax(a log W - eta g)`` needs no logarithm: the logits are A."""
    return A.shape[-2] * A.softmax(-2)


def sparse(threshold: float) -> Link:
    """``sign(A) max(|A| - threshold, 0)``, soft thresholding: the l1 part of elastic-net retention."""
    return lambda A: A.sign() * (A.abs() - threshold).relu()


def orthogonal(S: Tensor) -> Tensor:
    """The matrix with about the same singular vectors and singular values near 1, by five Newton-Schulz steps with the
    coefficients of Muon (Jordan et al. 2024)."""
    if S.shape[-2] > S.shape[-1]:
        return orthogonal(S.mT).mT  # the products below are of the smaller side
    X = S * (S.square().sum((-2, -1), keepdim=True) + SMOOTH).rsqrt()
    for _ in range(5):
        G = X @ X.mT
        X = 3.4445 * X + (-4.7750 * G + 2.0315 * G @ G) @ X
    return X
