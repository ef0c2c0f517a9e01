"""SpaceTime: linear systems with companion matrices, which are autoregressions among other things."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from clplat.backbones.base import State, in_reference_form, require
from clplat.backbones.block import Mixer, Stack
from clplat.backbones.ops.companion import companion_fft, companion_loop


class CompanionSystems(Mixer):
    """D companion systems of N states side by side: (B, T, D) -> (B, T, D)::

        x_t = A x_{t-1} + B u_t        A = shift + a / max(1, |a|_1) e_N'
        y_t = C . x_t + d u_t

    with a, B, C in (D, N) and d in (D,). The division keeps all eigenvalues of A within the unit circle. Plain
    sequences are filtered by FFT, see :func:`companion_fft`; with resets or padding it runs step by step.

    State: ``x`` (B, D, N), kept in float32 at least.

    Args:
        dim: D.
        state: N.
    """

    def __init__(self, dim: int, state: int) -> None:
        super().__init__()
        require(state >= 1, f"state must be at least 1, not {state}")
        self.dim, self.state = dim, state
        a, B, C = torch.empty(3, dim, state).uniform_(-1, 1) / state**0.5
        self.feedback, self.write, self.read = nn.Parameter(a), nn.Parameter(B), nn.Parameter(C)
        self.skip = nn.Parameter(torch.ones(dim))

    def forward(
        self, x_BTD: Tensor, state: State = None, *, reset_BT: Tensor | None = None, mask_BT: Tensor | None = None
    ) -> tuple[Tensor, State]:
        dtype = torch.promote_types(x_BTD.dtype, torch.float32)
        if state is None:
            state = self.init_state(len(x_BTD), device=x_BTD.device, dtype=dtype)
        u_BTD, x_BDN = x_BTD.to(dtype), state["x"].to(dtype)
        with torch.autocast(x_BTD.device.type, enabled=False):
            a_DN, B_DN, C_DN = (part.to(dtype) for part in (self.feedback, self.write, self.read))
            a_DN = a_DN / a_DN.abs().sum(-1, keepdim=True).clamp(min=1)
            if reset_BT is None and mask_BT is None and not in_reference_form():
                y_BTD, x_BDN = companion_fft(u_BTD, x_BDN, a_DN, B_DN, C_DN)
            else:
                y_BTD, x_BDN = companion_loop(u_BTD, x_BDN, a_DN, B_DN, C_DN, reset_BT, mask_BT)
            y_BTD = y_BTD + self.skip.to(dtype) * u_BTD
        return y_BTD.to(x_BTD.dtype), {"x": x_BDN}

    def init_state(self, batch: int, *, device: torch.device, dtype: torch.dtype) -> State:
        dtype = torch.promote_types(dtype, torch.float32)
        return {"x": torch.zeros((batch, self.dim, self.state), device=device, dtype=dtype)}

    def state_size(self, T: int) -> int:
        return self.dim * self.state


class SpaceTime(Stack):
    """SpaceTime (Zhang et al. 2023, arXiv 2303.09489), its open-loop layers.

    (B, T, input_size) -> (B, T, dim), with a state of fixed size; see :class:`CompanionSystems`. Each channel has a
    system of its own, and the blocks' MLP mixes channels, as in the paper. The authors' code divides a by its norm also
    where that is below 1; a plain autoregression of N terms, which is a = 0, could then not be learned. Left out: the
    fixed heads of the first layer (differences and moving averages), and the closed-loop decoder, which forecasts from
    the state alone; outputs can be fed back through the carried state instead.

    Args:
        state: N, states of each channel.
    """

    def __init__(self, input_size: int, *, state: int = 16, **block: Any) -> None:
        super().__init__(input_size, lambda dim, _: CompanionSystems(dim, state), **block)
