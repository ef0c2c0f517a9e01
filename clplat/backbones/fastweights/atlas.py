"""Atlas and OmegaNet: memories that learn from a window of steps at a time."""

from __future__ import annotations

from typing import Any, Literal

from clplat.backbones.block import Stack
from clplat.backbones.fastweights.memory import FastMemory


class Omega(Stack):
    """Memories under the Omega rule (Behrouz et al. 2025, Atlas, arXiv 2505.23735).

    (B, T, input_size) -> (B, T, dim). Each step minimises the loss of the last c steps, with features phi that are
    polynomials of keys and queries. Atlas moves along the orthogonalised momentum (Muon), OmegaNet by gradient
    descent::

        S_t = theta_t S_{t-1} - sum_{t-c<i<=t} gamma_i grad |M(phi(k_i)) - v_i|^2 / 2
        W_t = alpha_t W_{t-1} + eta_t orthogonal(S_t)       Atlas
        W_t = alpha_t W_{t-1} + eta_t S_t, theta = 0        OmegaNet
        y_t = M(phi(q_t); W_t)

    All gradients of a chunk are taken at the weights of its start, those of steps of the window before it too, which
    are kept for that. So chunks are part of the model; windows do not end at them. c = 1 without features is the online
    rule of Titans. ``orthogonal`` is five Newton-Schulz steps, for which the matrices of all steps of a chunk are made;
    they are made again for the gradient rather than kept.

    See :class:`~clplat.backbones.fastweights.memory.FastMemory` for the projections, the gates and the state, and
    :class:`~clplat.backbones.fastweights.monomials.Monomials` for phi, with (K + p)! / (K! p!) features for K = dim /
    heads.

    Assumed: gamma depends on the step i alone and not on t - i; gates are one number for each head; M = q + layer
    norm of a two-layer MLP of phi(q).

    Args:
        optimiser: muon (Atlas), momentum or gd (OmegaNet).
        window: c, steps whose loss each step minimises.
        degree: p of the polynomials; 0 for the keys themselves.
        heads: memories in each block.
        chunk: steps whose gradients are taken at the same weights.
        conv: width of the convolutions behind the projections; 0 for none.
        depth: layers of the memory; 1 is a linear map.
        expansion: width of the memory's hidden layers in units of K.
        rate: the largest step eta.
    """

    def __init__(
        self,
        input_size: int,
        *,
        optimiser: Literal["muon", "momentum", "gd"] = "muon",
        window: int = 8,
        degree: int = 2,
        heads: int = 4,
        chunk: int = 16,
        conv: int = 4,
        depth: int = 2,
        expansion: int = 4,
        rate: float = 0.02,
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
                rate=rate,
                optimiser=optimiser,
                window=window,
                degree=degree,
            )

        super().__init__(input_size, mixer, **block)
