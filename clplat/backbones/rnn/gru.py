"""The gated recurrent unit."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from clplat.backbones.base import Backbone, State, blank, in_reference_form, require
from clplat.backbones.ops.recurrence import unroll


class GRU(Backbone):
    """Gated recurrent unit (Cho et al. 2014, arXiv 1406.1078, eq. 5-8; gates placed as in ``torch.nn.GRU``).

    (B, T, D) -> (B, T, hidden), for each layer with weights ``ih`` (3 hidden, D) and ``hh`` (3 hidden, hidden)::

        r = sigmoid(W_ir x + b_ir + W_hr h + b_hr)
        z = sigmoid(W_iz x + b_iz + W_hz h + b_hz)
        n = tanh(W_in x + b_in + r * (W_hn h + b_hn))
        h' = (1 - z) * n + z * h

    The state is ``{"hidden": (B, layers, hidden)}``. Plain batches take torch's fused form; with resets or padding,
    and in the reference form, the weights are used through their ``nn.Linear`` modules step by step.

    Args:
        hidden: width of every layer.
        layers: number of stacked layers, at least 1.
    """

    def __init__(self, input_size: int, *, hidden: int = 128, layers: int = 1) -> None:
        super().__init__()
        require(layers >= 1, f"a gru needs at least one layer, not {layers}")
        self.input_size, self.output_size = input_size, hidden
        sizes = [input_size, *[hidden] * (layers - 1)]
        self.ih = nn.ModuleList(nn.Linear(size, 3 * hidden) for size in sizes)
        self.hh = nn.ModuleList(nn.Linear(hidden, 3 * hidden) for _ in sizes)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -(hidden**-0.5), hidden**-0.5)

    def forward(
        self,
        x_BTD: Tensor,
        state: State = None,
        *,
        reset_BT: Tensor | None = None,
        mask_BT: Tensor | None = None,
    ) -> tuple[Tensor, State]:
        if state is None:
            state = self.init_state(len(x_BTD), device=x_BTD.device, dtype=x_BTD.dtype)
        plain = reset_BT is None and mask_BT is None and not in_reference_form()
        if plain and len(x_BTD):  # not every fused kernel takes an empty batch
            return self._fused(x_BTD, state["hidden"])
        return self._loop(blank(x_BTD, mask_BT), state["hidden"], reset_BT, mask_BT)

    def _fused(self, x_BTD: Tensor, hidden_BLH: Tensor) -> tuple[Tensor, State]:
        weights: list[Any] = [
            weight
            for ih, hh in zip(self.ih, self.hh, strict=True)
            for weight in (ih.weight, hh.weight, ih.bias, hh.bias)
        ]
        y_BTH, last_LBH = torch.gru(
            x_BTD,
            hidden_BLH.transpose(0, 1).contiguous(),
            weights,
            has_biases=True,
            num_layers=len(self.ih),
            dropout=0.0,
            train=True,  # nothing is dropped; cuDNN has no backward when this is False
            bidirectional=False,
            batch_first=True,
        )
        return y_BTH, {"hidden": last_LBH.transpose(0, 1)}

    def _loop(
        self, x_BTD: Tensor, hidden_BLH: Tensor, reset_BT: Tensor | None, mask_BT: Tensor | None
    ) -> tuple[Tensor, State]:
        y_BTH, last = x_BTD, []
        for layer, (ih, hh) in enumerate(zip(self.ih, self.hh, strict=True)):
            before_BH = hidden_BLH[:, layer]

            def step(gates_BG: Tensor, h_BH: Tensor, hh: nn.Module = hh) -> tuple[Tensor, Tensor]:
                h_BH = gru_step(gates_BG, hh(h_BH), h_BH)
                return h_BH, h_BH

            initial = torch.zeros_like(before_BH)
            y_BTH, after_BH = unroll(step, ih(y_BTH), before_BH, initial, reset_BT, mask_BT)
            last.append(after_BH)
        return blank(y_BTH, mask_BT), {"hidden": torch.stack(last, 1)}

    def init_state(self, batch: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None) -> State:
        weight = next(self.parameters())
        shape = (batch, len(self.hh), self.output_size)
        return {"hidden": torch.zeros(shape, device=device or weight.device, dtype=dtype or weight.dtype)}

    def state_size(self, T: int) -> int:
        return len(self.hh) * self.output_size


def gru_step(input_BG: Tensor, hidden_BG: Tensor, h_BH: Tensor) -> Tensor:
    """One step from the gates' input parts ``W_i x + b_i`` and state parts ``W_h h + b_h``, each (B, 3 hidden)."""
    reset_x, update_x, new_x = input_BG.chunk(3, -1)
    reset_h, update_h, new_h = hidden_BG.chunk(3, -1)
    update = (update_x + update_h).sigmoid()
    new = (new_x + (reset_x + reset_h).sigmoid() * new_h).tanh()
    return new + update * (h_BH - new)
