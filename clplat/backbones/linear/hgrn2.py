"""HGRN2: a gated linear recurrence whose state is expanded by an outer product."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clplat.backbones.base import State
from clplat.backbones.block import Stack
from clplat.backbones.linear.memory import Memory, Rule, head_width, padded
from clplat.backbones.ops.backend import Backend, channel_decay
from clplat.errors import UsageError


class TiedDecay(Rule):
    """A memory of which each channel takes in as much as it forgets: the key is one minus the forget gate (eq. 4)::

        q = silu(q)    f = floor + (1 - floor) sigmoid(k)
        S_t = diag(f) S_{t-1} + (1 - f) v'
        y = S_t' q

    State: ``S`` (B, heads, K, V).

    Args:
        floor: lower bound of the forget gates, from 0 to 1; one above 0 is learned for each channel and starts here.
    """

    def __init__(self, heads: int, key: int, value: int, chunk: int = 64, *, floor: float = 0.0) -> None:
        super().__init__(heads, key, value, chunk)
        start_E = torch.full((heads * key,), floor)
        self.floor = nn.Parameter(start_E.logit()) if floor else None

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
        new = (-k_BHTK).sigmoid()  # 1 - f, which keeps its digits where f is near 1
        if self.floor is not None:
            new = new * (-self.floor).sigmoid().unflatten(0, (self.heads, 1, -1))
        k, g = padded(new, mask_BT), padded(torch.log1p(-new.clamp(max=1 - 1e-7)), mask_BT)
        q, S = F.silu(q_BHTK), state["S"].to(v_BHTV.dtype)
        y_BHTV, S = channel_decay(q, k, v_BHTV, g, S, reset_BT, self.chunk)
        return y_BHTV, {"S": S}


class HGRN2(Stack):
    """Gated linear RNN with state expansion (Qin et al. 2024, arXiv 2404.07904).

    (B, T, input_size) -> (B, T, dim), with a state of fixed size; see :class:`TiedDecay`. What is read passes an RMS
    norm over all heads and no gate, as in the flash-linear-attention library's layer. The lower bounds start at n /
    layers for layer n = 0, 1, ... as in HGRN (Qin et al. 2023, arXiv 2311.04823, eq. 5-6), whose first layer has none.
    There they are sums of one softmax over the layers, which keeps them rising; here each layer learns its own, so that
    it stands by itself. A gate is kept 1e-7 away from forgetting all.

    A layer whose gates start near 1/2 forgets a pair within a few steps, and learns slowly that it need not: of eight
    pairs two layers recall 0.12 in the steps in which they recall 0.98 from ``floor=0.9`` (docs/backbones.md).

    Args:
        heads: in each block; dim is a multiple of heads, and dim / heads the factor by which the state is expanded.
        layers: number of blocks.
        floor: where the lower bound of the forget gates of all layers starts, from 0 to below 1; null: as in HGRN.
        chunk: steps that are computed at once; the result is the same for all.
        backend: whose kernels compute: torch: ours; fla: flash-linear-attention's; auto: those where they can.
    """

    def __init__(
        self,
        input_size: int,
        *,
        heads: int = 4,
        layers: int = 2,
        floor: float | None = None,
        chunk: int = 64,
        backend: Backend = "auto",
        **block: Any,
    ) -> None:
        if floor is not None and not 0 <= floor < 1:
            raise UsageError(f"hgrn2: floor={floor} is not from 0 to below 1")

        def mixer(dim: int, number: int) -> Memory:
            size = head_width(dim, heads)
            rule = TiedDecay(heads, size, size, chunk, floor=number / layers if floor is None else floor)
            return Memory(dim, rule, gated=False, normed="all", backend=backend)

        super().__init__(input_size, mixer, layers=layers, **block)
