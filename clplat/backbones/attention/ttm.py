"""Token Turing machines: a memory of tokens that is summarised anew at each step."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from clplat.backbones.attention.segments import Layer
from clplat.backbones.base import Backbone, State, blank, require
from clplat.backbones.ops.recurrence import unroll


class TokenSummary(nn.Module):
    """N tokens V as M mixtures of them (Ryoo et al. 2021, arXiv 2106.11297, as in its version 1.1)::

        S(V) = softmax(mlp(norm(V + P)) over the N tokens)' (V + P)

    with learned positions P, by which the parts that V is made of are told apart: (B, N, D) -> (B, M, D).

    Args:
        dim: D, also the width of the MLP.
        given: N.
        wanted: M.
    """

    def __init__(self, dim: int, given: int, wanted: int) -> None:
        super().__init__()
        self.positions = nn.Parameter(0.02 * torch.randn(given, dim))
        self.weigh = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, wanted))

    def forward(self, *parts: Tensor) -> Tensor:
        V_BND = torch.cat(parts, 1) + self.positions
        return self.weigh(V_BND).softmax(1).mT @ V_BND


class TTM(Backbone):
    """Token Turing machine (Ryoo et al. 2023, arXiv 2211.09119), with token summaries for reading and writing.

    (B, T, input_size) -> (B, T, dim). At each step, with the memory M_t of m tokens and the input as n tokens I_t::

        Z_t = S_read([M_t I_t])                      r tokens
        O_t = transformer(Z_t)
        M_{t+1} = S_write([M_t O_t I_t])             m tokens
        y_t = norm(mean of O_t)

    so the cost of a step is the same however many came before, and the steps run one after another. The state is
    ``{"memory": (B, m, dim)}``, zeros at first; see :class:`TokenSummary`.

    Assumed: an input vector is made into its n tokens by a linear map; the transformer has pre-norm blocks with rotary
    positions.

    Args:
        dim: width of a token; an even multiple of heads.
        heads: attention heads in each block.
        layers: number of blocks.
        ratio: width of the blocks' MLPs in units of dim.
        dropout: probability that a value of a residual branch is dropped in training.
        tokens: tokens of an input, n.
        reads: tokens that are read, r.
        slots: tokens of memory, m; with 0 there is none.
    """

    def __init__(
        self,
        input_size: int,
        *,
        dim: int = 64,
        heads: int = 4,
        layers: int = 2,
        ratio: float = 2.0,
        dropout: float = 0.0,
        tokens: int = 4,
        reads: int = 4,
        slots: int = 16,
    ) -> None:
        super().__init__()
        require(dim >= 1 and layers >= 1, f"dim {dim} and layers {layers} must be at least 1")
        require(tokens >= 1 and reads >= 1, f"tokens {tokens} and reads {reads} must be at least 1")
        require(slots >= 0, f"slots must not be negative, as {slots}")
        self.input_size, self.output_size, self.tokens, self.slots = input_size, dim, tokens, slots
        self.embed = nn.Linear(input_size, tokens * dim)
        self.read = TokenSummary(dim, slots + tokens, reads)
        self.layers = nn.ModuleList(Layer(dim, heads, ratio=ratio, dropout=dropout) for _ in range(layers))
        self.write = TokenSummary(dim, slots + reads + tokens, slots) if slots else None
        self.norm = nn.LayerNorm(dim)

    def step(self, x_BW: Tensor, state: State) -> tuple[Tensor, State]:
        """One step from the input's tokens, one behind the other."""
        I_BND, M_BMD = x_BW.unflatten(1, (self.tokens, -1)), state["memory"]
        O_BRD = self.read(M_BMD, I_BND)
        all_BRR = torch.ones((len(O_BRD), *[O_BRD.shape[1]] * 2), dtype=torch.bool, device=x_BW.device)
        for layer in self.layers:
            O_BRD = layer(O_BRD, all_BRR)
        written_BMD = M_BMD if self.write is None else self.write(M_BMD, O_BRD, I_BND)
        return O_BRD.mean(1), {"memory": written_BMD}

    def forward(
        self,
        x_BTD: Tensor,
        state: State = None,
        *,
        reset_BT: Tensor | None = None,
        mask_BT: Tensor | None = None,
    ) -> tuple[Tensor, State]:
        x_BTW = self.embed(blank(x_BTD, mask_BT))
        first = self.init_state(len(x_BTD), device=x_BTD.device)
        y_BTD, state = unroll(self.step, x_BTW, first if state is None else state, first, reset_BT, mask_BT)
        return blank(self.norm(y_BTD), mask_BT), state

    def init_state(self, batch: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None) -> State:
        weight = self.embed.weight
        shape = (batch, self.slots, self.output_size)
        return {"memory": torch.zeros(shape, device=device or weight.device, dtype=dtype or weight.dtype)}

    def state_size(self, T: int) -> int:
        return self.slots * self.output_size

    @property
    def attention_layers(self) -> list[nn.Module]:
        return []  # tokens attend to each other, not steps

    def hidden(self) -> list[tuple[str, str]]:
        return [(f"layers.{i}.mlp.0", f"layers.{i}.mlp.2") for i in range(len(self.layers))]
