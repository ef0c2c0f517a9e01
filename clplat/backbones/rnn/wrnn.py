"""The wave recurrent network: rings of neurons round which activity travels."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clplat.backbones.base import require
from clplat.backbones.rnn.cells import Cell, States
from clplat.backbones.rnn.recurrent import Recurrent


class Wave(Cell):
    """``h' = relu(W x + b + u * h)``."""

    gates = 1

    def forward(self, input_BG: Tensor, hidden_BG: Tensor, state: States) -> States:
        return {"hidden": (input_BG + hidden_BG).relu()}


class Rings(nn.Module):
    """``u * h``: a circular convolution over the neurons of each ring that mixes rings, (B, hidden) -> (B, hidden)."""

    def __init__(self, hidden: int, rings: int) -> None:
        super().__init__()
        require(rings >= 1 and hidden % rings == 0, f"hidden {hidden} must be a multiple of rings {rings}")
        self.conv = nn.Conv1d(rings, rings, 3)

    def forward(self, h_BH: Tensor) -> Tensor:
        h_BRN = h_BH.unflatten(-1, (self.conv.in_channels, -1))
        around = torch.cat([h_BRN[..., -1:], h_BRN, h_BRN[..., :1]], -1)
        u_BRN: Tensor = self.conv(around)
        return u_BRN.flatten(-2)


class WaveRNN(Recurrent):
    """wRNN (Keller, Muller, Sejnowski & Welling 2024, arXiv 2309.08045).

    (B, T, D) -> (B, T, hidden). The hidden units are rings of n = hidden / rings neurons, and a step is::

        h_t = relu(W x_t + b + u * h_{t-1})

    with a convolution u of 3 taps round the rings, that mixes rings: 3 rings^2 + rings parameters, whatever n is. It
    begins as a shift by one neuron without bias, and each ring takes its inputs at neuron 0, with weight 1: so the
    network begins as a store of its last n inputs, what came in j steps ago being at neuron -j mod n. ring r reads the
    inputs d with d = r modulo the smaller of D and rings; with the paper's single input all rings read it. The authors'
    code leaves the convolution its random bias.

    The state is ``{"hidden": (B, layers, hidden)}``. Not linear in h, so step by step only. Nothing bounds h, as
    nothing does in any network of rectifiers.

    Args:
        rings: rings in each layer (the paper's channels); divides hidden.
        hidden: neurons of a layer, over all rings.
        layers: number of stacked layers, at least 1.
    """

    def __init__(self, input_size: int, *, rings: int = 4, **recurrent: Any) -> None:
        super().__init__(input_size, Wave, lambda hidden, _: Rings(hidden, rings), **recurrent)
        with torch.no_grad():
            for ih, hh in zip(self.ih, self.hh, strict=True):
                assert isinstance(ih, nn.Linear)
                assert isinstance(hh, Rings)
                assert hh.conv.bias is not None
                reads_RD = torch.arange(ih.in_features) - torch.arange(rings)[:, None]
                first = (reads_RD % min(ih.in_features, rings) == 0)[:, None].to(ih.weight)
                ih.weight.copy_(F.pad(first, (0, 0, 0, self.output_size // rings - 1)).flatten(0, 1))
                hh.conv.weight.copy_(torch.eye(rings)[..., None] * torch.tensor([0.0, 0.0, 1.0]))
                ih.bias.zero_()
                hh.conv.bias.zero_()
