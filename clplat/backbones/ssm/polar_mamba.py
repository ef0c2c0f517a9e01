"""Polarised Mamba: Mamba with states that keep all or nothing."""

from __future__ import annotations

from typing import Any

from clplat.backbones.block import Feedforward, Norm, Stack
from clplat.backbones.ssm.mamba import SelectiveStateSpace


class PolarMamba(Stack):
    """Mamba with polarised states (Wang et al. 2025, arXiv 2501.00658).

    (B, T, input_size) -> (B, T, dim), with a state of fixed size; see :class:`SelectiveStateSpace`. Each channel has
    besides its learned states one that never forgets, against recency, and one that keeps the present step only,
    against over-smoothing. As in the authors' code they come first and last, with A = 0 and A = -100, and everything
    else is Mamba's; the ablations of the paper are ``ones=0`` and ``zeros=0``. What never forgets grows without bound
    over a long sequence, as a running sum does; A = -100 forgets only where steps are not tiny: one of 0.001 keeps 90%.

    Args:
        state: learned states of each channel.
        ones: states that never forget.
        zeros: states that keep the present step only.
        expand: channels in units of dim.
        conv: width in steps of the convolution in the block.
        chunk: steps that are computed at once; the result is the same for all.
        norm: kind of the norms: layer or rms.
        mlp: kind of the blocks' MLPs: gelu, swiglu, or none.
    """

    def __init__(
        self,
        input_size: int,
        *,
        state: int = 16,
        ones: int = 1,
        zeros: int = 1,
        expand: int = 2,
        conv: int = 4,
        chunk: int = 64,
        norm: Norm = "rms",
        mlp: Feedforward = "none",
        **block: Any,
    ) -> None:
        def mixer(dim: int, number: int) -> SelectiveStateSpace:
            return SelectiveStateSpace(dim, expand=expand, state=state, conv=conv, chunk=chunk, ones=ones, zeros=zeros)

        super().__init__(input_size, mixer, norm=norm, mlp=mlp, **block)
