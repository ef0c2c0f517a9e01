"""Recurrent networks in heads: the cells of this package with a block-diagonal recurrence."""

from __future__ import annotations

from typing import Any, Literal

from clplat.backbones.rnn.cells import Cell, Elman, Gated, LongShort, ScalarLongShort
from clplat.backbones.rnn.headwise import HeadwiseLinear
from clplat.backbones.rnn.recurrent import Recurrent

CELLS: dict[str, type[Cell]] = {"lstm": LongShort, "gru": Gated, "elman": Elman, "slstm": ScalarLongShort}


class FlashRNN(Recurrent):
    """Multi-head recurrent layers (Poeppel, Beck & Hochreiter 2024, FlashRNN, arXiv 2412.07752).

    (B, T, D) -> (B, T, hidden), for each layer the step of :mod:`clplat.backbones.rnn.cells` with recurrent matrices
    that do not mix heads; the next layer's input map does::

        s_t = cell(W x_t + b, R h_{t-1} + b', s_{t-1})        R = diag(R_1, ..., R_heads) for each gate

    State: the cell's, each (B, layers, hidden): ``hidden``; with ``cell`` for lstm; with ``normaliser`` and
    ``stabiliser`` too for slstm (Beck et al. 2024, arXiv 2405.04517). The recurrence is not linear in its state, so
    there is no parallel form over time; the paper's fused GPU kernels are not part of this package. As everywhere here
    there are two biases, of which the authors' code keeps the sum but for the gru's n.

    Args:
        cell: which step.
        heads: blocks of each recurrent matrix; divides hidden.
        hidden: width of every layer.
        layers: number of stacked layers, at least 1.
    """

    def __init__(
        self,
        input_size: int,
        *,
        cell: Literal["lstm", "gru", "elman", "slstm"] = "lstm",
        heads: int = 4,
        **recurrent: Any,
    ) -> None:
        super().__init__(input_size, CELLS[cell], lambda n, m: HeadwiseLinear(n, m, heads), **recurrent)
