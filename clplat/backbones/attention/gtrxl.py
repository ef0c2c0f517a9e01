"""The gated Transformer-XL."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from clplat.backbones.attention.segments import SegmentRecurrent, causal
from clplat.backbones.base import State, in_reference_form, require
from clplat.backbones.block import join_heads, split_heads
from clplat.backbones.dropout import Dropout
from clplat.backbones.ops.relative_attention import (
    relative_attention,
    relative_attention_loop,
    relative_weights,
    sinusoids,
)
from clplat.backbones.seen import Seen


class GRUGate(nn.Module):
    """What a branch y adds to the stream x, by a gated recurrent unit (section 3.2)::

        r = sigmoid(W_r y + U_r x)
        z = sigmoid(W_z y + U_z x - b)
        g(x, y) = (1 - z) * x + z * tanh(W_h y + U_h (r * x))

    Args:
        dim: width of both.
        bias: b at first; the larger, the nearer to x.
    """

    def __init__(self, dim: int, bias: float) -> None:
        super().__init__()
        self.y = nn.Linear(dim, 3 * dim, bias=False)
        self.x = nn.Linear(dim, 2 * dim, bias=False)
        self.kept = nn.Linear(dim, dim, bias=False)
        self.bias = nn.Parameter(torch.full((dim,), bias))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        y_r, y_z, y_h = self.y(y).chunk(3, -1)
        x_r, x_z = self.x(x).chunk(2, -1)
        z = (y_z + x_z - self.bias).sigmoid()
        h = (y_h + self.kept((y_r + x_r).sigmoid() * x)).tanh()
        return (1 - z) * x + z * h


class GatedLayer(nn.Module):
    """A block that keeps its stream unless gates open it, norms on branches only (identity map reordering)::

        y = g(x, relu(attention(norm([M x]))))
        x = g(y, relu(mlp(norm(y))))

    The queries are x's alone; :mod:`clplat.backbones.ops.relative_attention` has the attention's equations.

    Args:
        dim, heads, ratio, dropout, bias: see :class:`GTrXL`.
    """

    def __init__(self, dim: int, heads: int, *, ratio: float, dropout: float, bias: float) -> None:
        super().__init__()
        wide = int(ratio * dim)
        require(heads >= 1 and dim % heads == 0, f"dim {dim} must be a multiple of heads {heads}")
        require(wide >= 1, f"ratio {ratio} of dim {dim} leaves no width for the MLP")
        self.heads = heads
        self.attention_norm, self.mlp_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.query, self.key_value = nn.Linear(dim, dim, bias=False), nn.Linear(dim, 2 * dim, bias=False)
        self.place, self.out = nn.Linear(dim, dim, bias=False), nn.Linear(dim, dim, bias=False)
        self.u, self.w = nn.Parameter(torch.zeros(dim)), nn.Parameter(torch.zeros(dim))
        self.mlp = nn.Sequential(nn.Linear(dim, wide), nn.ReLU(), nn.Linear(wide, dim))
        self.attention_gate, self.mlp_gate = GRUGate(dim, bias), GRUGate(dim, bias)
        self.dropout = Dropout(dropout)

    attends = True

    def forward(self, x_BLD: Tensor, memory_BMD: Tensor, visible_BLS: Tensor) -> Tensor:
        q, k, v, r_HSK, u_HK, w_HK = self._project(x_BLD, memory_BMD)
        form = relative_attention_loop if in_reference_form() else relative_attention
        y_BLD = self.out(join_heads(form(q, k, v, r_HSK, u_HK, w_HK, visible_BLS)))
        x_BLD = self.attention_gate(x_BLD, self.dropout(y_BLD.relu()))
        y_BLD = self.mlp(self.mlp_norm(x_BLD))
        gated: Tensor = self.mlp_gate(x_BLD, self.dropout(y_BLD.relu()))
        return gated

    def look(self, x_BLD: Tensor, memory_BMD: Tensor, visible_BLS: Tensor) -> Seen:
        q, k, v, r_HSK, u_HK, w_HK = self._project(x_BLD, memory_BMD)
        steps = torch.arange(k.shape[2], device=k.device) - memory_BMD.shape[1]
        return Seen(x_BLD, k, v, relative_weights(q, k, r_HSK, u_HK, w_HK, visible_BLS), steps)

    def _project(self, x_BLD: Tensor, memory_BMD: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Queries, keys and values, and r, u and w."""
        seen_BSD = self.attention_norm(torch.cat([memory_BMD, x_BLD], 1))
        S, D = seen_BSD.shape[1:]
        q = split_heads(self.query(seen_BSD[:, memory_BMD.shape[1] :]), self.heads)
        k, v = (split_heads(part, self.heads) for part in self.key_value(seen_BSD).chunk(2, -1))
        r_SD = self.place(sinusoids(S, D, x_BLD.device, x_BLD.dtype))
        r_HSK = split_heads(r_SD[None], self.heads)[0]
        u_HK, w_HK = (bias.unflatten(0, (self.heads, -1)) for bias in (self.u, self.w))
        return q, k, v, r_HSK, u_HK, w_HK


