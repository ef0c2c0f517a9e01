"""The gated recurrent unit."""

from __future__ import annotations

from typing import Any

import torch

from clplat.backbones.rnn.cells import Gated
from clplat.backbones.rnn.recurrent import Recurrent


class GRU(Recurrent):
    """Gated recurrent unit (Cho et al. 2014, arXiv 1406.1078, eq. 5-8; gates placed as in ``torch.nn.GRU``).

    (B, T, D) -> (B, T, hidden), for each layer with weights ``ih`` (3 hidden, D) and ``hh`` (3 hidden, hidden)::

        r = sigmoid(W_ir x + b_ir + W_hr h + b_hr)
        z = sigmoid(W_iz x + b_iz + W_hz h + b_hz)
        n = tanh(W_in x + b_in + r * (W_hn h + b_hn))
        h' = (1 - z) * n + z * h

    The state is ``{"hidden": (B, layers, hidden)}``.

    Args:
        hidden: width of every layer.
        layers: number of stacked layers, at least 1.
    """

    def __init__(self, input_size: int, **recurrent: Any) -> None:
        super().__init__(input_size, Gated, kernel=torch.gru, **recurrent)
