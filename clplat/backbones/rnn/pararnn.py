"""ParaRNN: non-linear recurrent networks that are trained in parallel over time by Newton's method."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from clplat.backbones.base import State, blank, in_reference_form, require
from clplat.backbones.block import Mixer, Stack
from clplat.backbones.conv.short import ShortConv
from clplat.backbones.ops.newton import newton, newton_loop
from clplat.backbones.rnn.diagonal import DiagonalCell, DiagonalGRU, DiagonalLEM, DiagonalLSTM
from clplat.backbones.rnn.headwise import HeadwiseLinear

CELLS: dict[str, type[DiagonalCell]] = {"gru": DiagonalGRU, "lstm": DiagonalLSTM, "lem": DiagonalLEM}


class ParallelCell(Mixer):
    """A diagonal cell behind a convolution, with an output gate: (B, T, D) -> (B, T, D)::

        u, g = W_u x, W_g x        x_t = B silu(conv(u))_t, block-diagonal for each of the cell's gates
        h_t = cell(x_t, h_{t-1})   y = W_o (norm(h) * silu(g))        norm: RMS, with a scale

    State: ``cell`` (B, S, D), kept in float32 at least, and ``convolution``, see :class:`ShortConv`.

    Args:
        dim: D.
        cell: which step, a name in CELLS.
        heads: blocks of the map to the gates; divides dim.
        conv: width of the convolution in steps.
        parallel: Newton's method, or the loop.
        chunk: steps that are scanned at once.
    """

    def __init__(self, dim: int, cell: str, heads: int, conv: int, parallel: str, chunk: int) -> None:
        super().__init__()
        require(chunk >= 1, f"chunk must be at least 1, not {chunk}")
        self.dim, self.parallel, self.chunk = dim, parallel, chunk
        self.enter, self.out = nn.Linear(dim, 2 * dim), nn.Linear(dim, dim)
        self.convolution, self.cell = ShortConv(dim, conv), CELLS[cell](dim)
        self.gates = HeadwiseLinear(dim, self.cell.gates * dim, heads)
        with torch.no_grad():  # units begin with different speeds
            self.gates.bias.zero_()
            self.gates.bias[:dim] = -torch.linspace(0, 1, dim)
        self.norm = nn.RMSNorm(dim, eps=1e-5)

    def forward(
        self, x_BTD: Tensor, state: State = None, *, reset_BT: Tensor | None = None, mask_BT: Tensor | None = None
    ) -> tuple[Tensor, State]:
        dtype = torch.promote_types(x_BTD.dtype, torch.float32)
        if state is None:
            state = self.init_state(len(x_BTD), device=x_BTD.device, dtype=x_BTD.dtype)
        u_BTD, gate_BTD = self.enter(x_BTD).chunk(2, -1)
        u_BTD, inputs = self.convolution(
            blank(u_BTD, mask_BT), state["convolution"], reset_BT=reset_BT, mask_BT=mask_BT
        )
        x_BTGD = self.gates(nnf.silu(u_BTD)).to(dtype).unflatten(-1, (self.cell.gates, -1))
        loop = in_reference_form() or self.parallel == "loop"
        form = newton_loop if loop else partial(newton, jacobian=self.cell.jacobian, chunk=self.chunk)
        with torch.autocast(x_BTD.device.type, enabled=False):
            h_BTSD, last_BSD = form(
                self.cell.step, x_BTGD=x_BTGD, h_BSD=state["cell"].to(dtype), reset_BT=reset_BT, mask_BT=mask_BT
            )
        h_BTD = self.norm(h_BTSD[:, :, 0].to(self.norm.weight.dtype)).to(x_BTD.dtype)
        return self.out(h_BTD * nnf.silu(gate_BTD)), {"cell": last_BSD, "convolution": inputs}

    def init_state(self, batch: int, *, device: torch.device, dtype: torch.dtype) -> State:
        inputs = self.convolution.init_state(batch, device=device, dtype=dtype)
        shape, dtype = (batch, self.cell.states, self.dim), torch.promote_types(dtype, torch.float32)
        return {"cell": torch.zeros(shape, device=device, dtype=dtype), "convolution": inputs}

    def state_size(self, T: int) -> int:
        return self.cell.states * self.dim + self.convolution.state_size(T)


class ParaRNN(Stack):
    """ParaRNN (Danieli et al. 2025, arXiv 2510.21450): a GRU or LSTM whose units read no state but their own.

    (B, T, input_size) -> (B, T, dim). The gates read the state, so the recurrence is not linear, yet a step's Jacobian
    is a number (GRU) or a 2 x 2 matrix (LSTM, LEM) for each unit; Newton's method over all steps at once is then a few
    linear scans. For the cells see :mod:`clplat.backbones.rnn.diagonal`, for the method, which is exact here where the
    authors' code takes three rounds, :mod:`clplat.backbones.ops.newton`, for the layer, as in their language models,
    :class:`ParallelCell`. The LEM is an addition of the same kind. State: the cell's, S * dim numbers in each block,
    and conv - 1 inputs of the convolution.

    Assumed from the authors' code: weights of a unit on its states begin as N(0, 4 / (5 dim)), and biases as 0, those
    of the first gate evenly spaced from 0 to -1.

    Args:
        cell: gru, lstm, or lem.
        heads: blocks of the map to the cell's gates; dim is a multiple of heads.
        conv: width of the causal convolution in front of the cell.
        parallel: newton, or loop: step by step, with the same results.
        chunk: steps that are scanned at once; the result is the same for all.
    """

    def __init__(
        self,
        input_size: int,
        *,
        cell: Literal["gru", "lstm", "lem"] = "gru",
        heads: int = 2,
        conv: int = 4,
        parallel: Literal["newton", "loop"] = "newton",
        chunk: int = 64,
        **block: Any,
    ) -> None:
        super().__init__(input_size, lambda dim, number: ParallelCell(dim, cell, heads, conv, parallel, chunk), **block)
