"""Gated linear attention: each channel of the keys forgets at its own pace."""

from __future__ import annotations

from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor

from clplat.backbones.base import State
from clplat.backbones.block import Stack
from clplat.backbones.linear.memory import Memory, Rule, head_width, padded
from clplat.backbones.ops.backend import Backend, channel_decay


class ChannelDecay(Rule):
    """A memory whose rows fade, each by its own gate from x (eq. 3, with the gate of section 4.4)::

        a = sigmoid(W_2 W_1 x) ^ (1 / 16)
        S_t = diag(a) S_{t-1} + k v'
        y = S_t' q

    State: ``S`` (B, heads, K, V).

    Args:
        rank: rows of W_1.
        silu: q and k go through SiLU first.
    """

    def __init__(
        self, heads: int, key: int, value: int, chunk: int = 64, *, rank: int = 16, silu: bool = False
    ) -> None:
        super().__init__(heads, key, value, chunk, gates=heads * key, rank=rank)
        self.silu = silu

    def forward(
        self,
        q_BHTK: Tensor,
        k_BHTK: Tensor,
        v_BHTV: Tensor,
        gates_BTG: Tensor,
        state: State,
        reset_BT: Tensor | None,
        mask_BT: Tensor | None,
    ) -> tuple[Tensor, State]:
        g = F.logsigmoid(gates_BTG.unflatten(-1, (self.heads, -1)).transpose(1, 2)) / 16
        k, g, S = padded(k_BHTK, mask_BT), padded(g, mask_BT), state["S"].to(v_BHTV.dtype)
        y_BHTV, S = channel_decay(q_BHTK, k, v_BHTV, g, S, reset_BT, self.chunk)
        return y_BHTV, {"S": S}


class GLA(Stack):
    """Gated linear attention transformer (Yang et al. 2023, arXiv 2312.06635).

    (B, T, input_size) -> (B, T, dim), with a state of fixed size; see :class:`ChannelDecay`. As in section 4.4 keys are
    half as wide as values and not transformed, and what is read passes an RMS norm for each head and a SiLU gate. Left
    out is the 1 / sqrt(K) on the queries, which the norm undoes. A small network recalls more, from less training, with
    ``keys=1``: .999 instead of .56 on the 8 pairs of scripts/bench_recall, behind convolutions.

    Args:
        heads: attention heads in each block; keys * dim and dim are multiples of heads.
        keys: width of all keys together in units of dim.
        feature: what queries and keys go through where no convolution with its SiLU is in front of them.
        rank: rank of the projection that makes the gates.
        chunk: steps that are computed at once; the result is the same for all.
        conv: width in steps of a causal convolution with SiLU behind the projections; 0 for none, as in the paper.
        backend: whose kernels compute: torch: ours; fla: flash-linear-attention's; auto: those where they can.
    """

    def __init__(
        self,
        input_size: int,
        *,
        heads: int = 4,
        keys: float = 0.5,
        feature: Literal["none", "silu"] = "none",
        rank: int = 16,
        chunk: int = 64,
        conv: int = 0,
        backend: Backend = "auto",
        **block: Any,
    ) -> None:
        def mixer(dim: int, number: int) -> Memory:
            key, value = head_width(dim, heads, keys), head_width(dim, heads)
            rule = ChannelDecay(heads, key, value, chunk, rank=rank, silu=feature == "silu")
            return Memory(dim, rule, conv=conv, backend=backend)

        super().__init__(input_size, mixer, **block)
