"""The mixer of the networks that learn at test time: projections, gates and a memory of fast weights."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Literal

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from clplat.backbones.base import State, map_state, require
from clplat.backbones.block import Mixer
from clplat.backbones.conv.short import ShortConv
from clplat.backbones.fastweights.monomials import Monomials
from clplat.backbones.ops import miras
from clplat.backbones.ops.by_chunk import by_chunk
from clplat.backbones.ops.delta_rule import unit
from clplat.backbones.ops.fast_weights import Rule, Steps, learn

BiasName = Literal["l2", "lp", "l1", "huber", "dot"]
Retention = Literal["none", "l2", "lq", "kl", "elastic"]
Optimiser = Literal["gd", "momentum", "muon"]


class FastMemory(Mixer):
    """A memory that learns while it reads: (B, T, D) -> (B, T, D), for each head with K = D / heads::

        q, k = unit(silu(conv(W_q x))), unit(silu(conv(W_k x)))    v = silu(conv(W_v x))
        y_t = M(q_t; W_t) after the step on the loss of M(k_t) against v_t    (clplat.backbones.ops.fast_weights)
        output = W_o (rms_norm(y) * sigmoid(W_g x))

    M(x) = x + N(x), where N is a linear map or an MLP with gelu behind a layer norm, or without ``residual`` N is the
    bare map and M = N. The weights at a sequence's start are parameters, and so are the norm's scale and shift. Gates
    are for each head and step::

        weight = rate * sigmoid    keep = sigmoid (starts near 0.98)    inertia = sigmoid    limit = softplus

    State: ``convolution``; ``memory`` as in :mod:`clplat.backbones.ops.fast_weights`, in float32 at least.

    Args:
        dim: D.
        heads: number of memories; divides D.
        chunk: steps whose gradients are taken at the same weights.
        conv: width of the convolutions behind the projections; 0 for none.
        depth: layers of the memory; 1 is a linear map.
        expansion: width of the memory's hidden layers in units of K.
        residual: whether M has the layer norm and the residual connection.
        rate: the largest step.
        bias: what the memory minimises.
        power: p of the bias lp, and q of the retention lq is one more.
        retention: how it keeps its weights; all but none have a decay.
        optimiser: how it moves.
        window: steps whose gradients each step takes; with more than 1, as with muon, gradients have a weight of their
            own in the sum besides the step's rate.
        degree: of the polynomial features of q and k; 0: q and k themselves.
        rank: with 1 or more, the weight is for each channel of v, and gates are made by way of so many numbers.
        forgets: whether a step takes away what is stored for its key.
        lazy: whether reading waits for the chunk's end.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        chunk: int,
        *,
        conv: int = 4,
        depth: int = 2,
        expansion: int = 4,
        residual: bool = True,
        rate: float = 0.1,
        bias: BiasName = "l2",
        power: float = 3.0,
        retention: Retention = "l2",
        optimiser: Optimiser = "gd",
        window: int = 1,
        degree: int = 0,
        rank: int = 0,
        forgets: bool = False,
        lazy: bool = False,
    ) -> None:
        super().__init__()
        require(heads >= 1 and dim % heads == 0, f"dim {dim} must be a multiple of heads {heads}")
        least = {"chunk": chunk, "depth": depth, "expansion": expansion, "window": window}
        require(min(least.values()) >= 1, f"{', '.join(least)} must be at least 1, not {list(least.values())}")
        require(min(conv, degree, rank) >= 0, f"conv {conv}, degree {degree} and rank {rank} must not be negative")
        require(rate > 0 and power >= 1, f"rate {rate} must be positive and power {power} at least 1")
        self.dim, self.heads, self.chunk, self.size, self.rate = dim, heads, chunk, dim // heads, rate
        self.qkv = nn.Linear(dim, 3 * dim)
        self.convolution = ShortConv(3 * dim, conv) if conv else None
        self.features = Monomials(self.size, degree) if degree else None
        first = self.features.size if self.features else self.size
        widths = [first, *[expansion * self.size] * (depth - 1), self.size]
        self.weights = start_weights(heads, widths, logits=retention == "kl")
        self.scale = nn.Parameter(torch.ones(heads, 1, self.size)) if residual else None
        self.shift = nn.Parameter(torch.zeros(heads, 1, self.size)) if residual else None

        self.summed = window > 1 or optimiser == "muon"  # then the step has a rate beside the gradients' weights
        self.momentum = optimiser != "gd"
        used = {"keep": retention != "none", "inertia": self.momentum, "rate": self.summed, "limit": bias == "huber"}
        self.gates = {"weight": self.size if rank else 1} | {name: 1 for name, there in used.items() if there}
        wide = heads * sum(self.gates.values())
        self.gate = nn.Sequential(nn.Linear(dim, rank), nn.Linear(rank, wide)) if rank else nn.Linear(dim, wide)
        links = {"lq": miras.length_power(power + 1), "kl": miras.simplex, "elastic": miras.sparse(1e-3)}
        biases = {"l2": miras.squares, "lp": miras.power(power), "l1": miras.absolute, "huber": miras.huber}
        self.choices: dict[str, Any] = {
            "bias": {**biases, "dot": miras.product}[bias],
            "link": links.get(retention),
            "muon": optimiser == "muon",
            "window": window,
            "forgets": forgets,
            "lazy": lazy,
        }
        self.norm = nn.RMSNorm(self.size, eps=1e-5)
        self.output_gate, self.out = nn.Linear(dim, dim), nn.Linear(dim, dim)

    def rule(self, dtype: torch.dtype) -> Rule:
        """How the memory learns."""
        norm = None if self.scale is None or self.shift is None else (self.scale.to(dtype), self.shift.to(dtype))
        return Rule(norm=norm, **self.choices)

    def steps(self, x_BTD: Tensor, qkv_BTX: Tensor) -> tuple[Steps, Tensor]:
        """What the steps bring, and what is added to the memory's outputs, (B, H, T, K)."""
        dtype = torch.promote_types(x_BTD.dtype, torch.float32)
        gates = self.gate(x_BTD)
        with torch.autocast(x_BTD.device.type, enabled=False):
            q, k, v = (
                nnf.silu(part.to(dtype)).unflatten(-1, (self.heads, -1)).transpose(1, 2)
                for part in qkv_BTX.chunk(3, -1)
            )
            q, k = unit(q), unit(k)
            parts = gates.to(dtype).unflatten(-1, (self.heads, -1)).transpose(1, 2).split(list(self.gates.values()), -1)
            gate = dict(zip(self.gates, parts, strict=True))
            weight, further = gate["weight"].sigmoid(), {}
            if "keep" in gate:
                further["keep"] = nnf.logsigmoid(gate["keep"] + 4)
            if "inertia" in gate:
                further["inertia"] = nnf.logsigmoid(gate["inertia"])
            if "limit" in gate:
                further["limit"] = nnf.softplus(gate["limit"])
            if "rate" in gate:
                further["rate"] = self.rate * gate["rate"].sigmoid()
            else:
                weight = self.rate * weight
            target, added = (v, torch.zeros_like(q)) if self.scale is None else (v - k, q)
            if self.features is not None:
                q, k = self.features(q), self.features(k)
            return Steps(q, k, target, weight, **further), added

    def finish(self, y_BHTK: Tensor, x_BTD: Tensor) -> Tensor:
        """The mixer's output from the memory's."""
        y_BTHK = self.norm(y_BHTK.transpose(1, 2).to(self.norm.weight.dtype))
        out_BTD: Tensor = self.out(y_BTHK.flatten(2).to(x_BTD.dtype) * self.output_gate(x_BTD).sigmoid())
        return out_BTD

    def forward(
        self, x_BTD: Tensor, state: State = None, *, reset_BT: Tensor | None = None, mask_BT: Tensor | None = None
    ) -> tuple[Tensor, State]:
        flags = {"reset_BT": reset_BT, "mask_BT": mask_BT}
        dtype = torch.promote_types(x_BTD.dtype, torch.float32)
        first = self.start(len(x_BTD), x_BTD.device, dtype)
        before = {"memory": first} if state is None else state
        after, qkv_BTX = {}, self.qkv(x_BTD)
        if self.convolution is not None:
            qkv_BTX, after["convolution"] = self.convolution(qkv_BTX, before.get("convolution"), **flags)
        steps, added_BHTK = self.steps(x_BTD, qkv_BTX)
        with torch.autocast(x_BTD.device.type, enabled=False):
            packed_BHTX, widths = steps.pack()
            rule = self.rule(dtype)

            def advance(x_BSHX: Tensor, live_BS: Tensor, slot_BS: Tensor, state: State) -> tuple[Tensor, State]:
                y_BHSV, state = learn(rule, x_BSHX.transpose(1, 2), widths, live_BS, state)
                return y_BHSV.transpose(1, 2), state

            memory, packed_BTHX = cast(before["memory"], dtype), packed_BHTX.transpose(1, 2)
            y_BTHK, after["memory"] = by_chunk(advance, rule.close, packed_BTHX, memory, first, self.chunk, **flags)
        return self.finish(y_BTHK.transpose(1, 2) + added_BHTK, x_BTD), after

    def start(self, batch: int, device: torch.device, dtype: torch.dtype) -> State:
        """The memory's state before the first step."""
        weights = [W.to(device=device, dtype=dtype).expand(batch, *W.shape) for W in self.weights]
        past, wide = self.choices["window"] - 1, 2 * self.weights[0].shape[1] + self.size
        shape = (batch, self.heads, past, wide + sum(self.gates.values()))
        window = (lambda: torch.zeros(shape, device=device, dtype=dtype)) if past else None
        position_B = torch.zeros(batch, dtype=torch.long, device=device)
        return {**self.rule(dtype).begin(weights, window, self.momentum), "position": position_B}

    def init_state(self, batch: int, *, device: torch.device, dtype: torch.dtype) -> State:
        memory = self.start(batch, device, torch.promote_types(dtype, torch.float32))
        if self.convolution is None:
            return {"memory": memory}
        inputs = self.convolution.init_state(batch, device=device, dtype=dtype)
        return {"convolution": inputs, "memory": memory}

    def state_size(self, T: int) -> int:
        weights = (3 if self.momentum else 2) * sum(W.numel() for W in self.weights)
        past = self.choices["window"] - 1
        window = past * (self.heads * 2 * self.weights[0].shape[1] + self.dim + self.heads * sum(self.gates.values()))
        convolution = 0 if self.convolution is None else self.convolution.state_size(T)
        return convolution + weights + window + 1


def cast(state: State, dtype: torch.dtype) -> State:
    """The floating-point tensors of a state in another type."""
    return map_state(lambda s: s.to(dtype) if s.is_floating_point() else s, state)


def start_weights(heads: int, widths: list[int], *, logits: bool = False) -> nn.ParameterList:
    """The weights (heads, I, O) of each layer at a sequence's start, such that inputs of unit length give sums of about
    that size: normal, with variance 1 in the first layer and 1 / I in the others; logits have variance 1."""
    spread = [1.0 if logits or not number else i**-0.5 for number, i in enumerate(widths)]
    shapes = zip(spread, pairwise(widths), strict=False)
    return nn.ParameterList(std * torch.randn(heads, i, o) for std, (i, o) in shapes)
