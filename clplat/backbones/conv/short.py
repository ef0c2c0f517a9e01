"""The short causal convolution in front of, or within, many mixers."""

from __future__ import annotations

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from clplat.backbones.base import State, in_reference_form, require


class ShortConv(nn.Module):
    """Causal depthwise convolution over the last ``width`` steps: (B, T, D) -> (B, T, D)::

        y_t = bias + sum_{j=0}^{width-1} w_j * x_{t-j}

    with zeros before a sequence's first step. Padding is passed over, as if those steps were not there; the output at
    padding means nothing. State: ``inputs`` (B, width - 1, D), the steps before the next one, the latest last.

    Args:
        dim: D.
        width: steps that each output sees, its own among them.
    """

    def __init__(self, dim: int, width: int) -> None:
        super().__init__()
        require(width >= 1, f"a short convolution must be at least 1 step wide, not {width}")
        self.dim, self.width = dim, width
        self.weight = nn.Parameter(torch.empty(width, dim).uniform_(-1, 1) / width**0.5)  # [j] meets x_{t-j}
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(
        self, x_BTD: Tensor, state: State = None, *, reset_BT: Tensor | None = None, mask_BT: Tensor | None = None
    ) -> tuple[Tensor, State]:
        if state is None:
            state = self.init_state(len(x_BTD), device=x_BTD.device, dtype=x_BTD.dtype)
        B, T, _ = x_BTD.shape
        past = self.width - 1
        inputs_BSD = torch.cat([state["inputs"].to(x_BTD.dtype), x_BTD], 1)
        if reset_BT is None and mask_BT is None and not in_reference_form():
            kernel_D1w = self.weight.flip(0).T[:, None].to(x_BTD.dtype)
            bias_D = self.bias.to(x_BTD.dtype)
            y_BDT = nnf.conv1d(inputs_BSD.mT, kernel_D1w, bias_D, groups=self.dim)
            return y_BDT.mT, {"inputs": inputs_BSD[:, T:]}
        reset_BT = x_BTD.new_zeros((B, T), dtype=torch.bool) if reset_BT is None else reset_BT
        mask_BT = x_BTD.new_ones((B, T), dtype=torch.bool) if mask_BT is None else mask_BT

        # the r-th step that is not padding, and the sequence that it is of; what is carried comes first, of sequence 0
        live_BS = nnf.pad(mask_BT, (past, 0), value=True)
        sequence_BS = nnf.pad(reset_BT.long().cumsum(1), (past, 0))
        rank_BS = live_BS.long().cumsum(1) - 1
        steps_S = torch.arange(past + T, device=x_BTD.device)
        places_BS = torch.where(live_BS, rank_BS, past + T - (~live_BS).long().cumsum(1))  # padding last
        step_of_BR = torch.zeros_like(rank_BS).scatter(1, places_BS, steps_S.expand(B, -1))

        def earlier(back: int, rank_Bn: Tensor, sequence_Bn: Tensor) -> Tensor:
            """The inputs ``back`` live steps before those of the given ranks, zeros where they are of another."""
            step_Bn = step_of_BR.gather(1, (rank_Bn - back).clamp(min=0))
            same_Bn = (sequence_BS.gather(1, step_Bn) == sequence_Bn) & (rank_Bn >= back)
            rows_BnD = inputs_BSD.gather(1, step_Bn[..., None].expand(-1, -1, self.dim))
            return rows_BnD.masked_fill(~same_Bn[..., None], 0)

        rank_BT, sequence_BT = rank_BS[:, past:], sequence_BS[:, past:]
        weight_wD = self.weight.to(x_BTD.dtype)
        y_BTD = self.bias.to(x_BTD.dtype) + weight_wD[0] * x_BTD
        for back in range(1, self.width):
            y_BTD = y_BTD + weight_wD[back] * earlier(back, rank_BT, sequence_BT)
        last_B1, now_B1 = rank_BS[:, -1:], sequence_BS[:, -1:]
        kept = [earlier(back, last_B1, now_B1) for back in range(past - 1, -1, -1)]
        return y_BTD, {"inputs": torch.cat(kept, 1) if kept else inputs_BSD[:, :0]}

    def init_state(self, batch: int, *, device: torch.device, dtype: torch.dtype) -> State:
        return {"inputs": torch.zeros((batch, self.width - 1, self.dim), device=device, dtype=dtype)}

    def state_size(self, T: int) -> int:
        return (self.width - 1) * self.dim
