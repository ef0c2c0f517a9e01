"""What linear attention layers share: projections, a rule by which each head writes and reads its memory, an output."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clplat.backbones.base import State, require
from clplat.backbones.block import Mixer, split_heads
from clplat.backbones.conv.short import ShortConv
from clplat.backbones.ops.backend import Backend, computing


class Rule(nn.Module):
    """How a memory is written and read, from queries, keys and values that are already projected.

    By default the state is ``S`` (B, heads, K, V), zeros at first. It is kept in float32 at least, and a rule is
    computed in that precision, since running sums over many steps lose digits in 16 bits.

    Attributes:
        silu: queries and keys go through SiLU first, if no convolution with SiLU has done it.
        gates: numbers of each step that the rule needs besides q, k, v.
        rank: rank of their projection; 0 for a full one.

    Args:
        heads: H.
        key: K, width of a head's queries and keys.
        value: V, width of a head's values.
        chunk: steps that are computed at once.
    """

    silu: bool = False

    def __init__(self, heads: int, key: int, value: int, chunk: int = 64, *, gates: int = 0, rank: int = 0) -> None:
        super().__init__()
        require(chunk >= 1, f"chunk must be at least 1, not {chunk}")
        self.heads, self.key, self.value, self.chunk = heads, key, value, chunk
        self.gates, self.rank = gates, rank

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
        """Returns what the queries read, (B, H, T, V), and the state after the last step."""
        raise TypeError(f"{type(self).__name__} does not define forward")

    def init_state(self, batch: int, *, device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
        """The state before the first step."""
        return {"S": torch.zeros((batch, self.heads, self.key, self.value), device=device, dtype=dtype)}

    def state_size(self) -> int:
        """Number of elements in one sample's state."""
        return self.heads * self.key * self.value

    def make_gates(self, dim: int) -> nn.Module | None:
        """A projection of x to the gates."""
        if not self.gates:
            return None
        if not self.rank:
            return nn.Linear(dim, self.gates)
        return nn.Sequential(nn.Linear(dim, self.rank, bias=False), nn.Linear(self.rank, self.gates))


def padded(x_BHTn: Tensor, mask_BT: Tensor | None, value: float = 0.0) -> Tensor:
    """A neutral value where a step is padding."""
    return x_BHTn if mask_BT is None else x_BHTn.masked_fill(~mask_BT[:, None, :, None], value)


Normed = Literal["each", "all", "none"]


class Output(nn.Module):
    """What the heads have read, together: (B, H, T, V) -> (B, T, D), by the input x of the layer::

        W_o (rms_norm(y) * silu(W_z x))          without ``gated``: W_o rms_norm(y)

    Args:
        dim: D.
        rule: gives the heads and V.
        gated: the output has a gate.
        normed: the norm is over each head, over all together, or left out.
    """

    def __init__(self, dim: int, rule: Rule, *, gated: bool = True, normed: Normed = "each") -> None:
        super().__init__()
        wide = rule.heads * rule.value
        self.normed = normed
        size = {"each": rule.value, "all": wide}.get(normed)
        self.norm = nn.RMSNorm(size, eps=1e-5) if size else nn.Identity()  # eps: a step may read zeros
        self.gate = nn.Linear(dim, wide) if gated else None
        self.out = nn.Linear(wide, dim)

    def forward(self, x_BTD: Tensor, y_BHTV: Tensor) -> Tensor:
        y_BTHV = y_BHTV.transpose(1, 2).to(self.out.weight.dtype)
        y_BTE = self.norm(y_BTHV).flatten(2) if self.normed == "each" else self.norm(y_BTHV.flatten(2))
        y_BTE = y_BTE.to(x_BTD.dtype)
        if self.gate is not None:
            y_BTE = y_BTE * F.silu(self.gate(x_BTD))
        out_BTD: Tensor = self.out(y_BTE)
        return out_BTD


