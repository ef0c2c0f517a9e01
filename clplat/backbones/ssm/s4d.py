"""S4D: a diagonal linear system for each channel, run as a convolution."""

from __future__ import annotations

import math
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clplat.backbones.base import State, in_reference_form, require
from clplat.backbones.block import Feedforward, Mixer, Stack
from clplat.backbones.ops.hippo import diagonal_frequencies, log_uniform, zero_order_hold
from clplat.backbones.ops.linear_system import diagonal_response, diagonal_scan, diagonal_system_loop, in_parts

Kind = Literal["lin", "inv", "legs"]


class DiagonalSystems(Mixer):
    """D linear systems with N/2 pairs of conjugate states each, side by side: (B, T, D) -> (B, T, D)::

        A = -exp(r) + i f        a = exp(dt A)        b = (a - 1) / A
        h_t = a h_{t-1} + b u_t
        y_t = 2 Re(c . h_t) + d u_t
        out = glu(W_o gelu(y))

    with r, f, c in (D, N/2), dt and d in (D,). Plain sequences are convolved with the kernel ``2 Re(c . a^j b)`` by
    FFT, a part after the other, and the carried state is added as what it leaves behind; with resets or padding a scan
    gives the same.

    State: ``h`` (B, D, N), real parts before imaginary ones, kept in float32 at least.

    Args:
        dim: D.
        state: N, even.
        kind: which frequencies f the systems begin with.
        chunk: steps that the scan computes at once.
    """

    def __init__(self, dim: int, state: int, kind: Kind = "lin", chunk: int = 64) -> None:
        super().__init__()
        require(state >= 2 and state % 2 == 0, f"state must be even and at least 2, not {state}")
        require(chunk >= 1, f"chunk must be at least 1, not {chunk}")
        self.dim, self.state, self.chunk = dim, state, chunk
        self.log_dt = nn.Parameter(log_uniform(dim))
        self.log_decay = nn.Parameter(torch.full((dim, state // 2), math.log(0.5)))
        self.frequency = nn.Parameter(diagonal_frequencies(kind, state).to(self.log_decay.dtype).repeat(dim, 1))
        self.read = nn.Parameter(torch.randn(dim, state // 2, 2) / 2**0.5)  # real and imaginary part
        self.skip = nn.Parameter(torch.randn(dim))
        self.out = nn.Linear(dim, 2 * dim)

    def forward(
        self, x_BTD: Tensor, state: State = None, *, reset_BT: Tensor | None = None, mask_BT: Tensor | None = None
    ) -> tuple[Tensor, State]:
        dtype = torch.promote_types(x_BTD.dtype, torch.float32)
        u_BTD = x_BTD.to(dtype)
        with torch.autocast(x_BTD.device.type, enabled=False):
            A_DN = torch.complex(-self.log_decay.to(dtype).exp(), self.frequency.to(dtype))
            a_DN, b_DN = zero_order_hold(A_DN, self.log_dt.to(dtype).exp()[:, None])
            c_DN = torch.complex(*self.read.to(dtype).unbind(-1))
            h_BDN = None if state is None else state["h"].to(dtype)
            if reset_BT is None and mask_BT is None and not in_reference_form():
                y_BTD1, h_BDN = in_parts(u_BTD, h_BDN, partial(diagonal_response, a_DN, b_DN, c_DN))
                y_BTD = y_BTD1.squeeze(-1)
            else:
                if h_BDN is None:
                    h_BDN = self.init_state(len(x_BTD), device=x_BTD.device, dtype=dtype)["h"]
                given = (u_BTD, h_BDN, a_DN, b_DN, c_DN, reset_BT, mask_BT)
                loop = in_reference_form()
                y_BTD, h_BDN = diagonal_system_loop(*given) if loop else diagonal_scan(*given, self.chunk)
            y_BTD = F.gelu(y_BTD + self.skip.to(dtype) * u_BTD)
        return F.glu(self.out(y_BTD.to(x_BTD.dtype)), -1), {"h": h_BDN}

    def init_state(self, batch: int, *, device: torch.device, dtype: torch.dtype) -> State:
        dtype = torch.promote_types(dtype, torch.float32)
        return {"h": torch.zeros((batch, self.dim, self.state), device=device, dtype=dtype)}

    def state_size(self, T: int) -> int:
        return self.dim * self.state


class S4D(Stack):
    """S4D (Gu et al. 2022, arXiv 2206.11893): diagonal state spaces, ZOH, B = 1, initialised as S4D-Lin by default.

    (B, T, input_size) -> (B, T, dim), with a state of fixed size; see :class:`DiagonalSystems`. As in the paper a block
    is the systems, GELU and a gated linear map, without an MLP of its own (``mlp`` adds one). dt, A and c are learned
    at the same rate as all other weights, where the paper gives dt and A a smaller one without weight decay.

    Args:
        state: real states of each channel, even; half as many complex ones are held.
        kind: frequencies in the beginning: lin, inv, or legs for those of HiPPO-LegS.
        chunk: steps that are computed at once where there are resets or padding; the result is the same for all.
        mlp: kind of the blocks' MLPs: gelu, swiglu, or none.
    """

    def __init__(
        self,
        input_size: int,
        *,
        state: int = 64,
        kind: Kind = "lin",
        chunk: int = 64,
        mlp: Feedforward = "none",
        **block: Any,
    ) -> None:
        super().__init__(input_size, lambda dim, _: DiagonalSystems(dim, state, kind, chunk), mlp=mlp, **block)
