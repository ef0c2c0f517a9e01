"""HOPE: a memory that makes its own keys, values and steps, and a chain of networks that learn at different speeds."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from clplat.backbones.base import State, blank, require
from clplat.backbones.block import Mixer, Stack
from clplat.backbones.conv.short import ShortConv
from clplat.backbones.fastweights.memory import FastMemory, cast, start_weights
from clplat.backbones.ops.by_chunk import by_chunk
from clplat.backbones.ops.delta_rule import unit
from clplat.backbones.ops.fast_net import read
from clplat.backbones.ops.fast_weights import Rule, Steps, learn

PARTS = 5  # memories for keys, values, steps, decays, and what is read


class SelfModifying(Mixer):
    """Titans that modify themselves: (B, T, D) -> (B, T, D), for each head with K = D / heads. Five memories M_k, M_v,
    M_eta, M_alpha and M_y, all of the form x + layer_norm(MLP(x)) or linear inside, make from u = silu(conv(W_u x))::

        k = unit(M_k(u))    eta = rate * sigmoid(w_eta . M_eta(u) + b)
        v = M_v(u)          alpha = sigmoid(w_alpha . M_alpha(u) + b')

    with the weights at the chunk's start, and each of them, M, learns with these towards a value of its own making::

        each layer W = W (alpha I - eta z z') - eta grad |M(k) - M(v)|^2 / 2

    where z is what the layer reads for k, and the gradient takes the target M(v) as given. Then ``y = M_y(W_q x)``.

    State: ``convolution``, and ``memory`` as in :mod:`clplat.backbones.ops.fast_weights` with 5 * heads memories.

    Args:
        dim: D.
        heads: divides D.
        chunk: steps whose gradients, keys, values and gates are taken at the same weights.
        conv: width of the convolution behind W_u; 0 for none.
        depth: layers of the memories; 1 is a linear map.
        expansion: width of their hidden layers in units of K.
        rate: the largest eta.
    """

    def __init__(
        self, dim: int, heads: int, chunk: int, *, conv: int = 4, depth: int = 2, expansion: int = 4, rate: float = 0.1
    ) -> None:
        super().__init__()
        require(heads >= 1 and dim % heads == 0, f"dim {dim} must be a multiple of heads {heads}")
        require(min(chunk, depth, expansion) >= 1, "chunk, depth and expansion must be at least 1")
        self.dim, self.heads, self.chunk, self.rate, self.size = dim, heads, chunk, rate, dim // heads
        self.inputs = nn.Linear(dim, 2 * dim)
        self.convolution = ShortConv(dim, conv) if conv else None
        self.weights = start_weights(PARTS * heads, [self.size, *[expansion * self.size] * (depth - 1), self.size])
        self.scale = nn.Parameter(torch.ones(PARTS * heads, 1, self.size))
        self.shift = nn.Parameter(torch.zeros(PARTS * heads, 1, self.size))
        self.gate = nn.Parameter(torch.randn(2, heads, self.size, 1) / self.size**0.5)
        self.gate_bias = nn.Parameter(torch.tensor([0.0, 4.0]).repeat(heads, 1).T[:, :, None, None].contiguous())
        self.norm, self.out = nn.RMSNorm(self.size, eps=1e-5), nn.Linear(dim, dim)

    def rule(self, dtype: torch.dtype) -> Rule:
        """How all five memories learn."""
        return Rule(norm=(self.scale.to(dtype), self.shift.to(dtype)), forgets=True)

    def advance(self, uq_BSHX: Tensor, live_BS: Tensor, slot_BS: Tensor, state: State) -> tuple[Tensor, State]:
        """S slots of one chunk; see :func:`by_chunk`."""
        u, q = uq_BSHX.transpose(1, 2).chunk(2, -1)
        rule = self.rule(u.dtype)

        def all_of(x_BHSK: Tensor) -> Tensor:
            """What the five memories make of the same with the chunk's first weights, less their residual part."""
            return read(state["frozen"], x_BHSK.repeat(1, PARTS, 1, 1), rule.norm)

        k, v, eta, alpha, _ = (part + u for part in all_of(u).chunk(PARTS, 1))
        k = unit(k)
        to_eta, to_alpha = self.gate.to(u.dtype)
        eta_bias, alpha_bias = self.gate_bias.to(u.dtype)
        weight = self.rate * (eta @ to_eta + eta_bias).sigmoid()
        keep = nnf.logsigmoid(alpha @ to_alpha + alpha_bias)
        target = all_of(v) + (v - k).repeat(1, PARTS, 1, 1)
        q_all, k_all, weight_all, keep_all = (x.repeat(1, PARTS, 1, 1) for x in (q, k, weight, keep))
        steps = Steps(q_all, k_all, target, weight_all, keep_all)
        packed, widths = steps.pack()
        packed = packed.masked_fill(~live_BS[:, None, :, None], 0)  # an empty slot's step would count
        y_BHSK, state = learn(rule, packed, widths, live_BS, state)
        return (y_BHSK.chunk(PARTS, 1)[-1] + q).transpose(1, 2), state

    def forward(
        self, x_BTD: Tensor, state: State = None, *, reset_BT: Tensor | None = None, mask_BT: Tensor | None = None
    ) -> tuple[Tensor, State]:
        flags = {"reset_BT": reset_BT, "mask_BT": mask_BT}
        dtype = torch.promote_types(x_BTD.dtype, torch.float32)
        first = self.start(len(x_BTD), x_BTD.device, dtype)
        before, after = {"memory": first} if state is None else state, {}
        u_BTD, q_BTD = self.inputs(x_BTD).chunk(2, -1)
        if self.convolution is not None:
            u_BTD, after["convolution"] = self.convolution(u_BTD, before.get("convolution"), **flags)
        with torch.autocast(x_BTD.device.type, enabled=False):
            u, q = (part.to(dtype).unflatten(-1, (self.heads, -1)) for part in (u_BTD, q_BTD))
            uq_BTHX = torch.cat([unit(nnf.silu(u)), unit(q)], -1)
            memory = cast(before["memory"], dtype)
            close = self.rule(dtype).close
            y_BTHK, after["memory"] = by_chunk(self.advance, close, uq_BTHX, memory, first, self.chunk, **flags)
        y_BTHK = self.norm(y_BTHK.to(self.norm.weight.dtype))
        return self.out(y_BTHK.flatten(2).to(x_BTD.dtype)), after

    def start(self, batch: int, device: torch.device, dtype: torch.dtype) -> State:
        """The memories' state before the first step."""
        weights = [W.to(device=device, dtype=dtype).expand(batch, *W.shape) for W in self.weights]
        return {**self.rule(dtype).begin(weights), "position": torch.zeros(batch, dtype=torch.long, device=device)}

    def init_state(self, batch: int, *, device: torch.device, dtype: torch.dtype) -> State:
        memory = self.start(batch, device, torch.promote_types(dtype, torch.float32))
        if self.convolution is None:
            return {"memory": memory}
        return {"convolution": self.convolution.init_state(batch, device=device, dtype=dtype), "memory": memory}

    def state_size(self, T: int) -> int:
        convolution = 0 if self.convolution is None else self.convolution.state_size(T)
        return convolution + 2 * sum(W.numel() for W in self.weights) + 1


class Continuum(Mixer):
    """Mixers behind each other, the second and later ones as residual branches: (B, T, dim) -> (B, T, dim)::

        y = first(x)        y = y + rest_l(rms_norm(y)) for l = 1 .. L

    State: a list, theirs in order.

    Args:
        dim: width.
        first: reads x.
        rest: read what came before them.
    """

    def __init__(self, dim: int, first: Mixer, rest: list[Mixer]) -> None:
        super().__init__()
        self.mixers = nn.ModuleList([first, *rest])
        self.norms = nn.ModuleList(nn.RMSNorm(dim, eps=1e-5) for _ in rest)

    def forward(
        self, x_BTD: Tensor, state: State = None, *, reset_BT: Tensor | None = None, mask_BT: Tensor | None = None
    ) -> tuple[Tensor, State]:
        flags = {"reset_BT": reset_BT, "mask_BT": mask_BT}
        before = [None] * len(self.mixers) if state is None else state
        y_BTD, after = self.mixers[0](x_BTD, before[0], **flags)
        states = [after]
        for mixer, norm, part in zip(self.mixers[1:], self.norms, before[1:], strict=True):
            read_BTD = blank(norm(y_BTD.to(norm.weight.dtype)), mask_BT)
            more_BTD, after = mixer(read_BTD, part, **flags)
            y_BTD = y_BTD + more_BTD
            states.append(after)
        return y_BTD, states

    def init_state(self, batch: int, *, device: torch.device, dtype: torch.dtype) -> State:
        return [mixer.init_state(batch, device=device, dtype=dtype) for mixer in self.mixers]  # type: ignore[operator]

    def state_size(self, T: int) -> int:
        return sum(mixer.state_size(T) for mixer in self.mixers)  # type: ignore[operator]


class Hope(Stack):
    """HOPE (Behrouz et al. 2025, Nested Learning: The Illusion of Deep Learning Architectures, NeurIPS): self-modifying
    Titans, then a continuum memory system in the MLP's place.

    (B, T, input_size) -> (B, T, dim). See :class:`SelfModifying` for the first. The second is a chain of networks of
    which the l-th changes its weights only every C_l steps, by the sum of its gradients in between (eq. 30-31)::

        y = M_1(x), M_2(M_1(x)) ...        W_l = W_l - sum over C_l steps of eta_t grad at W_l

    from fast to slow, with C_l = period / 2^(levels - l). Each sample learns its own weights while it is read; what is
    learned from sample to sample are the weights at a sequence's start, all projections and all gates.

    Assumed, where the paper leaves it open or a transcription was all there was: a level's inner loss is that of TTT,
    a value of each step from its key, and each level is a residual branch with projections and a gate
    (:class:`~clplat.backbones.fastweights.memory.FastMemory`, one head, no decay); memories' keys, values and gates
    come from the weights of the chunk's start; rates and decays are one number for each head.

    Args:
        heads: memories in each block.
        chunk: steps whose gradients are taken at the same weights.
        conv: width of the convolution behind the projection; 0 for none.
        depth: layers of the memories; 1 is a linear map.
        expansion: width of the memories' hidden layers in units of their input.
        rate: the largest step.
        levels: networks in the chain.
        period: steps between the changes of the slowest.
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
        rate: float = 0.01,
        levels: int = 2,
        period: int = 64,
        **block: Any,
    ) -> None:
        require(levels >= 1, f"levels must be at least 1, not {levels}")
        require(period >= 1, f"period must be at least 1, not {period}")

        def mixer(dim: int, number: int) -> Continuum:
            first = SelfModifying(dim, heads, chunk, conv=conv, depth=depth, expansion=expansion, rate=rate)
            periods = [max(1, period // 2 ** (levels - level)) for level in range(1, levels + 1)]
            chain = [FastMemory(dim, 1, every, conv=0, rate=rate, retention="none", lazy=True) for every in periods]
            return Continuum(dim, first, list(chain))

        super().__init__(input_size, mixer, mlp="none", **block)
