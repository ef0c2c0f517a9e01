"""LSSL: dense linear systems that begin as a memory of Legendre polynomials."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clplat.backbones.base import State, in_reference_form, require
from clplat.backbones.block import Feedforward, Mixer, Stack
from clplat.backbones.ops.hippo import bilinear, legs, log_uniform
from clplat.backbones.ops.linear_system import in_parts, response, system_loop


class DenseSystems(Mixer):
    """D linear systems of N states with one A and B, step sizes of their own and M outputs: (B, T, D) -> (B, T, D)::

        A = W - W' - (diag(exp(r)) + P P') / 2
        A' = (I - dt/2 A)^-1 (I + dt/2 A)        B' = dt (I - dt/2 A)^-1 B
        h_t = A' h_{t-1} + B' u_t
        y_t = C h_t + E u_t
        out = W_o gelu(y)

    with W in (N, N), r, P, B in (N,), dt in (D,), C in (D, M, N), E in (D, M). The symmetric part of A is negative, so
    that A' is a contraction whatever is learned; W, r and P begin where A is HiPPO-LegS. Plain sequences are convolved
    with the kernel ``C A'^j B'`` by FFT, a part after the other, the powers by squaring, and the carried state is added
    as what it leaves behind. With resets or padding it runs step by step.

    State: ``h`` (B, D, N), kept in float32 at least.

    Args:
        dim: D.
        state: N.
        outputs: M.
    """

    def __init__(self, dim: int, state: int, outputs: int = 1) -> None:
        super().__init__()
        require(state >= 1, f"state must be at least 1, not {state}")
        require(outputs >= 1, f"outputs must be at least 1, not {outputs}")
        self.dim, self.state = dim, state
        A, B = legs(state)
        dtype = torch.get_default_dtype()
        self.log_dt = nn.Parameter(log_uniform(dim))
        self.turn = nn.Parameter(((A - A.mT) / 4).to(dtype))  # W
        self.log_decay = nn.Parameter(torch.zeros(state))  # r
        self.pull = nn.Parameter(B.to(dtype))  # P
        self.write = nn.Parameter(B.to(dtype))  # B
        self.read = nn.Parameter(torch.randn(dim, outputs, state))  # C
        self.skip = nn.Parameter(torch.randn(dim, outputs))  # E
        self.out = nn.Linear(dim * outputs, dim)

    def matrix(self, dtype: torch.dtype) -> Tensor:
        """A."""
        W_NN, P_N = self.turn.to(dtype), self.pull.to(dtype)
        return W_NN - W_NN.mT - (self.log_decay.to(dtype).exp().diag_embed() + P_N[:, None] * P_N) / 2

    def forward(
        self, x_BTD: Tensor, state: State = None, *, reset_BT: Tensor | None = None, mask_BT: Tensor | None = None
    ) -> tuple[Tensor, State]:
        dtype = torch.promote_types(x_BTD.dtype, torch.float32)
        u_BTD = x_BTD.to(dtype)
        with torch.autocast(x_BTD.device.type, enabled=False):
            A_DNN, B_DN = bilinear(self.matrix(dtype), self.write.to(dtype), self.log_dt.to(dtype).exp())
            C_DMN = self.read.to(dtype)
            h_BDN = None if state is None else state["h"].to(dtype)
            if reset_BT is None and mask_BT is None and not in_reference_form():
                y_BTDM, h_BDN = in_parts(u_BTD, h_BDN, partial(response, A_DNN, B_DN, C_DMN))
            else:
                if h_BDN is None:
                    h_BDN = self.init_state(len(x_BTD), device=x_BTD.device, dtype=dtype)["h"]
                y_BTDM, h_BDN = system_loop(u_BTD, h_BDN, A_DNN, B_DN, C_DMN, reset_BT, mask_BT)
            y_BTDM = F.gelu(y_BTDM + self.skip.to(dtype) * u_BTD[..., None])
        return self.out(y_BTDM.flatten(2).to(x_BTD.dtype)), {"h": h_BDN}

    def init_state(self, batch: int, *, device: torch.device, dtype: torch.dtype) -> State:
        dtype = torch.promote_types(dtype, torch.float32)
        return {"h": torch.zeros((batch, self.dim, self.state), device=device, dtype=dtype)}

    def state_size(self, T: int) -> int:
        return self.dim * self.state


class LSSL(Stack):
    """Linear state-space layers (Gu et al. 2021, arXiv 2110.13985), bilinear, A beginning as HiPPO-LegS and learned.

    (B, T, input_size) -> (B, T, dim), with a state of fixed size; see :class:`DenseSystems`. The paper learns A within
    the quasiseparable matrices; here A is any matrix with a negative symmetric part of the kind that
    LegS has, which holds LegS exactly, cannot become unstable and costs N^2 numbers, so that N is to stay small. A
    block is the systems, GELU and a linear map, as in the paper (``mlp`` adds an MLP).

    Args:
        state: N, states of each channel.
        outputs: M, outputs of each channel before the linear map.
        mlp: kind of the blocks' MLPs: gelu, swiglu, or none.
    """

    def __init__(
        self, input_size: int, *, state: int = 32, outputs: int = 1, mlp: Feedforward = "none", **block: Any
    ) -> None:
        super().__init__(input_size, lambda dim, _: DenseSystems(dim, state, outputs), mlp=mlp, **block)
