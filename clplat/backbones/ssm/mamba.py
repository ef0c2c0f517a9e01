"""Mamba: a diagonal state space whose steps, inputs and outputs depend on what is read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clplat.backbones.base import require
from clplat.backbones.block import Feedforward, Norm, Stack
from clplat.backbones.ops.hippo import log_uniform
from clplat.backbones.ops.selective_scan import Decay
from clplat.backbones.ssm.selective import SelectiveScan

FASTEST = 20.0  # of the logarithm of a rate: such a state forgets at once, and a larger one would overflow


class SelectiveStateSpace(SelectiveScan):
    """The selective state space (arXiv 2312.00752, algorithm 2) with A discretised by ZOH and B by Euler::

        s = softplus(W_s r + b)        decay(s, k) = exp(s A)        A = -exp(a)

    a is learned, (E, N), and begins as log 1 .. log N for every channel; softplus(b) begins between 0.001 and 0.1.
    Fixed states can be put before and behind the learned ones: with A = 0, a running sum, and with A = -100, which
    forgets all but the present step.

    Args:
        dim: D.
        expand: E / D.
        state: learned states of each channel.
        conv: width of the convolution in steps.
        chunk: steps that are computed at once.
        ones: states with A = 0.
        zeros: states with A = -100.
    """

    def __init__(
        self, dim: int, *, expand: int, state: int, conv: int, chunk: int, ones: int = 0, zeros: int = 0
    ) -> None:
        require(min(ones, zeros) >= 0, f"numbers of fixed states must not be negative: {ones}, {zeros}")
        inner, rank = expand * dim, step_rank(dim)
        super().__init__(dim, inner=inner, state=ones + state + zeros, rank=rank, conv=conv, chunk=chunk)
        self.ones, self.zeros = ones, zeros
        self.log_rate = nn.Parameter(torch.arange(1.0, state + 1).log().repeat(inner, 1))
        with torch.no_grad():
            self.size.weight.uniform_(-(rank**-0.5), rank**-0.5)
            self.size.bias.copy_(inverse_softplus(log_uniform(inner).exp()))

    def sizes(self, r_BTE: Tensor, k_BTN: Tensor) -> Tensor:
        return F.softplus(r_BTE)

    def decay(self, dtype: torch.dtype) -> Decay:
        A_EN = -self.log_rate.to(dtype).clamp(max=FASTEST).exp()
        A_EN = F.pad(F.pad(A_EN, (self.ones, 0), value=0.0), (0, self.zeros), value=-100.0)
        return lambda s, k: (s * A_EN).exp()


def step_rank(dim: int) -> int:
    """Numbers from which the step sizes of all channels are made: one for 16 of dim."""
    return -(-dim // 16)


def inverse_softplus(x: Tensor) -> Tensor:
    """y with ``softplus(y) = x``, for x > 0."""
    return x + (-(-x).expm1()).log()


class Mamba(Stack):
    """Mamba (Gu & Dao 2023, arXiv 2312.00752).

    (B, T, input_size) -> (B, T, dim), with a state of fixed size; see :class:`SelectiveScan` and
    :class:`SelectiveStateSpace`. Blocks of a mixer alone behind RMSNorm, as in the paper.

    Args:
        state: states of each channel.
        expand: channels in units of dim.
        conv: width in steps of the convolution in the block.
        chunk: steps that are computed at once; the result is the same for all.
        norm: kind of the norms: layer or rms.
        mlp: kind of the blocks' MLPs: gelu, swiglu, or none.
    """

    kind: ClassVar[Callable[..., SelectiveScan]] = SelectiveStateSpace

    def __init__(
        self,
        input_size: int,
        *,
        state: int = 16,
        expand: int = 2,
        conv: int = 4,
        chunk: int = 64,
        norm: Norm = "rms",
        mlp: Feedforward = "none",
        **block: Any,
    ) -> None:
        def mixer(dim: int, number: int) -> SelectiveScan:
            return self.kind(dim, expand=expand, state=state, conv=conv, chunk=chunk)

        super().__init__(input_size, mixer, norm=norm, mlp=mlp, **block)