class Heads(nn.Module):
    """The heads' memories: projected queries, keys and values through a short convolution, if any, and the rule.

    (B, T, H (K + K + V)) and gates (B, T, G) -> (B, H, T, V). State: that of the rule, and with conv ``convolution``,
    see :class:`ShortConv`.

    Args:
        rule: what is done with q, k and v.
        conv: width in steps of a causal depthwise convolution with SiLU in front of it; 0 for none.
        backend: whose kernels compute, see :func:`computing`.
    """

    def __init__(self, rule: Rule, conv: int = 0, backend: Backend = "auto") -> None:
        super().__init__()
        require(conv >= 0, f"conv must be 0 or a width in steps, not {conv}")
        self.sizes = (rule.heads * rule.key, rule.heads * rule.key, rule.heads * rule.value)
        self.convolution = ShortConv(sum(self.sizes), conv) if conv else None
        self.rule, self.backend = rule, backend

    def forward(
        self, qkv_BTE: Tensor, gates_BTG: Tensor, state: State, reset_BT: Tensor | None, mask_BT: Tensor | None
    ) -> tuple[Tensor, State]:
        dtype = torch.promote_types(qkv_BTE.dtype, torch.float32)
        before, after = {name: part for name, part in state.items() if name != "convolution"}, {}
        if self.convolution is not None:
            qkv_BTE, after["convolution"] = self.convolution(
                qkv_BTE, state["convolution"], reset_BT=reset_BT, mask_BT=mask_BT
            )
            qkv_BTE = F.silu(qkv_BTE)
        q, k, v = (split_heads(part, self.rule.heads).to(dtype) for part in qkv_BTE.split(self.sizes, -1))
        off = torch.autocast(qkv_BTE.device.type, enabled=False)
        with off, computing(self.backend, qkv_BTE, reset_BT):
            if self.convolution is None and self.rule.silu:
                q, k = F.silu(q), F.silu(k)
            y_BHTV, memory = self.rule(q, k, v, gates_BTG.to(dtype), before, reset_BT, mask_BT)
        return y_BHTV, {**memory, **after}

    def init_state(self, batch: int, *, device: torch.device, dtype: torch.dtype) -> State:
        wide = torch.promote_types(dtype, torch.float32)
        state: dict[str, State] = dict(self.rule.init_state(batch, device=device, dtype=wide))
        if self.convolution is not None:
            state["convolution"] = self.convolution.init_state(batch, device=device, dtype=dtype)
        return state

    def state_size(self) -> int:
        inputs = 0 if self.convolution is None else self.convolution.state_size(1)
        return self.rule.state_size() + inputs


class Memory(Mixer):
    """A memory for each head between projections: (B, T, D) -> (B, T, D)::

        q, k, v = W_qkv x                              with conv: silu(convolution(W_qkv x))
        y = rule(q, k, v, W_g x)
        out = output(x, y)

    State: see :class:`Heads`.

    Args:
        dim: D.
        rule: what is done with q, k and v.
        conv: width in steps of a causal depthwise convolution with SiLU behind the projections; 0 for none.
        gated, normed: of the :class:`Output`.
        backend: whose kernels compute, see :func:`computing`.
    """

    def __init__(
        self,
        dim: int,
        rule: Rule,
        *,
        conv: int = 0,
        gated: bool = True,
        normed: Normed = "each",
        backend: Backend = "auto",
    ) -> None:
        super().__init__()
        self.qkv = nn.Linear(dim, rule.heads * (2 * rule.key + rule.value))
        self.gates = rule.make_gates(dim)
        self.heads = Heads(rule, conv, backend)
        self.output = Output(dim, rule, gated=gated, normed=normed)

    def forward(
        self, x_BTD: Tensor, state: State = None, *, reset_BT: Tensor | None = None, mask_BT: Tensor | None = None
    ) -> tuple[Tensor, State]:
        state = self.init_state(len(x_BTD), device=x_BTD.device, dtype=x_BTD.dtype) if state is None else state
        gates_BTG = x_BTD[..., :0] if self.gates is None else self.gates(x_BTD)
        y_BHTV, state = self.heads(self.qkv(x_BTD), gates_BTG, state, reset_BT, mask_BT)
        return self.output(x_BTD, y_BHTV), state

    def init_state(self, batch: int, *, device: torch.device, dtype: torch.dtype) -> State:
        return self.heads.init_state(batch, device=device, dtype=dtype)

    def state_size(self, T: int) -> int:
        return self.heads.state_size()


def head_width(dim: int, heads: int, factor: float = 1.0) -> int:
    """Width of a head where all heads together are ``factor * dim`` wide."""
    wide = int(factor * dim)
    require(
        heads >= 1 and wide >= 1 and wide % heads == 0, f"{factor:g} * dim {dim} must be a multiple of heads {heads}"
    )
    return wide // heads
