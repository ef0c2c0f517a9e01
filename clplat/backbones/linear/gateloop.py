"""GateLoop: a linear recurrence whose complex transition comes from the input."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from clplat.backbones.base import State, in_reference_form, require
from clplat.backbones.block import Stack
from clplat.backbones.linear.memory import Memory, Rule, padded
from clplat.backbones.ops.scan import diagonal, diagonal_loop


class ComplexDecay(Rule):
    """A complex memory whose rows fade and turn, by a magnitude and an angle from x for each::

        a = sigmoid(W_a x) exp(i W_b x)
        S_t = diag(a) S_{t-1} + k v'
        y = Re(S_t' q)

    State: ``S`` (B, heads, K, V, 2), real and imaginary parts.
    """

    def __init__(self, heads: int, key: int, value: int, chunk: int = 64) -> None:
        super().__init__(heads, key, value, chunk, gates=2 * heads * key)

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
        magnitude, angle = (gate.unflatten(-1, (self.heads, -1)) for gate in gates_BTG.chunk(2, -1))
        a_BTHK = torch.polar(magnitude.sigmoid(), angle)
        if mask_BT is not None:
            a_BTHK = a_BTHK.masked_fill(~mask_BT[..., None, None], 1)
        added_BTHKV = (padded(k_BHTK, mask_BT)[..., None] * v_BHTV[..., None, :]).transpose(1, 2)
        S = torch.view_as_complex(state["S"].to(v_BHTV.dtype).contiguous())
        a, b = a_BTHK[..., None], added_BTHKV.to(a_BTHK.dtype)
        if in_reference_form():
            S_BTHKV, S = diagonal_loop(a, b, S, reset_BT)
        else:
            S_BTHKV, S = diagonal(a, b, S, reset_BT, self.chunk)
        y_BHTV = (q_BHTK[..., None] * S_BTHKV.real.transpose(1, 2)).sum(-2)
        return y_BHTV, {"S": torch.view_as_real(S)}

    def init_state(self, batch: int, *, device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
        return {"S": torch.zeros((batch, self.heads, self.key, self.value, 2), device=device, dtype=dtype)}

    def state_size(self) -> int:
        return 2 * super().state_size()


class GateLoop(Stack):
    """GateLoop (Katsch 2023, arXiv 2311.01927).

    (B, T, input_size) -> (B, T, dim), with a state of fixed size; see :class:`ComplexDecay`. Computed by a scan. Heads
    are as many as channels, so that the state is one complex number for each: so it is in the paper, by its author's
    word on a public re-implementation. Assumed: an RMS norm over all heads and a SiLU gate behind what is read, and no
    slower learning rate for the transition.

    Args:
        key_size: width of a head's keys and of its values; the state holds dim * key_size complex numbers.
        chunk: steps that are computed at once; the result is the same for all.
    """

    def __init__(self, input_size: int, *, key_size: int = 1, chunk: int = 64, **block: Any) -> None:
        def mixer(dim: int, number: int) -> Memory:
            require(key_size >= 1 and dim % key_size == 0, f"dim {dim} must be a multiple of key_size {key_size}")
            return Memory(dim, ComplexDecay(dim // key_size, key_size, key_size, chunk), normed="all")

        super().__init__(input_size, mixer, **block)
