"""DeltaNet: linear attention that corrects what it has stored instead of adding to it."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clplat.backbones.base import State, in_reference_form, require
from clplat.backbones.block import Mixer, Stack, split_heads
from clplat.backbones.ops.delta_rule import delta_rule_chunk, delta_rule_loop, unit


class DeltaRule(Mixer):
    """Causal linear attention by the delta rule: (B, T, D) -> (B, T, D), for each head with K = D / heads::

        q = unit(silu(W_q x))    k = unit(silu(W_k x))    v = W_v x    b = sigmoid(W_b x)
        S_t = (I - b k k') S_{t-1} + b k v'
        y = W_o rms_norm(S_t' q)

    State: ``S`` (B, heads, K, K), kept in float32 at least.

    Args:
        dim: D.
        heads: number of heads; divides D.
        chunk: steps that are computed at once.
    """

    def __init__(self, dim: int, heads: int, chunk: int = 64) -> None:
        super().__init__()
        require(heads >= 1 and dim % heads == 0, f"dim {dim} must be a multiple of heads {heads}")
        require(chunk >= 1, f"chunk must be at least 1, not {chunk}")
        self.dim, self.heads, self.chunk = dim, heads, chunk
        self.qkv = nn.Linear(dim, 3 * dim)
        self.beta = nn.Linear(dim, heads)
        self.norm = nn.RMSNorm(dim // heads, eps=1e-5)  # a step may read zeros
        self.out = nn.Linear(dim, dim)

    def forward(
        self, x_BTD: Tensor, state: State = None, *, reset_BT: Tensor | None = None, mask_BT: Tensor | None = None
    ) -> tuple[Tensor, State]:
        # running sums over many steps lose digits in 16 bits
        dtype = torch.promote_types(x_BTD.dtype, torch.float32)
        q, k, v = (split_heads(part, self.heads).to(dtype) for part in self.qkv(x_BTD).chunk(3, -1))
        b_BHT = self.beta(x_BTD).transpose(1, 2).to(dtype).sigmoid()
        if mask_BT is not None:
            b_BHT = b_BHT.masked_fill(~mask_BT[:, None], 0)
        if state is None:
            state = self.init_state(len(x_BTD), device=x_BTD.device, dtype=dtype)
        S = state["S"].to(dtype)
        with torch.autocast(x_BTD.device.type, enabled=False):
            q, k = unit(F.silu(q)), unit(F.silu(k))
            if in_reference_form():
                y_BHTK, S = delta_rule_loop(q, k, v, b_BHT, S, reset_BT)
            else:
                y_BHTK, S = delta_rule_chunk(q, k, v, b_BHT, S, reset_BT, self.chunk)
        y_BTHK = self.norm(y_BHTK.transpose(1, 2).to(self.norm.weight.dtype))
        return self.out(y_BTHK.flatten(2).to(x_BTD.dtype)), {"S": S}

    def init_state(self, batch: int, *, device: torch.device, dtype: torch.dtype) -> State:
        size = self.dim // self.heads
        dtype = torch.promote_types(dtype, torch.float32)
        return {"S": torch.zeros((batch, self.heads, size, size), device=device, dtype=dtype)}

    def state_size(self, T: int) -> int:
        return self.dim * (self.dim // self.heads)


class DeltaNet(Stack):
    """DeltaNet (Yang et al. 2024, arXiv 2406.06484; delta rule of Schlag et al. 2021, arXiv 2102.11174).

    (B, T, input_size) -> (B, T, dim), with a state of fixed size; see :class:`DeltaRule`. The paper's feature map (SiLU
    and unit length) and output norm (RMS) in this package's pre-norm blocks with GELU. The short convolutions that the
    paper puts behind the projections are left out: the delta rule alone is what can be compared with the linear
    transformer.

    Args:
        heads: attention heads in each block; dim is a multiple of heads.
        chunk: steps that are computed at once; the result is the same for all.
    """

    def __init__(self, input_size: int, *, heads: int = 4, chunk: int = 64, **block: Any) -> None:
        super().__init__(input_size, lambda dim, number: DeltaRule(dim, heads, chunk), **block)
