"""The long short-term memory, and the eight networks that differ from it in one thing each."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from clplat.backbones.rnn.cells import Cell, LongShort, States
from clplat.backbones.rnn.recurrent import Recurrent

Variant = Literal["np", "vanilla", "nig", "nfg", "nog", "niaf", "noaf", "cifg", "fgr"]


class Ablated(Cell):
    """A cell with peepholes, which let gates read the cell, and with one thing changed; see :class:`LSTM`.

    Gates are in the order i, f, g, o, less those that the variant does not have. States: beside ``hidden`` and
    ``cell``, what the gates i, f, o were if they are fed back (fgr).
    """

    parts: tuple[str, ...] = ("hidden", "cell")

    def __init__(self, hidden: int, variant: Variant) -> None:
        super().__init__(hidden)
        self.variant = variant
        absent = {"nig": "i", "nfg": "f", "cifg": "f", "nog": "o"}.get(variant, "")
        self.names = [name for name in "ifgo" if name != absent]
        self.gates = len(self.names)
        self.peephole = nn.ParameterDict(
            {name: torch.empty(hidden).uniform_(-(hidden**-0.5), hidden**-0.5) for name in self.names if name != "g"}
        )
        if variant == "fgr":
            self.parts = ("hidden", "cell", "enter", "forget", "leave")
            self.feedback = nn.Linear(3 * hidden, 3 * hidden, bias=False)
            nn.init.uniform_(self.feedback.weight, -(hidden**-0.5), hidden**-0.5)

    def forward(self, input_BG: Tensor, hidden_BG: Tensor, state: States) -> States:
        pre = dict(zip(self.names, (input_BG + hidden_BG).chunk(self.gates, -1), strict=True))
        if self.variant == "fgr":
            fed = self.feedback(torch.cat([state["enter"], state["forget"], state["leave"]], -1))
            pre |= {name: pre[name] + more for name, more in zip("ifo", fed.chunk(3, -1), strict=True)}
        one = torch.ones_like(state["cell"])

        def gate(name: str, cell: Tensor) -> Tensor:
            return (pre[name] + self.peephole[name] * cell).sigmoid() if name in pre else one

        enter = gate("i", state["cell"])
        forget = 1 - enter if self.variant == "cifg" else gate("f", state["cell"])
        new = pre["g"] if self.variant == "niaf" else pre["g"].tanh()
        cell = forget * state["cell"] + enter * new
        leave = gate("o", cell)
        hidden = leave * (cell if self.variant == "noaf" else cell.tanh())
        after = {"hidden": hidden, "cell": cell, "enter": enter, "forget": forget, "leave": leave}
        return {name: after[name] for name in self.parts}


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

    The variants are those of Greff et al. 2017 (LSTM: A Search Space Odyssey, arXiv 1503.04069, section 3). There the
    vanilla network has peepholes: ``p_i * c``, ``p_f * c`` and ``p_o * c'`` inside the sigmoids of i, f and o. The
    others change one thing in it each. ``np``, without peepholes, is the default here, and the one that runs on torch's
    fused kernel; the others are computed step by step, as in the paper.

    ========  ==============================  ========  =====================================================
    vanilla   peepholes                       niaf      g without its tanh
    nig       i = 1                           noaf      h' = o * c'
    nfg       f = 1                           cifg      f = 1 - i
    nog       o = 1                           fgr       i, f, o also read the last step's i, f and o, through
                                                        nine more matrices; they are then part of the state
    ========  ==============================  ========  =====================================================

    Args:
        variant: what is changed; np is the network above.
        hidden: width of every layer.
        layers: number of stacked layers, at least 1.
    """

    def __init__(self, input_size: int, *, variant: Variant = "np", **recurrent: Any) -> None:
        if variant == "np":
            super().__init__(input_size, LongShort, kernel=torch.lstm, **recurrent)
        else:
            super().__init__(input_size, lambda hidden: Ablated(hidden, variant), **recurrent)
