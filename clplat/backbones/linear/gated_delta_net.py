"""Gated DeltaNet: the delta rule on a memory that can also be cleared."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clplat.backbones.base import State, in_reference_form
from clplat.backbones.block import Stack
from clplat.backbones.linear.memory import Memory, Rule, head_width, padded
from clplat.backbones.ops.delta_rule import delta_rule_chunk, delta_rule_loop, unit


class GatedDeltaRule(Rule):
    """The gated delta rule, with a step size b and a decay exp(g) from x for each head (eq. 10)::

        q = unit(silu(q))    k = unit(silu(k))    v = v, or silu(v) behind a convolution
        b = sigmoid(W_b x), twice that if ``negative``
        g = -exp(A) softplus(W_a x + d)
        S_t = exp(g) (I - b k k') S_{t-1} + b k v'
        y = S_t' q

    A and d are learned for each head, with exp(A) from 1 to 16 and softplus(d) from 0.001 to 0.1 at first, as in
    Mamba-2. State: ``S`` (B, heads, K, V).

    Args:
        negative: b goes up to 2, so that a key's eigenvalue can be -1 (Grazzi et al. 2024, arXiv 2411.12537).
    """

    silu = True

    def __init__(self, heads: int, key: int, value: int, chunk: int = 64, *, negative: bool = False) -> None:
        super().__init__(heads, key, value, chunk, gates=2 * heads)
        self.scale = 2.0 if negative else 1.0
        step_H = torch.empty(heads).uniform_(math.log(0.001), math.log(0.1)).exp()
        self.rate = nn.Parameter(torch.empty(heads).uniform_(1, 16).log())
        self.offset = nn.Parameter(step_H + (-torch.expm1(-step_H)).log())  # softplus of it is the step

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
        b_BTH, a_BTH = gates_BTG.chunk(2, -1)
        rate_H = self.rate.clamp(max=20).exp()  # which forgets all at any step
        g_BTH = -rate_H * F.softplus(a_BTH + self.offset)
        b, g = (padded(gate.mT[..., None], mask_BT)[..., 0] for gate in (self.scale * b_BTH.sigmoid(), g_BTH))
        q, k, S = unit(q_BHTK), unit(k_BHTK), state["S"].to(v_BHTV.dtype)
        if in_reference_form():
            y_BHTV, S = delta_rule_loop(q, k, v_BHTV, b, S, reset_BT, g_BHT=g)
        else:
            y_BHTV, S = delta_rule_chunk(q, k, v_BHTV, b, S, reset_BT, self.chunk, g_BHT=g)
        return y_BHTV, {"S": S}


class GatedDeltaNet(Stack):
    """Gated DeltaNet (Yang, Kautz & Hatamizadeh 2024, arXiv 2412.06464).

    (B, T, input_size) -> (B, T, dim), with a state of fixed size; see :class:`GatedDeltaRule`. As in the paper the
    queries, keys and values pass a short convolution with SiLU, and what is read an RMS norm for each head and a SiLU
    gate. Assumed: keys as wide as dim (the authors' code has 3/4 of it), and no 1 / sqrt(K) on the queries, which the
    norm behind would undo.

    Args:
        heads: attention heads in each block; dim is a multiple of heads.
        expand: width of the values in units of dim.
        negative: let eigenvalues of the state's transition be negative, down to -1, for tracking states.
        chunk: steps that are computed at once; the result is the same for all.
        conv: width in steps of a causal convolution with SiLU behind the projections; 0 for none.
    """

    def __init__(
        self,
        input_size: int,
        *,
        heads: int = 4,
        expand: float = 1.0,
        negative: bool = False,
        chunk: int = 64,
        conv: int = 4,
        **block: Any,
    ) -> None:
        def mixer(dim: int, number: int) -> Memory:
            key, value = head_width(dim, heads), head_width(dim, heads, expand)
            return Memory(dim, GatedDeltaRule(heads, key, value, chunk, negative=negative), conv=conv)

        super().__init__(input_size, mixer, **block)
