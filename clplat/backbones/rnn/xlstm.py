"""xLSTM: LSTMs with exponential gates, and a matrix or a number for each unit as memory."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from clplat.backbones.base import State, in_reference_form, map_state, require
from clplat.backbones.block import Mixer, Stack, split_heads
from clplat.backbones.ops.mlstm import mlstm_chunk, mlstm_loop
from clplat.backbones.ops.recurrence import unroll
from clplat.backbones.rnn.cells import ScalarLongShort, States
from clplat.backbones.rnn.headwise import HeadwiseLinear

CAP = 15.0  # of the matrix memory's gates before their activation


class MatrixLSTM(Mixer):
    """mLSTM (Beck et al. 2024, arXiv 2405.04517, eq. 19-27) as in xLSTM 7B (Beck et al. 2025, arXiv 2503.13427)::

        q, k, v = W_q x, W_k x / sqrt(K), W_v x                i, f = cap(w_i . x + b_i), cap(w_f . x + b_f)
        C_t = sigmoid(f) C_{t-1} + exp(i) k v'                 n_t = sigmoid(f) n_{t-1} + exp(i) k
        h_t = C_t' q / max(|n_t . q|, 1)                       y = W_o (sigmoid(W_g x) * norm(h))

    for each head, K = D / heads; cap(a) = 15 tanh(a / 15); norm: RMS over a head, with a scale.
    (B, T, D) -> (B, T, D). State: C ``cell`` (B, heads, K, K), n ``normaliser`` (B, heads, K) and ``stabiliser``
    (B, heads), see :mod:`clplat.backbones.ops.mlstm`; all kept in float32 at least.

    Args:
        dim: D.
        heads: number of heads; divides D.
        chunk: steps that are computed at once.
    """

    def __init__(self, dim: int, heads: int, chunk: int) -> None:
        super().__init__()
        require(heads >= 1 and dim % heads == 0, f"dim {dim} must be a multiple of heads {heads}")
        require(chunk >= 1, f"chunk must be at least 1, not {chunk}")
        self.dim, self.heads, self.chunk = dim, heads, chunk
        self.qkvg = nn.Linear(dim, 4 * dim)
        self.gates = nn.Linear(dim, 2 * heads)
        with torch.no_grad():  # input gates begin nearly closed, and heads forget at different speeds
            self.gates.weight.zero_()
            self.gates.bias.copy_(torch.cat([torch.full((heads,), -10.0), torch.linspace(3, 6, heads)]))
        self.norm = nn.RMSNorm(dim // heads, eps=1e-5)
        self.out = nn.Linear(dim, dim)

    def forward(
        self, x_BTD: Tensor, state: State = None, *, reset_BT: Tensor | None = None, mask_BT: Tensor | None = None
    ) -> tuple[Tensor, State]:
        dtype = torch.promote_types(x_BTD.dtype, torch.float32)  # running sums over many steps lose digits in 16 bits
        if state is None:
            state = self.init_state(len(x_BTD), device=x_BTD.device, dtype=dtype)
        *qkv, gate = self.qkvg(x_BTD).chunk(4, -1)
        q, k, v = (split_heads(part, self.heads).to(dtype) for part in qkv)
        i_BHT, f_BHT = (CAP * (self.gates(x_BTD).to(dtype) / CAP).tanh()).mT.chunk(2, 1)
        f_BHT = nnf.logsigmoid(f_BHT)
        if mask_BT is not None:
            i_BHT = i_BHT.masked_fill(~mask_BT[:, None], -torch.inf)
            f_BHT = f_BHT.masked_fill(~mask_BT[:, None], 0)
        memory = (state["cell"].to(dtype), state["normaliser"].to(dtype), state["stabiliser"].to(dtype))
        form = mlstm_loop if in_reference_form() else partial(mlstm_chunk, chunk=self.chunk)
        with torch.autocast(x_BTD.device.type, enabled=False):
            h_BHTK, (C, n, m) = form(q, k * (self.dim // self.heads) ** -0.5, v, i_BHT, f_BHT, memory, reset_BT)
        h_BTHK = self.norm(h_BHTK.transpose(1, 2).to(self.norm.weight.dtype))
        y_BTD = self.out(gate.sigmoid() * h_BTHK.flatten(2).to(x_BTD.dtype))
        return y_BTD, {"cell": C, "normaliser": n, "stabiliser": m}

    def init_state(self, batch: int, *, device: torch.device, dtype: torch.dtype) -> State:
        dtype, size = torch.promote_types(dtype, torch.float32), self.dim // self.heads
        shapes = {"cell": (size, size), "normaliser": (size,), "stabiliser": ()}
        return {
            name: torch.zeros((batch, self.heads, *shape), device=device, dtype=dtype) for name, shape in shapes.items()
        }

    def state_size(self, T: int) -> int:
        return self.dim * (self.dim // self.heads + 1) + self.heads


class ScalarLSTM(Mixer):
    """sLSTM with memory mixing within heads (Beck et al. 2024, arXiv 2405.04517, eq. 8-18): (B, T, D) -> (B, T, D)::

        i, f, g, o = W x + b + R h + b'          R block-diagonal, a block for each head and gate
        h' = step of clplat.backbones.rnn.cells.ScalarLongShort
        y = W_o norm(h') + b_o                   norm: RMS over a head, with a scale

    Its gates read its output, so there is no parallel form. State: ``hidden``, ``cell``, ``normaliser`` and
    ``stabiliser``, each (B, D), kept in float32 at least.

    Args:
        dim: D.
        heads: number of heads; divides D.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.dim, self.heads = dim, heads
        self.cell = ScalarLongShort(dim)
        self.ih = nn.Linear(dim, 4 * dim)
        self.hh = HeadwiseLinear(dim, 4 * dim, heads)
        self.norm = nn.RMSNorm(dim // heads, eps=1e-5)
        self.out = nn.Linear(dim, dim)

    def forward(
        self, x_BTD: Tensor, state: State = None, *, reset_BT: Tensor | None = None, mask_BT: Tensor | None = None
    ) -> tuple[Tensor, State]:
        dtype = torch.promote_types(x_BTD.dtype, torch.float32)
        if state is None:
            state = self.init_state(len(x_BTD), device=x_BTD.device, dtype=dtype)

        def step(input_BG: Tensor, own: States) -> tuple[Tensor, States]:
            own = self.cell(input_BG, self.hh(own["hidden"]).to(dtype), own)
            return own["hidden"], own

        initial = map_state(torch.zeros_like, state)
        h_BTD, state = unroll(step, self.ih(x_BTD).to(dtype), state, initial, reset_BT, mask_BT)
        h_BTHK = self.norm(h_BTD.unflatten(-1, (self.heads, -1)).to(self.norm.weight.dtype))
        return self.out(h_BTHK.flatten(2).to(x_BTD.dtype)), state

    def init_state(self, batch: int, *, device: torch.device, dtype: torch.dtype) -> State:
        zeros = torch.zeros((batch, self.dim), device=device, dtype=torch.promote_types(dtype, torch.float32))
        return {name: zeros.clone() for name in self.cell.parts}

    def state_size(self, T: int) -> int:
        return 4 * self.dim


class XLSTM(Stack):
    """xLSTM[a:b]: a blocks with a matrix memory, b with scalar ones, and again (Beck et al. 2024, arXiv 2405.04517).

    (B, T, input_size) -> (B, T, dim), with a state of fixed size; see :class:`MatrixLSTM`, which is trained in
    parallel, and :class:`ScalarLSTM`, which can track a state and is not. Both sit in this package's pre-norm blocks
    with an MLP behind them, as all blocks of xLSTM 7B (Beck et al. 2025, arXiv 2503.13427) do, which is xLSTM[1:0]:
    the first paper's projection up around the matrix memory and its learned skip are left out, and its convolution is
    ``conv=4``. Keys are as wide as values; xLSTM 7B has them half as wide.

    Args:
        matrix: a, blocks with a matrix memory in a row.
        scalar: b, blocks with scalar memories after them; 0 for none.
        heads: heads in each block; dim is a multiple of heads.
        chunk: steps that are computed at once; the result is the same for all.
    """

    def __init__(
        self, input_size: int, *, matrix: int = 1, scalar: int = 1, heads: int = 4, chunk: int = 64, **block: Any
    ) -> None:
        require(matrix >= 0 and scalar >= 0 and matrix + scalar >= 1, f"xLSTM[{matrix}:{scalar}] has no blocks")

        def make_mixer(dim: int, number: int) -> Mixer:
            if number % (matrix + scalar) < matrix:
                return MatrixLSTM(dim, heads, chunk)
            return ScalarLSTM(dim, heads)

        super().__init__(input_size, make_mixer, **block)
