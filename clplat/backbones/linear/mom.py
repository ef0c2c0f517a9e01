"""Mixture of memories: each step is written to a few of several memories, which so do not disturb each other."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from clplat.backbones.base import State, in_reference_form, map_state, require
from clplat.backbones.block import Mixer, Stack, join_heads, split_heads
from clplat.backbones.linear.delta_net import DeltaRule
from clplat.backbones.linear.gated_delta_net import GatedDeltaRule
from clplat.backbones.linear.gla import ChannelDecay
from clplat.backbones.linear.memory import Heads, Output, Rule, head_width, padded
from clplat.backbones.ops.backend import Backend, scalar_decay
from clplat.backbones.ops.routing import lanes, whole_lanes


class Sum(Rule):
    """The plain sum of key-value products: ``S_t = S_{t-1} + k v'``, ``y = S_t' q``."""

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
        k, S = padded(k_BHTK, mask_BT), state["S"].to(v_BHTV.dtype)
        y_BHTV, S = scalar_decay(q_BHTK, k, v_BHTV, None, S, reset_BT, self.chunk)
        return y_BHTV, {"S": S}


Update = Literal["sum", "gla", "delta", "gated-delta"]
RULES: dict[Update, type[Rule]] = {
    "sum": Sum,
    "gla": ChannelDecay,
    "delta": DeltaRule,
    "gated-delta": GatedDeltaRule,
}


class Writer(nn.Module):
    """Keys, values and gates of one memory: (..., D) -> (..., keys and values), (..., gates)."""

    def __init__(self, dim: int, rule: Rule) -> None:
        super().__init__()
        self.kv = nn.Linear(dim, rule.heads * (rule.key + rule.value))
        self.gates = rule.make_gates(dim)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.kv(x), x[..., :0] if self.gates is None else self.gates(x)


class Mixture(Mixer):
    """Routed memories and a shared one: (B, T, D) -> (B, T, D)::

        p = softmax(W_r x), over E memories; the ``top`` largest, made to sum to 1, are g
        memory e is updated by its own keys, values and gates from x if e is among them, else it stays as it is
        y = sum_e g_e read_e(q) + read_shared(q)          q = W_q x for all
        out = output(x, y)

    A memory sees the steps that come to it as if there were no others, and so does the short convolution on its
    queries, keys and values. The steps are laid out in one lane for each memory, so the rule is computed for as many
    steps as the fullest memory gets.

    State: ``memories``, that of the rule as (B, E, ...), and with ``shared`` also ``shared``; with conv each has its
    ``convolution``.

    Args:
        dim: D.
        rule: how each memory is written and read; its parameters belong to all memories.
        memories: E.
        top: memories for each step.
        shared: another memory sees all steps.
        conv: width in steps of a causal depthwise convolution with SiLU behind the projections; 0 for none.
        backend: whose kernels compute.
    """

    def __init__(
        self, dim: int, rule: Rule, *, memories: int, top: int, shared: bool, conv: int, backend: Backend = "auto"
    ) -> None:
        super().__init__()
        require(1 <= top <= memories, f"top must be from 1 to memories {memories}, not {top}")
        self.top = top
        self.router = nn.Linear(dim, memories, bias=False)
        self.query = nn.Linear(dim, rule.heads * rule.key)
        self.writers = nn.ModuleList(Writer(dim, rule) for _ in range(memories))
        self.shared = Writer(dim, rule) if shared else None
        self.heads = Heads(rule, conv, backend)
        self.output = Output(dim, rule)

    def forward(
        self, x_BTD: Tensor, state: State = None, *, reset_BT: Tensor | None = None, mask_BT: Tensor | None = None
    ) -> tuple[Tensor, State]:
        B, E = len(x_BTD), len(self.writers)
        state = self.init_state(B, device=x_BTD.device, dtype=x_BTD.dtype) if state is None else state
        share_BTk, memory_BTk = self.route(x_BTD)
        goes_BTE = (memory_BTk[..., None] == torch.arange(E, device=x_BTD.device)).any(2)
        if mask_BT is not None:
            goes_BTE = goes_BTE & mask_BT[..., None]
        rule = self.heads.rule
        laid = whole_lanes(goes_BTE, reset_BT) if in_reference_form() else lanes(goes_BTE, reset_BT)

        q_BTE = self.query(x_BTD)
        x_BEND = laid.gather(x_BTD)
        written = [writer(x_BEND[:, e]) for e, writer in enumerate(self.writers)]
        kv, gates = (torch.stack(parts, 1) for parts in zip(*written, strict=True))
        y_LHNV, memories = self.heads(
            torch.cat([laid.gather(q_BTE), kv], -1).flatten(0, 1),
            gates.flatten(0, 1),
            map_state(lambda part: part.flatten(0, 1), state["memories"]),
            None if laid.reset is None else laid.reset.flatten(0, 1),
            laid.used.flatten(0, 1),
        )
        after = {"memories": map_state(lambda part: part.unflatten(0, (B, E)), memories)}
        y_BTkV = laid.back(join_heads(y_LHNV).unflatten(0, (B, E)), memory_BTk)
        y_BHTV = split_heads((share_BTk[..., None].to(y_BTkV.dtype) * y_BTkV).sum(2), rule.heads)
        if self.shared is not None:
            kv, gates = self.shared(x_BTD)
            qkv_BTE = torch.cat([q_BTE, kv], -1)
            y_shared, after["shared"] = self.heads(qkv_BTE, gates, state["shared"], reset_BT, mask_BT)
            y_BHTV = y_BHTV + y_shared
        return self.output(x_BTD, y_BHTV), after

    def route(self, x_BTD: Tensor) -> tuple[Tensor, Tensor]:
        """The shares g and the numbers of the memories of each step, (B, T, top) each."""
        with torch.autocast(x_BTD.device.type, enabled=False):  # in 16 bits shares are equal too often
            p_BTE = self.router(x_BTD.to(self.router.weight.dtype)).softmax(-1)
        share_BTk, memory_BTk = p_BTE.topk(self.top, -1)
        return share_BTk / share_BTk.sum(-1, keepdim=True), memory_BTk

    def init_state(self, batch: int, *, device: torch.device, dtype: torch.dtype) -> State:
        E = len(self.writers)
        memories = self.heads.init_state(batch * E, device=device, dtype=dtype)
        state = {"memories": map_state(lambda part: part.unflatten(0, (batch, E)), memories)}
        if self.shared is not None:
            state["shared"] = self.heads.init_state(batch, device=device, dtype=dtype)
        return state

    def state_size(self, T: int) -> int:
        return self.heads.state_size() * (len(self.writers) + (self.shared is not None))


class MoM(Stack):
    """Mixture of memories (Du et al. 2025, arXiv 2502.13685).

    (B, T, input_size) -> (B, T, dim), with a state of fixed size; see :class:`Mixture`. Sizes and parts as in the
    authors' code: queries, the convolution and the rule's own parameters are shared by the memories, keys, values and
    gates are not. Not here: the auxiliary loss by which routing is kept balanced, which no backbone can add to the
    loss, and a limit on how many steps a memory takes.

    Args:
        memories: routed memories, E in the paper.
        top: memories to which each step goes.
        shared: another memory takes all steps.
        update: how a memory is written: sum, gla, delta or gated-delta.
        heads: in each block; dim is a multiple of heads.
        chunk: steps that are computed at once; the result is the same for all.
        conv: width in steps of a causal convolution with SiLU on queries, keys and values; 0 for none.
        backend: whose kernels compute: torch: ours; fla: flash-linear-attention's; auto: those where they can.
    """

    def __init__(
        self,
        input_size: int,
        *,
        memories: int = 4,
        top: int = 2,
        shared: bool = True,
        update: Update = "gated-delta",
        heads: int = 4,
        chunk: int = 64,
        conv: int = 4,
        backend: Backend = "auto",
        **block: Any,
    ) -> None:
        def mixer(dim: int, number: int) -> Mixture:
            size = head_width(dim, heads)
            rule = RULES[update](heads, size, size, chunk)
            return Mixture(dim, rule, memories=memories, top=top, shared=shared, conv=conv, backend=backend)

        super().__init__(input_size, mixer, **block)
