"""The long short-term memory."""

from __future__ import annotations

import torch
from torch import Tensor

from clplat.backbones.rnn.recurrent import Recurrent


class LSTM(Recurrent):
    """Long short-term memory (Hochreiter & Schmidhuber 1997, Neural Computation 9), as ``torch.nn.LSTM``.

    With the forget gate of Gers, Schmidhuber & Cummins 2000 (Neural Computation 12) and no peepholes.
    (B, T, D) -> (B, T, hidden), for each layer with weights ``ih`` (4 hidden, D) and ``hh`` (4 hidden, hidden)::

        i = sigmoid(W_ii x + b_ii + W_hi h + b_hi)
        f = sigmoid(W_if x + b_if + W_hf h + b_hf)
        g = tanh(W_ig x + b_ig + W_hg h + b_hg)
        o = sigmoid(W_io x + b_io + W_ho h + b_ho)
        c' = f * c + i * g
        h' = o * tanh(c')

    The state is ``{"hidden": (B, layers, hidden), "cell": (B, layers, hidden)}``.

    Args:
        hidden: width of every layer.
        layers: number of stacked layers, at least 1.
    """

    gates = 4
    parts = ("hidden", "cell")
    kernel = staticmethod(torch.lstm)

    def step(self, input_BG: Tensor, hidden_BG: Tensor, state: dict[str, Tensor]) -> dict[str, Tensor]:
        enter, forget, new, leave = (input_BG + hidden_BG).chunk(4, -1)
        cell = forget.sigmoid() * state["cell"] + enter.sigmoid() * new.tanh()
        return {"hidden": leave.sigmoid() * cell.tanh(), "cell": cell}
