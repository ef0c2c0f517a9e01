"""The depth-recurrent transformer: one block, applied again and again."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from clplat.backbones.attention.transformer import SelfAttention
from clplat.backbones.base import Backbone, State, blank, require
from clplat.backbones.block import make_mlp
from clplat.backbones.dropout import Dropout


class ScaledBlock(nn.Module):
    """A pre-norm block whose branches are scaled by a learned number for each channel (Touvron et al. 2021, arXiv
    2103.17239)::

        x = x + dropout(c_1 * attention(norm(x)))
        x = x + dropout(c_2 * mlp(norm(x)))

    Args:
        dim, heads, ratio, dropout: see :class:`DepthRecurrentTransformer`.
        scale: c_1 and c_2 at first.
    """

    def __init__(self, dim: int, heads: int, *, ratio: float, dropout: float, scale: float) -> None:
        super().__init__()
        self.mixer_norm, self.mixer = nn.LayerNorm(dim), SelfAttention(dim, heads)
        self.mlp_norm, self.mlp = nn.LayerNorm(dim), make_mlp("gelu", dim, ratio)
        self.mixer_scale, self.mlp_scale = (nn.Parameter(torch.full((dim,), scale)) for _ in range(2))
        self.dropout = Dropout(dropout)

    def forward(
        self, x_BTD: Tensor, state: State, reset_BT: Tensor | None, mask_BT: Tensor | None
    ) -> tuple[Tensor, State]:
        mixed_BTD, state = self.mixer(self.mixer_norm(x_BTD), state, reset_BT=reset_BT, mask_BT=mask_BT)
        x_BTD = x_BTD + self.dropout(self.mixer_scale * mixed_BTD)
        return x_BTD + self.dropout(self.mlp_scale * self.mlp(self.mlp_norm(x_BTD))), state


class DepthRecurrentTransformer(Backbone):
    """Depth-recurrent transformer (Chen 2026, arXiv 2603.21676), made causal.

    (B, T, input_size) -> (B, T, dim). One block is applied K times, behind a gate that keeps what was there::

        C_k = block(H_k)
        g_k = sigmoid(W [H_k C_k] + b)
        H_{k+1} = (1 - g_k) * H_k + g_k * C_k        y = norm(H_K)

    K costs no parameters and may be changed at any time (``network.iterations``), for more depth than in training. The
    state is a list with the keys and values of each iteration, see
    :class:`~clplat.backbones.attention.transformer.SelfAttention`; it grows with T, and belongs to one K.

    As the author's code: b = -2 and branches scaled by 1e-4 at first. Left out: its embedding of k, and drawing K at
    random in training. The paper's masks (edges of a graph) are causal attention with rotary positions here.

    Args:
        dim: width of the residual stream; an even multiple of heads.
        heads: attention heads.
        iterations: K.
        ratio: width of the MLP in units of dim.
        dropout: probability that a value of a residual branch is dropped in training.
        gate_bias: b at first.
        scale: of the branches at first.
    """

    def __init__(
        self,
        input_size: int,
        *,
        dim: int = 64,
        heads: int = 4,
        iterations: int = 4,
        ratio: float = 2.0,
        dropout: float = 0.0,
        gate_bias: float = -2.0,
        scale: float = 1e-4,
    ) -> None:
        super().__init__()
        require(iterations >= 1, f"iterations must be at least 1, not {iterations}")
        self.input_size, self.output_size, self.iterations = input_size, dim, iterations
        self.embed = nn.Linear(input_size, dim)
        self.block = ScaledBlock(dim, heads, ratio=ratio, dropout=dropout, scale=scale)
        self.gate = nn.Linear(2 * dim, dim)
        nn.init.constant_(self.gate.bias, gate_bias)
        self.norm = nn.LayerNorm(dim)

    def forward(
        self,
        x_BTD: Tensor,
        state: State = None,
        *,
        reset_BT: Tensor | None = None,
        mask_BT: Tensor | None = None,
    ) -> tuple[Tensor, State]:
        h_BTD, after = self.embed(blank(x_BTD, mask_BT)), []
        for k in range(self.iterations):
            before = None if state is None else state[k]
            c_BTD, part = self.block(h_BTD, before, reset_BT, mask_BT)
            after.append(part)
            g_BTD = self.gate(torch.cat([h_BTD, c_BTD], -1)).sigmoid()
            h_BTD = h_BTD + g_BTD * (c_BTD - h_BTD)
        return blank(self.norm(h_BTD), mask_BT), after

    @property
    def attention_layers(self) -> list[nn.Module]:
        return [self.block.mixer] * self.iterations

    def init_state(self, batch: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None) -> State:
        weight = self.embed.weight
        device, dtype = device or weight.device, dtype or weight.dtype
        return [self.block.mixer.init_state(batch, device=device, dtype=dtype) for _ in range(self.iterations)]

    def state_size(self, T: int) -> int:
        return self.iterations * self.block.mixer.state_size(T)

    def hidden(self) -> list[tuple[str, str]]:
        return [("block.mlp.0", "block.mlp.2")]
