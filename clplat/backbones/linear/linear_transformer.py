"""The linear transformer: causal linear attention, trained in parallel and run as a recurrent network."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from clplat.backbones.base import State, in_reference_form, require
from clplat.backbones.block import Mixer, Stack, join_heads, split_heads
from clplat.backbones.ops.linear_attention import feature, linear_attention_chunk, linear_attention_loop


class LinearAttention(Mixer):
    """Causal linear attention with the feature map elu + 1: (B, T, D) -> (B, T, D).

    State: ``S`` (B, heads, K, K), the sum of key-value products, and ``z`` (B, heads, K), the sum of keys, with
    K = D / heads. Both are kept in float32 at least.

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
        self.out = nn.Linear(dim, dim)

    def forward(
        self, x_BTD: Tensor, state: State = None, *, reset_BT: Tensor | None = None, mask_BT: Tensor | None = None
    ) -> tuple[Tensor, State]:
        # running sums over many steps lose digits in 16 bits
        dtype = torch.promote_types(x_BTD.dtype, torch.float32)
        q, k, v = (split_heads(part, self.heads).to(dtype) for part in self.qkv(x_BTD).chunk(3, -1))
        if state is None:
            state = self.init_state(len(x_BTD), device=x_BTD.device, dtype=dtype)
        S, z = state["S"].to(dtype), state["z"].to(dtype)
        with torch.autocast(x_BTD.device.type, enabled=False):
            q, k = feature(q), feature(k)
            if mask_BT is not None:
                k = k.masked_fill(~mask_BT[:, None, :, None], 0)
            if in_reference_form():
                y, S, z = linear_attention_loop(q, k, v, S, z, reset_BT)
            else:
                y, S, z = linear_attention_chunk(q, k, v, S, z, reset_BT, self.chunk)
        return self.out(join_heads(y).to(x_BTD.dtype)), {"S": S, "z": z}

    def init_state(self, batch: int, *, device: torch.device, dtype: torch.dtype) -> State:
        size = self.dim // self.heads
        z = torch.zeros((batch, self.heads, size), device=device, dtype=torch.promote_types(dtype, torch.float32))
        return {"S": z[..., None].repeat(1, 1, 1, size), "z": z}

    def state_size(self, T: int) -> int:
        return self.dim * (self.dim // self.heads + 1)


class LinearTransformer(Stack):
    """Linear transformer (Katharopoulos et al. 2020, arXiv 2006.16236), pre-norm blocks, GELU, no token embedding.

    (B, T, input_size) -> (B, T, dim), with a state of fixed size; see :class:`LinearAttention`. It knows the order of
    the steps only by causality: turning features by rotary positions would make the normaliser z . q change sign.

    Args:
        heads: attention heads in each block; dim is a multiple of heads.
        chunk: steps that are computed at once; the result is the same for all.
    """

    def __init__(self, input_size: int, *, heads: int = 4, chunk: int = 64, **block: Any) -> None:
        super().__init__(input_size, lambda dim, number: LinearAttention(dim, heads, chunk), **block)
