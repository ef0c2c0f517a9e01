"""Long expressive memory."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from clplat.backbones.base import require
from clplat.backbones.rnn.cells import Cell, States
from clplat.backbones.rnn.recurrent import Recurrent


class Expressive(Cell):
    """The step of :class:`LEM`. Maps of x are in the order d, e, z, y; those of y_{t-1} in the order d, e, z."""

    gates = 4
    parts = ("hidden", "memory")

    def __init__(self, hidden: int, step: float) -> None:
        super().__init__(hidden)
        self.step = step
        self.read = nn.Linear(hidden, hidden)
        for parameter in self.read.parameters():
            nn.init.uniform_(parameter, -(hidden**-0.5), hidden**-0.5)

    def forward(self, input_BG: Tensor, hidden_BG: Tensor, state: States) -> States:
        slow_x, fast_x, memory_x, hidden_x = input_BG.chunk(4, -1)
        slow_y, fast_y, memory_y = hidden_BG.chunk(3, -1)
        slow, fast = self.step * (slow_x + slow_y).sigmoid(), self.step * (fast_x + fast_y).sigmoid()
        memory = state["memory"] + slow * ((memory_x + memory_y).tanh() - state["memory"])
        hidden = state["hidden"] + fast * ((hidden_x + self.read(memory)).tanh() - state["hidden"])
        return {"hidden": hidden, "memory": memory}


class LEM(Recurrent):
    """Long expressive memory (Rusch et al. 2022, arXiv 2110.04744).

    (B, T, D) -> (B, T, hidden), an explicit Euler step of a system with two time scales, each a gate::

        d = step * sigmoid(W_1 y + V_1 x + b_1)
        e = step * sigmoid(W_2 y + V_2 x + b_2)
        z' = (1 - d) * z + d * tanh(W_z y + V_z x + b_z)
        y' = (1 - e) * y + e * tanh(W_y z' + V_y x + b_y)

    y' reads the new z', and both gates read the old y. As many parameters as an LSTM has. The state is
    ``{"hidden": y, "memory": z}``, each (B, layers, hidden). Not linear in y, so step by step only. Several layers,
    each reading the y of the one below, are an addition: the paper has one.

    Args:
        step: the paper's dt, above 0 and at most 1: larger steps may leave the range of tanh.
        hidden: width of every layer.
        layers: number of stacked layers, at least 1.
    """

    def __init__(self, input_size: int, *, step: float = 1.0, **recurrent: Any) -> None:
        require(0 < step <= 1, f"step must be above 0 and at most 1, not {step}")
        super().__init__(
            input_size,
            lambda hidden: Expressive(hidden, step),
            lambda hidden, _: nn.Linear(hidden, 3 * hidden),
            **recurrent,
        )
