"""The small network that fast weights are the weights of, and the gradients of its loss in closed form.

M(x) = x W_1, or layers with gelu between them, or either behind a layer norm whose scale and shift are not fast::

    z_1 = x    a_l = z_l W_l    z_{l+1} = gelu(a_l)    M(x) = a_L  or  scale * (a_L - mean) / std + shift

The gradient of a loss of M(k) by W_l is the outer product of z_l and d_l, with ``d_L = dloss/da_L`` and
``d_l = (W_{l+1} d_{l+1}) * gelu'(a_l)``. Nothing is asked of autograd, so memories learn in evaluation and
inference mode too, and autograd goes through these formulas like through any others.

Leading dimensions are free. A residual connection M(x) = x + N(x) needs no code here: it is N with the target v - k.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as nnf
from torch import Tensor

Weights = list[Tensor]  # W_1 .. W_L, (..., I_l, O_l)
Norm = tuple[Tensor, Tensor]  # scale and shift, (..., 1, O_L)

EPS = 1e-2  # in the layer norm: more than usual, as gradients grow by up to 1 / sqrt(EPS) where all outputs are alike


def gelu_slope(a: Tensor) -> Tensor:
    """Derivative of ``gelu(a) = a Phi(a)``: ``Phi(a) + a phi(a)``."""
    return 0.5 * (1 + torch.erf(a / math.sqrt(2))) + a * (-0.5 * a.square()).exp() / math.sqrt(2 * math.pi)


def standardise(a: Tensor) -> tuple[Tensor, Tensor]:
    """a with mean 0 and variance 1 along the last dimension, and the factor that did it."""
    centred = a - a.mean(-1, keepdim=True)
    factor = (centred.square().mean(-1, keepdim=True) + EPS).rsqrt()
    return centred * factor, factor


def finish(a: Tensor, norm: Norm | None) -> Tensor:
    """The norm behind the last layer, where there is one."""
    return a if norm is None else standardise(a)[0] * norm[0] + norm[1]


def read(weights: Weights, x: Tensor, norm: Norm | None = None) -> Tensor:
    """M(x) for x of shape (..., T, I)."""
    for number, W in enumerate(weights):
        x = (nnf.gelu(x) if number else x) @ W
    return finish(x, norm)


def gradients(
    weights: Weights,
    k: Tensor,
    slope: Callable[[Tensor], Tensor],
    norm: Norm | None = None,
    forget: Tensor | None = None,
) -> tuple[Weights, Weights]:
    """Factors of the gradients of all layers for each step: ``z_l`` (..., T, I_l) and ``d_l`` (..., T, O_l).

    Args:
        weights: where the gradients are taken.
        k: what the network reads, (..., T, I).
        slope: gives the loss's derivative by M(k).
        norm: scale and shift behind the last layer.
        forget: (..., T, 1); adds ``forget * a_l`` to d_l: the outer product with z_l then also takes away, in part,
            what the layer has stored for its input, ``W (I - forget z z')``.
    """
    inputs, sums = [k], [k @ weights[0]]
    for W in weights[1:]:
        inputs.append(nnf.gelu(sums[-1]))
        sums.append(inputs[-1] @ W)
    if norm is None:
        d = slope(sums[-1])
    else:
        unit, factor = standardise(sums[-1])
        d = slope(unit * norm[0] + norm[1]) * norm[0]
        d = factor * (d - d.mean(-1, keepdim=True) - unit * (d * unit).mean(-1, keepdim=True))
    deltas = [d]
    for W, a in zip(reversed(weights[1:]), reversed(sums[:-1]), strict=True):
        d = (d @ W.mT) * gelu_slope(a)
        deltas.insert(0, d)
    if forget is not None:
        deltas = [d + forget * a for d, a in zip(deltas, sums, strict=True)]
    return inputs, deltas
