"""The plain recurrent network."""

from __future__ import annotations

import torch
from torch import Tensor

from clplat.backbones.rnn.recurrent import Recurrent


class RNN(Recurrent):
    """Simple recurrent network (Elman 1990, Cognitive Science 14), as ``torch.nn.RNN`` with tanh.

    (B, T, D) -> (B, T, hidden), for each layer with weights ``ih`` (hidden, D) and ``hh`` (hidden, hidden)::

        h' = tanh(W_ih x + b_ih + W_hh h + b_hh)

    The state is ``{"hidden": (B, layers, hidden)}``.

    Args:
        hidden: width of every layer.
        layers: number of stacked layers, at least 1.
    """

    gates = 1
    kernel = staticmethod(torch.rnn_tanh)

    def step(self, input_BG: Tensor, hidden_BG: Tensor, state: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"hidden": (input_BG + hidden_BG).tanh()}
