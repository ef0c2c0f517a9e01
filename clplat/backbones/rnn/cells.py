"""The steps of recurrent networks: from a layer's linear maps of its input and of its own output to its next states."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

States = dict[str, Tensor]


class Cell(nn.Module):
    """One step of one layer.

    Attributes:
        gates: how many maps of the input, and of the layer's output, a step reads.
        parts: names of the layer's states, ``hidden``, which is its output, first.
    """

    gates: int
    parts: tuple[str, ...] = ("hidden",)

    def __init__(self, hidden: int) -> None:
        super().__init__()

    def forward(self, input_BG: Tensor, hidden_BG: Tensor, state: States) -> States:
        """From ``W x + b`` and ``R h + b'`` (B, gates * hidden) and the states (B, hidden) to the next states."""
        raise TypeError(f"{type(self).__name__} does not define forward")


class Elman(Cell):
    """``h' = tanh(W x + R h)``."""

    gates = 1

    def forward(self, input_BG: Tensor, hidden_BG: Tensor, state: States) -> States:
        return {"hidden": (input_BG + hidden_BG).tanh()}


class Gated(Cell):
    """The cell of :class:`clplat.backbones.rnn.gru.GRU`; gates in the order r, z, n."""

    gates = 3

    def forward(self, input_BG: Tensor, hidden_BG: Tensor, state: States) -> States:
        reset_x, update_x, new_x = input_BG.chunk(3, -1)
        reset_h, update_h, new_h = hidden_BG.chunk(3, -1)
        update = (update_x + update_h).sigmoid()
        new = (new_x + (reset_x + reset_h).sigmoid() * new_h).tanh()
        return {"hidden": new + update * (state["hidden"] - new)}


class LongShort(Cell):
    """The cell of :class:`clplat.backbones.rnn.lstm.LSTM`; gates in the order i, f, g, o."""

    gates = 4
    parts = ("hidden", "cell")

    def forward(self, input_BG: Tensor, hidden_BG: Tensor, state: States) -> States:
        enter, forget, new, leave = (input_BG + hidden_BG).chunk(4, -1)
        cell = forget.sigmoid() * state["cell"] + enter.sigmoid() * new.tanh()
        return {"hidden": leave.sigmoid() * cell.tanh(), "cell": cell}


class ScalarLongShort(Cell):
    """sLSTM (Beck et al. 2024, arXiv 2405.04517, eq. 8-17): exponential gates, a normaliser n, and a stabiliser m::

        m' = max(log f + m, i)                         i, log f: pre-activation, log sigmoid of the pre-activation
        c' = exp(log f + m - m') c + exp(i - m') tanh(g)
        n' = exp(log f + m - m') n + exp(i - m')
        h' = sigmoid(o) c' / n'

    c exp(m) and n exp(m) are the memory proper. m is taken from both, so that no exponential is larger than 1 and n'
    is never below 1. It begins where the first gate puts it, which is where m was minus infinity; n = 0 tells.
    """

    gates = 4
    parts = ("hidden", "cell", "normaliser", "stabiliser")

    def forward(self, input_BG: Tensor, hidden_BG: Tensor, state: States) -> States:
        enter, forget, new, leave = (input_BG + hidden_BG).chunk(4, -1)
        kept = F.logsigmoid(forget) + state["stabiliser"]
        stabiliser = torch.where(state["normaliser"] == 0, enter, torch.maximum(kept, enter))
        keep, add = (kept - stabiliser).clamp(max=0).exp(), (enter - stabiliser).exp()  # clamped where n = 0 only
        cell = keep * state["cell"] + add * new.tanh()
        normaliser = keep * state["normaliser"] + add
        hidden = leave.sigmoid() * cell / normaliser
        return {"hidden": hidden, "cell": cell, "normaliser": normaliser, "stabiliser": stabiliser}
