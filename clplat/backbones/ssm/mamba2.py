"""Mamba-2: a selective state space with one decay for each head, which is linear attention with decay."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clplat.backbones.base import State, in_reference_form, require
from clplat.backbones.block import Feedforward, Mixer, Norm, Stack, join_heads, split_heads
from clplat.backbones.conv.short import ShortConv
from clplat.backbones.ops.hippo import log_uniform
from clplat.backbones.ops.scalar_decay import scalar_decay_chunk, scalar_decay_loop
from clplat.backbones.ssm.mamba import FASTEST, inverse_softplus


class StateSpaceDuality(Mixer):
    """The block of Mamba-2 (arXiv 2405.21060): (B, T, D) -> (B, T, D), with E channels in H heads::

        z, u, r = W_i input        x, k, q = silu(convolution(u))        s = softplus(r + b)
        S_t = exp(-s_t exp(a)) S_{t-1} + s_t k_t x_t'            for each head, N by E / H
        y_t = S_t' q_t + d x_t
        out = W_o rms_norm(y * silu(z))

    s, a, b and d are numbers of each head; k and q have N numbers, which all heads share. It runs in chunks as linear
    attention with a scalar decay (section 6).

    State: ``convolution``, the last inputs, see :class:`ShortConv`, and ``S`` (B, H, N, E / H), kept in float32 at
    least.

    Args:
        dim: D.
        expand: E / D.
        heads: H, divides E.
        state: N.
        conv: width of the convolution in steps.
        chunk: steps that are computed at once.
    """

    def __init__(self, dim: int, *, expand: int, heads: int, state: int, conv: int, chunk: int) -> None:
        super().__init__()
        inner = expand * dim
        require(heads >= 1 and inner % heads == 0, f"expand * dim = {inner} must be a multiple of heads {heads}")
        require(state >= 1, f"state must be at least 1, not {state}")
        require(chunk >= 1, f"chunk must be at least 1, not {chunk}")
        self.inner, self.heads, self.state, self.chunk = inner, heads, state, chunk
        self.into = nn.Linear(dim, 2 * inner + 2 * state + heads, bias=False)
        self.convolution = ShortConv(inner + 2 * state, conv)
        self.log_rate = nn.Parameter(torch.empty(heads).uniform_(1, 16).log())  # a
        self.size = nn.Parameter(inverse_softplus(log_uniform(heads).exp()))  # b
        self.skip = nn.Parameter(torch.ones(heads))
        self.norm = nn.RMSNorm(inner, eps=1e-5)
        self.out = nn.Linear(inner, dim, bias=False)

    def forward(
        self, x_BTD: Tensor, state: State = None, *, reset_BT: Tensor | None = None, mask_BT: Tensor | None = None
    ) -> tuple[Tensor, State]:
        dtype = torch.promote_types(x_BTD.dtype, torch.float32)
        z_BTE, u, r_BTH = self.into(x_BTD).split([self.inner, self.inner + 2 * self.state, self.heads], -1)
        if state is None:
            state = self.init_state(len(x_BTD), device=u.device, dtype=u.dtype)
        u, inputs = self.convolution(u, state["convolution"], reset_BT=reset_BT, mask_BT=mask_BT)
        x, k, q = F.silu(u).to(dtype).split([self.inner, self.state, self.state], -1)
        with torch.autocast(x_BTD.device.type, enabled=False):
            s_BTH = F.softplus(r_BTH.to(dtype) + self.size.to(dtype))
            if mask_BT is not None:
                s_BTH = s_BTH.masked_fill(~mask_BT[..., None], 0)
            s_BHT = s_BTH.mT
            g_BHT = -s_BHT * self.log_rate.to(dtype).clamp(max=FASTEST).exp()[:, None]
            x_BHTV = split_heads(x, self.heads)
            q_BHTN, k_BHTN = (part[:, None].expand(-1, self.heads, -1, -1) for part in (q, k))
            given = (q_BHTN, k_BHTN, s_BHT[..., None] * x_BHTV, g_BHT, state["S"].to(dtype), reset_BT)
            y, S = scalar_decay_loop(*given) if in_reference_form() else scalar_decay_chunk(*given, self.chunk)
            y_BTE = join_heads(y + self.skip.to(dtype)[:, None, None] * x_BHTV)
        y_BTE = self.norm((y_BTE * F.silu(z_BTE.to(dtype))).to(self.norm.weight.dtype))
        return self.out(y_BTE.to(x_BTD.dtype)), {"convolution": inputs, "S": S}

    def init_state(self, batch: int, *, device: torch.device, dtype: torch.dtype) -> State:
        size = (batch, self.heads, self.state, self.inner // self.heads)
        S = torch.zeros(size, device=device, dtype=torch.promote_types(dtype, torch.float32))
        return {"convolution": self.convolution.init_state(batch, device=device, dtype=dtype), "S": S}

    def state_size(self, T: int) -> int:
        return self.convolution.state_size(T) + self.inner * self.state


class Mamba2(Stack):
    """Mamba-2 (Dao & Gu 2024, arXiv 2405.21060), one group of keys and queries.

    (B, T, input_size) -> (B, T, dim), with a state of fixed size; see :class:`StateSpaceDuality`. Blocks of a mixer
    alone behind RMSNorm, as in the paper.

    Args:
        heads: heads in each block; expand * dim is a multiple of heads.
        state: states of each channel.
        expand: channels in units of dim.
        conv: width in steps of the convolution in the block.
        chunk: steps that are computed at once; the result is the same for all.
        norm: kind of the norms: layer or rms.
        mlp: kind of the blocks' MLPs: gelu, swiglu, or none.
    """

    def __init__(
        self,
        input_size: int,
        *,
        heads: int = 4,
        state: int = 64,
        expand: int = 2,
        conv: int = 4,
        chunk: int = 64,
        norm: Norm = "rms",
        mlp: Feedforward = "none",
        **block: Any,
    ) -> None:
        def mixer(dim: int, number: int) -> StateSpaceDuality:
            return StateSpaceDuality(dim, expand=expand, heads=heads, state=state, conv=conv, chunk=chunk)

        super().__init__(input_size, mixer, norm=norm, mlp=mlp, **block)
