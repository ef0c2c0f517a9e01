"""The relational memory core: slots of memory that attend to each other at each step."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from clplat.backbones.base import Backbone, State, blank, in_reference_form, require
from clplat.backbones.block import join_heads, split_heads
from clplat.backbones.ops.attention import attention, attention_loop
from clplat.backbones.ops.recurrence import unroll


class Attend(nn.Module):
    """Rows attend to all rows: ``norm(x + attention(q, k, v))`` with q, k, v the parts of ``norm(W x + b)``."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv, self.qkv_norm = nn.Linear(width, 3 * width), nn.LayerNorm(3 * width)
        self.norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, rows_BNF: Tensor, mlp: nn.Module) -> Tensor:
        q, k, v = (split_heads(part, self.heads) for part in self.qkv_norm(self.qkv(rows_BNF)).chunk(3, -1))
        form = attention_loop if in_reference_form() else attention
        everywhere = torch.ones((1, q.shape[2], q.shape[2]), device=q.device, dtype=torch.bool)
        rows_BNF = self.norm(rows_BNF + join_heads(form(q, k, v, everywhere)))
        after_BNF: Tensor = self.mlp_norm(rows_BNF + mlp(rows_BNF))
        return after_BNF


class RMC(Backbone):
    """Relational memory core (Santoro et al. 2018, Relational recurrent neural networks, arXiv 1806.01822).

    (B, T, D) -> (B, T, slots * hidden), the memory's rows side by side. A step with the input u = W_u x + b_u as one
    more row changes the memory M (slots, hidden)::

        R = [M; u];  R = norm(R + attention(R));  R = norm(R + mlp(R))        blocks times; mlp: 2 layers with ReLU
        i, f = sigmoid(W_i u + U_i tanh(M) + b_i), sigmoid(W_f u + U_f tanh(M) + b_f + 1)
        M' = i * tanh(R without its last row) + f * M

    As in the authors' code: queries, keys and values, of width hidden / heads, come of one map with a norm behind it,
    the MLP is the same in all blocks, and M begins as rows of the identity, so that slots differ. No parameter depends
    on the number of slots, and rows that are exchanged stay exchanged. State: ``{"memory": (B, slots, hidden)}``. Step
    by step only.

    Args:
        hidden: width of a slot; a multiple of heads.
        slots: rows of the memory.
        heads: attention heads.
        blocks: rounds of attention and MLP at each step.
        gate: i and f for each number of the memory (unit), for each slot (memory), or none: M' is R without its row.
    """

    def __init__(
        self,
        input_size: int,
        *,
        hidden: int = 64,
        slots: int = 4,
        heads: int = 4,
        blocks: int = 1,
        gate: Literal["unit", "memory", "none"] = "unit",
    ) -> None:
        super().__init__()
        require(heads >= 1 and hidden % heads == 0, f"hidden {hidden} must be a multiple of heads {heads}")
        require(slots >= 1 and blocks >= 1, f"slots {slots} and blocks {blocks} must be at least 1")
        self.input_size, self.output_size = input_size, slots * hidden
        self.slots, self.width = slots, hidden
        self.enter_row = nn.Linear(input_size, hidden)
        self.rounds = nn.ModuleList(Attend(hidden, heads) for _ in range(blocks))
        self.mlp = nn.Sequential(nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, hidden))
        gates = {"unit": 2 * hidden, "memory": 2, "none": 0}[gate]
        self.gate_input = nn.Linear(hidden, gates) if gates else None
        self.gate_memory = nn.Linear(hidden, gates) if gates else None

    def step(self, u_BF: Tensor, state: State) -> tuple[Tensor, State]:
        """One step of the memory."""
        M_BSF = state["memory"]
        rows_BNF = torch.cat([M_BSF, u_BF[:, None].to(M_BSF.dtype)], 1)
        for attend in self.rounds:
            rows_BNF = attend(rows_BNF, self.mlp)
        new_BSF = rows_BNF[:, :-1]
        if self.gate_input is not None and self.gate_memory is not None:
            enter, forget = (self.gate_input(u_BF)[:, None] + self.gate_memory(M_BSF.tanh())).chunk(2, -1)
            new_BSF = enter.sigmoid() * new_BSF.tanh() + (forget + 1).sigmoid() * M_BSF
        return new_BSF.flatten(1), {"memory": new_BSF}

    def forward(
        self,
        x_BTD: Tensor,
        state: State = None,
        *,
        reset_BT: Tensor | None = None,
        mask_BT: Tensor | None = None,
    ) -> tuple[Tensor, State]:
        initial = self.init_state(len(x_BTD), device=x_BTD.device, dtype=x_BTD.dtype)
        u_BTF = self.enter_row(blank(x_BTD, mask_BT))
        y_BTW, state = unroll(self.step, u_BTF, initial if state is None else state, initial, reset_BT, mask_BT)
        return blank(y_BTW, mask_BT), state

    def init_state(self, batch: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None) -> State:
        weight = self.enter_row.weight
        identity = torch.eye(self.slots, self.width, device=device or weight.device, dtype=dtype or weight.dtype)
        return {"memory": identity.repeat(batch, 1, 1)}

    def state_size(self, T: int) -> int:
        return self.slots * self.width
