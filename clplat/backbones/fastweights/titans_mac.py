"""Titans with its memory as context: what it recalls stands in front of the steps that attention sees."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from clplat.backbones.base import State, require
from clplat.backbones.block import Mixer, Stack, join_heads, split_heads
from clplat.backbones.fastweights.memory import FastMemory, cast
from clplat.backbones.fastweights.persistent import Persistent
from clplat.backbones.fastweights.titans import Gated
from clplat.backbones.ops.attention import rotate
from clplat.backbones.ops.by_chunk import by_chunk
from clplat.backbones.ops.fast_net import read
from clplat.backbones.ops.fast_weights import learn


class RecallingAttention(Mixer):
    """Attention within segments, with a memory in front of it and behind it: (B, T, D) -> (B, T, D). For step t of a
    segment that begins with the memory M, M_t being what it has learned up to y_t::

        h_t = M(q(x_t))
        y_t = attention of x_t to [p ; h_1 .. h_t ; x_1 .. x_t]
        o_t = W (rms_norm(y_t) * sigmoid(rms_norm(M_t(q(y_t)))))

    State: ``memory``, ``frozen``, ``momentum`` and ``position`` of :mod:`clplat.backbones.ops.fast_weights`, and
    ``key`` and ``value`` (B, heads, 2 C, D / heads) of the segment under way, for the steps, then for what is recalled.

    Args:
        dim: D.
        heads: memories, and heads of the attention; D / heads must be an even whole number.
        chunk: C, steps in a segment, and in a chunk of the memory.
        persistent: number of persistent keys p.
        memory: options of :class:`FastMemory`.
    """

    def __init__(self, dim: int, heads: int, chunk: int, persistent: int, **memory: Any) -> None:
        super().__init__()
        require(dim % (2 * heads) == 0, f"dim {dim} must be an even multiple of heads {heads}")
        self.dim, self.heads, self.chunk = dim, heads, chunk
        self.memory = FastMemory(dim, heads, chunk, conv=0, optimiser="momentum", **memory)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.persistent = Persistent(heads, persistent, dim // heads)
        self.join = Gated(dim)

    def advance(self, x_BSD: Tensor, live_BS: Tensor, slot_BS: Tensor, state: State) -> tuple[Tensor, State]:
        """S slots of one segment; see :func:`by_chunk`."""
        dtype, state = state["memory"][0].dtype, dict(state)
        rule = self.memory.rule(dtype)
        asked, added = self.memory.steps(x_BSD, self.memory.qkv(x_BSD))
        with torch.autocast(x_BSD.device.type, enabled=False):
            h_BSD = join_heads(read(state["frozen"], asked.q, rule.norm) + added).to(x_BSD.dtype)

        q, k, v = (split_heads(part, self.heads) for part in self.qkv(x_BSD).chunk(3, -1))
        k_h, v_h = (split_heads(part, self.heads) for part in self.qkv(h_BSD).chunk(3, -1)[1:])
        q, k, k_h = (rotate(part, slot_BS) for part in (q, k, k_h))
        slots_C = torch.arange(self.chunk, device=x_BSD.device)
        new_BC = live_BS & (slots_C == slot_BS) if x_BSD.shape[1] == 1 else live_BS  # one step, or a slot for each
        for name, parts in (("key", (k, k_h)), ("value", (v, v_h))):
            halves = zip(parts, state[name].chunk(2, 2), strict=True)
            kept = [torch.where(new_BC[:, None, :, None], part.to(old.dtype), old) for part, old in halves]
            state[name] = torch.cat(kept, 2)
        past_BSC = (slots_C <= slot_BS[..., None]).expand(len(x_BSD), -1, -1)
        k, v = state["key"].to(q.dtype), state["value"].to(q.dtype)
        y_BSD = self.out(join_heads(self.persistent(q, k, v, torch.cat([past_BSC, past_BSC], 2))))

        steps, added = self.memory.steps(y_BSD, self.memory.qkv(y_BSD))
        with torch.autocast(x_BSD.device.type, enabled=False):
            packed, widths = steps.pack()
            packed = packed.masked_fill(~live_BS[:, None, :, None], 0)  # an empty slot's step would count
            m_BHSK, state = learn(rule, packed, widths, live_BS, state)
        return self.join(y_BSD, self.memory.finish(m_BHSK + added, y_BSD)), state

    def forward(
        self, x_BTD: Tensor, state: State = None, *, reset_BT: Tensor | None = None, mask_BT: Tensor | None = None
    ) -> tuple[Tensor, State]:
        dtype = torch.promote_types(x_BTD.dtype, torch.float32)
        first = self.init_state(len(x_BTD), device=x_BTD.device, dtype=dtype)
        state = first if state is None else cast(state, dtype)
        close = self.memory.rule(dtype).close
        return by_chunk(self.advance, close, x_BTD, state, first, self.chunk, reset_BT, mask_BT)

    def init_state(self, batch: int, *, device: torch.device, dtype: torch.dtype) -> State:
        dtype = torch.promote_types(dtype, torch.float32)
        key = torch.zeros((batch, self.heads, 2 * self.chunk, self.dim // self.heads), device=device, dtype=dtype)
        return {**self.memory.start(batch, device, dtype), "key": key, "value": key.clone()}

    def state_size(self, T: int) -> int:
        return self.memory.state_size(T) + 4 * self.chunk * self.dim


class MemoryAsContext(Stack):
    """Titans, memory as context (Behrouz et al. 2025, arXiv 2501.00663, section 4.1; MAC).

    (B, T, input_size) -> (B, T, dim). Attention within a segment also sees persistent keys and what the long-term
    memory recalls for each step; the memory learns from what comes out of it, and gates it (eq. 21-25). See
    :class:`RecallingAttention`, and :class:`~clplat.backbones.fastweights.titans.LongTermMemory` for the memory. A
    segment is a chunk of the memory, and part of the model.

    Assumed: so that outputs depend on the past alone, a step sees what has been recalled for itself and the steps
    before it, and its output is gated by the memory as it is after that step, where the paper writes segments as one;
    steps and what is recalled have rotary positions within the segment.

    Args:
        heads: memories, and heads of the attention, in each block.
        chunk: steps in a segment.
        persistent: persistent keys.
        depth: layers of the memory; 1 is a linear map.
        expansion: width of the memory's hidden layers in units of its input.
        rate: the largest step theta.
    """

    def __init__(
        self,
        input_size: int,
        *,
        heads: int = 4,
        chunk: int = 16,
        persistent: int = 4,
        depth: int = 2,
        expansion: int = 4,
        rate: float = 0.1,
        **block: Any,
    ) -> None:
        def mixer(dim: int, number: int) -> RecallingAttention:
            return RecallingAttention(dim, heads, chunk, persistent, depth=depth, expansion=expansion, rate=rate)

        super().__init__(input_size, mixer, **block)