class GTrXL(SegmentRecurrent):
    """Gated Transformer-XL (Parisotto et al. 2020, arXiv 1910.06764), with the segment recurrence of Transformer-XL
    (Dai et al. 2019, arXiv 1901.02860).

    (B, T, input_size) -> (B, T, dim). Each block sees, besides its own segment, the inputs that it was given at the
    last M steps before the segment; see :class:`GatedLayer`. The memory is ``{"inputs": (B, layers, M, dim), "live":
    (B, M)}``, the latest last; see :class:`SegmentRecurrent` for the state. With M no less than the steps so far, and
    gradients let through, the length of the segments does not matter.

    Assumed: an MLP of one hidden layer with ReLU, whose width the paper does not say; a final norm.

    Args:
        memory: steps before the segment that are seen, M.
        gate_bias: b of the gates at first; with 2 the network begins near the identity.
        stop_gradient: whether gradients stop at the memory, as in the paper.
    """

    def __init__(
        self,
        input_size: int,
        *,
        memory: int = 32,
        gate_bias: float = 2.0,
        stop_gradient: bool = True,
        **network: Any,
    ) -> None:
        super().__init__(input_size, partial(GatedLayer, bias=gate_bias), **network)
        require(memory >= 0, f"memory must not be negative, as {memory}")
        self.reach, self.stop_gradient = memory, stop_gradient

    def read(self, h_BLD: Tensor, live_BL: Tensor, memory: State) -> tuple[Tensor, State]:
        inputs, live_BM = memory["inputs"], memory["live"]
        inputs = inputs.detach() if self.stop_gradient else inputs
        visible_BLS = torch.cat([live_BM[:, None].expand(-1, self.segment, -1), causal(live_BL)], 2)
        left = []
        for i, layer in enumerate(self.layers):
            left.append(torch.cat([inputs[:, i], h_BLD], 1)[:, self.segment :])
            h_BLD = layer(h_BLD, inputs[:, i].to(h_BLD.dtype), visible_BLS)
        return h_BLD, {"inputs": torch.stack(left, 1), "live": torch.cat([live_BM, live_BL], 1)[:, self.segment :]}

    def memory(self, batch: int, *, device: torch.device, dtype: torch.dtype) -> State:
        inputs = torch.zeros((batch, len(self.layers), self.reach, self.output_size), device=device, dtype=dtype)
        return {"inputs": inputs, "live": torch.zeros((batch, self.reach), device=device, dtype=torch.bool)}

    def memory_size(self) -> int:
        return self.reach * (len(self.layers) * self.output_size + 1)

    def hidden(self) -> list[tuple[str, str]]:
        return [(f"layers.{i}.mlp.0", f"layers.{i}.mlp.2") for i in range(len(self.layers))]
