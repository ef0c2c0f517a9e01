"""Fast and forgetful memory: decaying, turning traces of the inputs."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from clplat.backbones.base import State, in_reference_form, require
from clplat.backbones.block import Mixer, Stack
from clplat.backbones.ops.scan import diagonal, diagonal_loop


class Traces(Mixer):
    """The memory of :class:`FFM`: (B, T, D) -> (B, T, D).

    State: ``trace`` (B, m, c, 2), real and imaginary parts of S, kept in float32 at least.

    Args:
        dim: D.
        memory: m, rows with a decay each.
        context: c, columns with a frequency each.
        horizon: steps after which the slowest row begins with 1% left, and the longest period at first.
        chunk: steps that are computed at once.
    """

    def __init__(self, dim: int, memory: int, context: int, horizon: int, chunk: int) -> None:
        super().__init__()
        require(memory >= 1 and context >= 1, f"memory {memory} and context {context} must be at least 1")
        require(2 <= horizon <= 30_000, f"horizon must be 2 to 30000, not {horizon}")  # the fastest must decay
        require(chunk >= 1, f"chunk must be at least 1, not {chunk}")
        self.dim, self.chunk = dim, chunk
        fastest = 0.02 - math.log(torch.finfo(torch.float64).max) / horizon
        self.decay = nn.Parameter(torch.linspace(fastest, math.log(0.01) / horizon, memory))
        self.frequency = nn.Parameter(2 * math.pi / torch.linspace(1, horizon, context))
        self.split = [memory, memory, dim, dim]
        self.maps = nn.Linear(dim, 2 * (memory + dim))
        self.mix = nn.Linear(2 * memory * context, dim)

    def forward(
        self, x_BTD: Tensor, state: State = None, *, reset_BT: Tensor | None = None, mask_BT: Tensor | None = None
    ) -> tuple[Tensor, State]:
        dtype = torch.promote_types(x_BTD.dtype, torch.float32)  # running sums over many steps lose digits in 16 bits
        if state is None:
            state = self.init_state(len(x_BTD), device=x_BTD.device, dtype=dtype)
        value, enter, leave, through = self.maps(x_BTD).split(self.split, -1)
        added_BTM1 = (value * enter.sigmoid()).to(dtype)[..., None]
        with torch.autocast(x_BTD.device.type, enabled=False):
            size_M1, angle_C = self.decay.to(dtype).clamp(max=-1e-8).exp()[:, None], self.frequency.to(dtype)
            turn_MC = torch.complex(size_M1 * angle_C.cos(), size_M1 * angle_C.sin())
            turn_BTMC = turn_MC.expand(*x_BTD.shape[:2], -1, -1)
            if mask_BT is not None:
                padding_BT11 = ~mask_BT[..., None, None]
                turn_BTMC, added_BTM1 = turn_BTMC.masked_fill(padding_BT11, 1), added_BTM1.masked_fill(padding_BT11, 0)
            added_BTMC = torch.complex(added_BTM1, torch.zeros_like(added_BTM1)).expand_as(turn_BTMC)
            form = diagonal_loop if in_reference_form() else partial(diagonal, chunk=self.chunk)
            S_BTMC, last_BMC = form(turn_BTMC, added_BTMC, torch.view_as_complex(state["trace"].to(dtype)), reset_BT)
        read_BTD = self.mix(torch.view_as_real(S_BTMC).flatten(2).to(x_BTD.dtype))
        gate = leave.sigmoid()
        y_BTD = gate * nnf.layer_norm(read_BTD, (self.dim,)) + (1 - gate) * through
        return y_BTD, {"trace": torch.view_as_real(last_BMC)}

    def init_state(self, batch: int, *, device: torch.device, dtype: torch.dtype) -> State:
        shape, dtype = (batch, len(self.decay), len(self.frequency), 2), torch.promote_types(dtype, torch.float32)
        return {"trace": torch.zeros(shape, device=device, dtype=dtype)}

    def state_size(self, T: int) -> int:
        return 2 * len(self.decay) * len(self.frequency)


class FFM(Stack):
    """Fast and forgetful memory (Morad et al. 2023, arXiv 2310.04128), in this package's blocks.

    (B, T, input_size) -> (B, T, dim). In each block m rows decay and c columns turn::

        S_t = exp(a_j + i w_k) * S_{t-1} + u_t 1'         a_j < 0, w_k learned; u = (W_v x) * sigmoid(W_i x), m numbers
        y = g * norm(W [Re S, Im S]) + (1 - g) * W_y x    g = sigmoid(W_g x); norm: LayerNorm without scale and shift

    (all maps with biases). State: S, 2 m c numbers in each block. As S is linear in itself a complex diagonal scan
    runs it in parallel: unlike the authors' form, which divides by powers of exp(a), it needs neither double precision
    nor a longest sequence. At first the a are evenly spaced from fast to 1% left after ``horizon`` steps, and the
    periods from 1 to ``horizon``, as in the authors' code, where horizon is 1024.

    Args:
        memory: m.
        context: c.
        horizon: steps after which the slowest row begins with 1% left, and the longest period at first.
        chunk: steps that are computed at once; the result is the same for all.
    """

    def __init__(
        self,
        input_size: int,
        *,
        memory: int = 32,
        context: int = 4,
        horizon: int = 1024,
        chunk: int = 64,
        **block: Any,
    ) -> None:
        super().__init__(input_size, lambda dim, number: Traces(dim, memory, context, horizon, chunk), **block)
