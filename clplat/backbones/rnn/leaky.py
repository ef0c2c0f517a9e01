"""The leaky recurrent network, whose neurons have time constants that are learned."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clplat.backbones.rnn.cells import Cell, States
from clplat.backbones.rnn.recurrent import Recurrent
from clplat.backbones.units import Units


class Leaky(Cell):
    """The step of :class:`LeakyRNN`."""

    gates = 1

    def __init__(self, hidden: int) -> None:
        super().__init__(hidden)
        self.tau = nn.Parameter(1 + torch.rand(hidden))

    def forward(self, input_BG: Tensor, hidden_BG: Tensor, state: States) -> States:
        rate = 1 / self.tau.clamp(min=1)
        return {"hidden": F.leaky_relu(state["hidden"] + rate * (input_BG + hidden_BG - state["hidden"]))}


class NoLoops(nn.Module):
    """``y = W h + b`` in which no neuron reads itself: the diagonal of W is taken as zero."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))
        self.bias = nn.Parameter(torch.empty(outputs))

    def forward(self, h_BH: Tensor) -> Tensor:
        others = ~torch.eye(len(self.weight), device=h_BH.device, dtype=torch.bool)
        return F.linear(h_BH, self.weight * others, self.bias)


class LeakyRNN(Recurrent):
    """Leaky network with trainable time constants (Khajehabdollahi et al. 2024, arXiv 2309.12927).

    (B, T, D) -> (B, T, hidden), for each layer::

        h' = leaky_relu((1 - 1 / tau) * h + (W h + b + W_in x + b_in) / tau)        tau = max(tau, 1), of each neuron

    W has no self-connections: a neuron's own memory is tau alone, and what is longer comes from the network. tau begins
    as 1 + U(0, 1), and the slope of the rectifier is 0.01, as in the authors' code; there h begins as 0.1 U(0, 1), here
    at zero. The state is ``{"hidden": (B, layers, hidden)}``. Not linear in h: step by step only. Nothing bounds h.

    Args:
        hidden: width of every layer.
        layers: number of stacked layers, at least 1.
    """

    def __init__(self, input_size: int, **recurrent: Any) -> None:
        super().__init__(input_size, Leaky, NoLoops, **recurrent)

    def units(self) -> list[Units]:
        """Neurons: a tau of zero acts as one, so a neuron that nothing makes forgets at once and puts out zero."""
        found = []
        for layer in range(len(self.hh)):
            above = [f"ih.{layer + 1}.weight"] if layer + 1 < len(self.hh) else []
            maps = [f"{part}.{layer}.{kind}" for part in ("ih", "hh") for kind in ("weight", "bias")]
            found.append(Units(self.output_size, (*maps, f"cells.{layer}.tau"), (f"hh.{layer}.weight", *above)))
        return found

    def timescales(self) -> list[Tensor]:
        """tau as it acts, (hidden,) for each layer."""
        return [cell.tau.detach().clamp(min=1) for cell in self.cells]  # type: ignore[operator]
