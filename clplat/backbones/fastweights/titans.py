"""Titans: long-term memory by surprise, momentum and forgetting."""

from __future__ import annotations

from typing import Any

from clplat.backbones.block import Stack
from clplat.backbones.fastweights.memory import FastMemory


class LongTermMemory(Stack):
    """The neural long-term memory of Titans by itself (Behrouz et al. 2025, arXiv 2501.00663, section 3; LMM).

    (B, T, input_size) -> (B, T, dim). The memory M, an MLP of ``depth`` layers, takes a step on each key and value
    (eq. 12-14), and is read with the query (eq. 15)::

        S_t = eta_t S_{t-1} - theta_t grad |M(k_t) - v_t|^2 / 2
        W_t = (1 - alpha_t) W_{t-1} + S_t
        y_t = M(q_t; W_t)

    with the gradient at the weights of the chunk's start (eq. 16-18). Chunks are part of the model. See
    :class:`~clplat.backbones.fastweights.memory.FastMemory` for the projections, the gates and the state.

    Assumed: theta is at most ``rate``; the gates are one number for each head; M has the layer norm and residual
    connection of TTT, without which its products of weights can grow without bounds (``residual=false`` is the bare
    MLP of the paper).

    Args:
        heads: memories in each block.
        chunk: steps whose gradients are taken at the same weights.
        conv: width of the convolutions behind the projections; 0 for none.
        depth: layers of the memory, L_M in the paper; 1 is a linear map.
        expansion: width of the memory's hidden layers in units of its input.
        residual: whether the memory has a layer norm and a residual connection.
        rate: the largest step theta.
    """

    def __init__(
        self,
        input_size: int,
        *,
        heads: int = 4,
        chunk: int = 16,
        conv: int = 4,
        depth: int = 2,
        expansion: int = 4,
        residual: bool = True,
        rate: float = 0.1,
        **block: Any,
    ) -> None:
        def mixer(dim: int, number: int) -> FastMemory:
            return FastMemory(
                dim,
                heads,
                chunk,
                conv=conv,
                depth=depth,
                expansion=expansion,
                residual=residual,
                rate=rate,
                optimiser="momentum",
            )

        super().__init__(input_size, mixer, **block)
