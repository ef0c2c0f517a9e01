"""DeltaNet: linear attention that corrects what it has stored instead of adding to it."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from clplat.backbones.base import State, in_reference_form
from clplat.backbones.block import Stack
from clplat.backbones.linear.memory import Memory, Rule, head_width, padded
from clplat.backbones.ops.delta_rule import delta_rule_chunk, delta_rule_loop, unit


class DeltaRule(Rule):
    """The delta rule with a step size b from x for each head::

        q = unit(silu(q))    k = unit(silu(k))    b = sigmoid(W_b x)
        S_t = (I - b k k') S_{t-1} + b k v'
        y = S_t' q

    State: ``S`` (B, heads, K, V).
    """

    silu = True

    def __init__(self, heads: int, key: int, value: int, chunk: int = 64) -> None:
        super().__init__(heads, key, value, chunk, gates=heads)

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
        b_BHT = padded(gates_BTG.mT[..., None].sigmoid(), mask_BT)[..., 0]
        q, k, S = unit(q_BHTK), unit(k_BHTK), state["S"].to(v_BHTV.dtype)
        if in_reference_form():
            y_BHTV, S = delta_rule_loop(q, k, v_BHTV, b_BHT, S, reset_BT)
        else:
            y_BHTV, S = delta_rule_chunk(q, k, v_BHTV, b_BHT, S, reset_BT, self.chunk)
        return y_BHTV, {"S": S}


class DeltaNet(Stack):
    """DeltaNet (Yang et al. 2024, arXiv 2406.06484; delta rule of Schlag et al. 2021, arXiv 2102.11174).

    (B, T, input_size) -> (B, T, dim), with a state of fixed size; see :class:`DeltaRule`. The paper's feature map (SiLU
    and unit length) and output norm (RMS) in this package's pre-norm blocks with GELU. The short convolutions that the
    paper puts behind the projections are left out by default: the delta rule alone is what can be compared with the
    linear transformer.

    Args:
        heads: attention heads in each block; dim is a multiple of heads.
        chunk: steps that are computed at once; the result is the same for all.
        conv: width in steps of a causal convolution with SiLU behind the projections, 4 in the paper; 0 for none.
    """

    def __init__(self, input_size: int, *, heads: int = 4, chunk: int = 64, conv: int = 0, **block: Any) -> None:
        def mixer(dim: int, number: int) -> Memory:
            size = head_width(dim, heads)
            return Memory(dim, DeltaRule(heads, size, size, chunk), conv=conv, gated=False)

        super().__init__(input_size, mixer, **block)
