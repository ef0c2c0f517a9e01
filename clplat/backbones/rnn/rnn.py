"""The plain recurrent network."""

from __future__ import annotations

from typing import Any

import torch

from clplat.backbones.rnn.cells import Elman
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

    def __init__(self, input_size: int, **recurrent: Any) -> None:
        super().__init__(input_size, Elman, kernel=torch.rnn_tanh, **recurrent)
