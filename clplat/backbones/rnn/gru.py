"""The gated recurrent unit."""

from __future__ import annotations

import torch
from torch import Tensor

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

    gates = 3
    kernel = staticmethod(torch.gru)

    def step(self, input_BG: Tensor, hidden_BG: Tensor, state: dict[str, Tensor]) -> dict[str, Tensor]:
        reset_x, update_x, new_x = input_BG.chunk(3, -1)
        reset_h, update_h, new_h = hidden_BG.chunk(3, -1)
        update = (update_x + update_h).sigmoid()
        new = (new_x + (reset_x + reset_h).sigmoid() * new_h).tanh()
        return {"hidden": new + update * (state["hidden"] - new)}
