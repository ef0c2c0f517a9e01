"""S5: one diagonal linear system for all channels together, run by a parallel scan."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clplat.backbones.base import State, in_reference_form, require
from clplat.backbones.block import Feedforward, Mixer, Stack
from clplat.backbones.ops.hippo import legs_normal, log_uniform, zero_order_hold
from clplat.backbones.ops.linear_system import complexes, pairs
from clplat.backbones.ops.scan import diagonal, diagonal_loop


class SharedSystem(Mixer):
    """One linear system with N/2 pairs of conjugate states, D inputs and D outputs: (B, T, D) -> (B, T, D)::

        A = -exp(r) + i f        a = exp(dt A)        g = (a - 1) / A
        h_t = a h_{t-1} + g (B u_t)
        y_t = 2 Re(C h_t) + d u_t
        out = gelu(y) * sigmoid(W gelu(y))

    with r, f, dt in (N/2,), B in (N/2, D), C in (D, N/2), complex, and d in (D,). The states are computed by a scan,
    exact with resets, padding and a carried state.

    State: ``h`` (B, N), real parts before imaginary ones, kept in float32 at least.

    Args:
        dim: D.
        state: N, even.
        chunk: steps that the scan computes at once.
    """

    def __init__(self, dim: int, state: int, chunk: int = 64) -> None:
        super().__init__()
        require(state >= 2 and state % 2 == 0, f"state must be even and at least 2, not {state}")
        require(chunk >= 1, f"chunk must be at least 1, not {chunk}")
        self.state, self.chunk = state, chunk
        f_N, V = legs_normal(state)
        write = V.mH @ (torch.randn(state, dim) / dim**0.5).to(V.dtype)
        read = torch.complex(*(torch.randn(2, dim, state, dtype=torch.float64) / state**0.5)) @ V
        dtype = torch.get_default_dtype()
        self.log_dt = nn.Parameter(log_uniform(state // 2))
        self.log_decay = nn.Parameter(torch.full((state // 2,), math.log(0.5)))
        self.frequency = nn.Parameter(f_N.to(dtype))
        self.write = nn.Parameter(torch.cat([write.real, write.imag]).to(dtype))  # (N, D)
        self.read = nn.Parameter(pairs(read.conj()).to(dtype))  # (D, N): Re(c h) = Re c Re h - Im c Im h
        self.skip = nn.Parameter(torch.randn(dim))
        self.gate = nn.Linear(dim, dim)

    def forward(
        self, x_BTD: Tensor, state: State = None, *, reset_BT: Tensor | None = None, mask_BT: Tensor | None = None
    ) -> tuple[Tensor, State]:
        dtype = torch.promote_types(x_BTD.dtype, torch.float32)
        u_BTD = x_BTD.to(dtype)
        if state is None:
            state = self.init_state(len(x_BTD), device=x_BTD.device, dtype=dtype)
        with torch.autocast(x_BTD.device.type, enabled=False):
            A_N = torch.complex(-self.log_decay.to(dtype).exp(), self.frequency.to(dtype))
            a_N, g_N = zero_order_hold(A_N, self.log_dt.to(dtype).exp())
            b_BTN = g_N * complexes(u_BTD @ self.write.to(dtype).T)
            a_BTN = a_N.expand_as(b_BTN)
            if mask_BT is not None:
                a_BTN, b_BTN = (x.masked_fill(~mask_BT[..., None], fill) for x, fill in ((a_BTN, 1), (b_BTN, 0)))
            h_BN = complexes(state["h"].to(dtype))
            if in_reference_form():
                h_BTN, h_BN = diagonal_loop(a_BTN, b_BTN, h_BN, reset_BT)
            else:
                h_BTN, h_BN = diagonal(a_BTN, b_BTN, h_BN, reset_BT, self.chunk)
            y_BTD = F.gelu(2 * pairs(h_BTN) @ self.read.to(dtype).T + self.skip.to(dtype) * u_BTD)
        y_BTD = y_BTD.to(x_BTD.dtype)
        return y_BTD * self.gate(y_BTD).sigmoid(), {"h": pairs(h_BN)}

    def init_state(self, batch: int, *, device: torch.device, dtype: torch.dtype) -> State:
        dtype = torch.promote_types(dtype, torch.float32)
        return {"h": torch.zeros((batch, self.state), device=device, dtype=dtype)}

    def state_size(self, T: int) -> int:
        return self.state


class S5(Stack):
    """S5 (Smith et al. 2023, arXiv 2208.04933): a diagonal state space with many inputs and outputs, ZOH.

    (B, T, input_size) -> (B, T, dim), with a state of fixed size; see :class:`SharedSystem`. The system begins as the
    normal part of HiPPO-LegS, with B and C random and turned into its eigenvectors; the variant with
    several such blocks on the diagonal is left out. Real parts of A are learned by their logarithms, so that the system
    stays stable; the authors' code clips them. A block has no MLP of its own, as in the paper (``mlp`` adds one).

    Args:
        state: real states, even; half as many complex ones are held.
        chunk: steps that are computed at once; the result is the same for all.
        mlp: kind of the blocks' MLPs: gelu, swiglu, or none.
    """

    def __init__(
        self, input_size: int, *, state: int = 64, chunk: int = 64, mlp: Feedforward = "none", **block: Any
    ) -> None:
        super().__init__(input_size, lambda dim, _: SharedSystem(dim, state, chunk), mlp=mlp, **block)
