"""Titans: long-term memory by surprise, momentum and forgetting."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from clplat.backbones.base import State, blank
from clplat.backbones.block import Mixer, Stack
from clplat.backbones.fastweights.memory import FastMemory
from clplat.backbones.fastweights.persistent import PersistentWindow


class LongTermMemory(Stack):
    """The neural long-term memory of Titans by itself (Behrouz et al. 2025, arXiv 2501.00663, section 3; LMM).

    (B, T, input_size) -> (B, T, dim). The memory M, an MLP of ``depth`` layers, takes a step on each key and value
    (eq. 12-14), and is read with the query (eq. 15)::

        S_t = eta_t S_{t-1} - theta_t grad |M(k_t) - v_t|^2 / 2
        W_t = (1 - alpha_t) W_{t-1} + S_t
        y_t = M(q_t; W_t)

    with the gradient at the weights of the chunk's start (eq. 16-18). Chunks are part of the model. See
    :class:`~clplat.backbones.fastweights.memory.FastMemory` for the projections, the gates and the state.

    Assumed: theta is at most ``rate``; the gates are one number for each head; M has the layer norm and residual
    connection of TTT, without which its products of weights can grow without bounds (``residual=false`` is the bare
    MLP of the paper).

    Args:
        heads: memories in each block.
        chunk: steps whose gradients are taken at the same weights.
        conv: width of the convolutions behind the projections; 0 for none.
        depth: layers of the memory, L_M in the paper; 1 is a linear map.
        expansion: width of the memory's hidden layers in units of its input.
        residual: whether the memory has a layer norm and a residual connection.
        rate: the largest step theta.
    """

    def __init__(
        self,
        input_size: int,
        *,
        heads: int = 4,
        chunk: int = 16,
        conv: int = 4,
        depth: int = 2,
        expansion: int = 4,
        residual: bool = True,
        rate: float = 0.1,
        **block: Any,
    ) -> None:
        def mixer(dim: int, number: int) -> FastMemory:
            return FastMemory(
                dim,
                heads,
                chunk,
                conv=conv,
                depth=depth,
                expansion=expansion,
                residual=residual,
                rate=rate,
                optimiser="momentum",
            )

        super().__init__(input_size, mixer, **block)


class Together(Mixer):
    """Two mixers, one beside or behind the other. State: ``memory`` and ``attention``, theirs.

    Beside each other, with each output normalised and scaled by a learned vector (Titans, section 4.2)::

        y = W (rms_norm(attention(x)) * sigmoid(rms_norm(memory(x))))

    Behind each other: ``y = attention(memory(x))`` (section 4.3).

    Args:
        dim: D.
        memory: reads x.
        attention: reads x, or what the memory gives.
        beside: whether it reads x.
    """

    def __init__(self, dim: int, memory: Mixer, attention: Mixer, *, beside: bool) -> None:
        super().__init__()
        self.memory, self.attention, self.join = memory, attention, Gated(dim) if beside else None

    def forward(
        self, x_BTD: Tensor, state: State = None, *, reset_BT: Tensor | None = None, mask_BT: Tensor | None = None
    ) -> tuple[Tensor, State]:
        flags = {"reset_BT": reset_BT, "mask_BT": mask_BT}
        before = state or {"memory": None, "attention": None}
        m_BTD, memory = self.memory(x_BTD, before["memory"], **flags)
        y_BTD, attention = self.attention(x_BTD if self.join else blank(m_BTD, mask_BT), before["attention"], **flags)
        return y_BTD if self.join is None else self.join(y_BTD, m_BTD), {"memory": memory, "attention": attention}

    def init_state(self, batch: int, *, device: torch.device, dtype: torch.dtype) -> State:
        parts = {"memory": self.memory, "attention": self.attention}
        return {name: part.init_state(batch, device=device, dtype=dtype) for name, part in parts.items()}

    def state_size(self, T: int) -> int:
        return self.memory.state_size(T) + self.attention.state_size(T)


class Gated(nn.Module):
    """``W (rms_norm(y) * sigmoid(rms_norm(m)))``, each norm with a learned scale: (..., dim) twice -> (..., dim)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.first, self.second = nn.RMSNorm(dim, eps=1e-5), nn.RMSNorm(dim, eps=1e-5)
        self.out = nn.Linear(dim, dim)

    def forward(self, y: Tensor, m: Tensor) -> Tensor:
        y, m = y.to(self.first.weight.dtype), m.to(self.first.weight.dtype)
        joined: Tensor = self.out(self.first(y) * self.second(m).sigmoid())
        return joined


class MemoryAsGate(Stack):
    """Titans, memory as a gate (Behrouz et al. 2025, arXiv 2501.00663, section 4.2; MAG).

    (B, T, input_size) -> (B, T, dim). Attention to persistent keys and a window of steps is the short-term memory, and
    the neural memory M of :class:`LongTermMemory`, by itself on x, the long-term one::

        y = window attention to [p ; x]        o = W (rms_norm(y) * sigmoid(rms_norm(M(x))))

    See :class:`~clplat.backbones.fastweights.memory.FastMemory` and
    :class:`~clplat.backbones.attention.local.WindowAttention` for projections and states.

    Assumed: what persistent memory makes of M at a sequence's start is part of M's learned initial weights; it is keys
    and values of the attention only.

    Args:
        heads: memories, and heads of the attention, in each block.
        window: steps that the attention sees.
        persistent: persistent keys.
        chunk: steps whose gradients are taken at the same weights.
        conv: width of the convolutions behind the memory's projections; 0 for none.
        depth: layers of the memory; 1 is a linear map.
        expansion: width of the memory's hidden layers in units of its input.
        rate: the largest step theta.
    """

    beside: ClassVar[bool] = True  # the attention reads what the memory reads

    def __init__(
        self,
        input_size: int,
        *,
        heads: int = 4,
        window: int = 32,
        persistent: int = 4,
        chunk: int = 16,
        conv: int = 4,
        depth: int = 2,
        expansion: int = 4,
        rate: float = 0.1,
        **block: Any,
    ) -> None:
        def mixer(dim: int, number: int) -> Together:
            memory = FastMemory(
                dim, heads, chunk, conv=conv, depth=depth, expansion=expansion, rate=rate, optimiser="momentum"
            )
            return Together(dim, memory, PersistentWindow(dim, heads, window, persistent), beside=self.beside)

        super().__init__(input_size, mixer, **block)


class MemoryAsLayer(MemoryAsGate):
    """Titans, memory as a layer (Behrouz et al. 2025, arXiv 2501.00663, section 4.3; MAL).

    (B, T, input_size) -> (B, T, dim). As :class:`MemoryAsGate`, but the neural memory M is in front of the attention::

        y = M(x)        o = window attention to [p ; y]
    """

    beside = False
