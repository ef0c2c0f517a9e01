"""Miras: memories put together from a network, what it minimises, how it keeps its weights, and how it moves."""

from __future__ import annotations

from typing import Any

from clplat.backbones.base import require
from clplat.backbones.block import Stack
from clplat.backbones.fastweights.memory import BiasName, FastMemory, Optimiser, Retention


class Miras(Stack):
    """Any memory of the Miras framework (Behrouz et al. 2025, arXiv 2504.13173).

    (B, T, input_size) -> (B, T, dim). Four choices make a memory: the network M, the attentional bias l, the retention
    and the optimiser. With the gradient at the weights of the chunk's start, and e = M(k_t) - v_t::

        A_t = alpha_t A_{t-1} - eta_t grad l(M(k_t), v_t)      W_t = link(A_t)      y_t = M(q_t; W_t)

        l2     |e|^2 / 2               none     alpha = 1            W = A
        l1     sum |e|                 l2                            W = A
        lp     sum |e|^p               lq                            W = A / |A|_q^(q - 2), q = p + 1
        huber  |e| beyond a limit      kl                            W = I softmax(A) over each output's I inputs
        dot    -M(k) . v               elastic                       W = sign(A) max(|A| - 0.001, 0)

    Moneta is lp with lq (p = 3, q = 4), Yaad huber with l2, its limit a function of x_t, and Memora l2 with kl: since a
    softmax does not change when a number is added to all logits, ``W_t = softmax(alpha log W_{t-1} - eta grad)`` is the
    softmax of the linear recurrence A. Chunks are part of the model: gradients are taken at the chunk's start, but
    links are applied at each step, so a chunk of one step is the recurrence as the paper writes it. A link needs the
    matrices of all steps of a chunk; they are made again for the gradient rather than kept.

    See :class:`~clplat.backbones.fastweights.memory.FastMemory` for the projections, the gates and the state. The MLP
    is the paper's, ``M(x) = x + layer_norm(gelu(x W_1) W_2)``, and eta is for each channel of v by way of ``rank``
    numbers.

    Assumed, from transcriptions of the paper: alpha and the limit are for each head instead of each channel; eta is at
    most ``rate``; the slices of the softmax are the I inputs of each output, and they sum to I instead of 1, or what
    comes out would shrink with the width; the Huber gradient beyond the limit keeps the
    error's direction, ``e limit / |e|``; the elastic link acts on the sum of all steps, as in dual averaging. The
    largest steps are of the size that leaves the least error of eight random pairs in memories that have learned
    nothing: 0.1 without a link, 0.2 with Moneta's, and for Memora's logits 1 (3 leaves a little less, but then 16 bits
    are too few).

    Args:
        depth: layers of the memory; 1 is a linear map.
        bias: what the memory minimises: l2, lp, l1, huber or dot.
        power: p of lp, and of lq, where q = p + 1.
        retention: how it keeps its weights: none, l2, lq, kl or elastic.
        optimiser: how it moves: gd, momentum or muon.
        heads: memories in each block.
        chunk: steps whose gradients are taken at the same weights.
        conv: width of the convolutions behind the projections; 0 for none.
        rate: the largest step eta.
        rank: width of the layer by way of which gates are made.
    """

    def __init__(
        self,
        input_size: int,
        *,
        depth: int = 2,
        bias: BiasName = "l2",
        power: float = 3.0,
        retention: Retention = "l2",
        optimiser: Optimiser = "gd",
        heads: int = 4,
        chunk: int = 16,
        conv: int = 4,
        rate: float = 0.1,
        rank: int = 16,
        **block: Any,
    ) -> None:
        require(rank >= 1, f"rank must be at least 1, not {rank}")

        def mixer(dim: int, number: int) -> FastMemory:
            return FastMemory(
                dim,
                heads,
                chunk,
                conv=conv,
                depth=depth,
                rate=rate,
                bias=bias,
                power=power,
                retention=retention,
                optimiser=optimiser,
                rank=rank,
            )

        super().__init__(input_size, mixer, **block)
