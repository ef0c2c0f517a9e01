"""What the recurrent networks share: stacked layers, torch's fused kernels, and the loop for resets and padding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from clplat.backbones.base import Backbone, State, blank, in_reference_form, map_state, require
from clplat.backbones.ops.recurrence import unroll
from clplat.backbones.rnn.cells import Cell, States
from clplat.backbones.units import Units


class Recurrent(Backbone):
    """Stacked recurrent layers, each reading the ``hidden`` state of the one below: (B, T, D) -> (B, T, hidden).

    Each layer has ``ih``, a linear map of the input to its gates, ``hh``, one of its own hidden state, and a cell that
    makes the next states of the two. The state is a dict of (B, layers, hidden) tensors. Plain batches take torch's
    fused form if there is one; all others, and the reference form, use the weights through their modules step by step.

    Args:
        make_cell: makes the cell of a layer of the width that it is given.
        make_recurrence: makes ``hh`` from the numbers of its inputs and outputs; a dense map by default.
        kernel: torch's fused form of the whole stack.
        hidden: width of every layer.
        layers: number of stacked layers, at least 1.
    """

    def __init__(
        self,
        input_size: int,
        make_cell: Callable[[int], Cell],
        make_recurrence: Callable[[int, int], nn.Module] = nn.Linear,
        kernel: Callable[..., tuple[Tensor, ...]] | None = None,
        *,
        hidden: int = 128,
        layers: int = 1,
    ) -> None:
        super().__init__()
        require(layers >= 1, f"a recurrent network needs at least one layer, not {layers}")
        require(hidden >= 1, f"hidden must be at least 1, not {hidden}")
        self.input_size, self.output_size, self.kernel = input_size, hidden, kernel
        sizes = [input_size, *[hidden] * (layers - 1)]
        cells = [make_cell(hidden) for _ in sizes]
        self.parts, gates = cells[0].parts, cells[0].gates * hidden
        self.cells = nn.ModuleList(cells)
        self.ih = nn.ModuleList(nn.Linear(size, gates) for size in sizes)
        self.hh = nn.ModuleList(make_recurrence(hidden, gates) for _ in sizes)
        for parameter in [*self.ih.parameters(), *self.hh.parameters()]:
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
        if self.kernel is not None and plain and len(x_BTD):  # not every fused kernel takes an empty batch
            return self._fused(self.kernel, x_BTD, state)
        return self._loop(blank(x_BTD, mask_BT), state, reset_BT, mask_BT)

    def _fused(self, kernel: Callable[..., tuple[Tensor, ...]], x_BTD: Tensor, state: State) -> tuple[Tensor, State]:
        weights: list[Any] = [
            weight
            for ih, hh in zip(self.ih, self.hh, strict=True)
            for weight in (ih.weight, hh.weight, ih.bias, hh.bias)
        ]
        before = tuple(state[name].transpose(0, 1).contiguous() for name in self.parts)  # torch has layers first
        y_BTH, *after = kernel(
            x_BTD,
            before if len(before) > 1 else before[0],
            weights,
            has_biases=True,
            num_layers=len(self.ih),
            dropout=0.0,
            train=True,  # nothing is dropped; cuDNN has no backward when this is False
            bidirectional=False,
            batch_first=True,
        )
        return y_BTH, {name: part.transpose(0, 1) for name, part in zip(self.parts, after, strict=True)}

    def _loop(
        self, x_BTD: Tensor, state: State, reset_BT: Tensor | None, mask_BT: Tensor | None
    ) -> tuple[Tensor, State]:
        y_BTH, last = x_BTD, []
        for layer, (ih, hh, cell) in enumerate(zip(self.ih, self.hh, self.cells, strict=True)):
            before = {name: state[name][:, layer] for name in self.parts}

            def step(
                input_BG: Tensor, own: States, hh: nn.Module = hh, cell: nn.Module = cell
            ) -> tuple[Tensor, States]:
                own = cell(input_BG, hh(own["hidden"]), own)
                return own["hidden"], own

            initial = map_state(torch.zeros_like, before)
            y_BTH, after = unroll(step, ih(y_BTH), before, initial, reset_BT, mask_BT)
            last.append(after)
        return blank(y_BTH, mask_BT), map_state(lambda *layers: torch.stack(layers, 1), *last)

    def init_state(self, batch: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None) -> State:
        weight = next(self.ih.parameters())
        shape = (batch, len(self.hh), self.output_size)
        device, dtype = device or weight.device, dtype or weight.dtype
        return {name: torch.zeros(shape, device=device, dtype=dtype) for name in self.parts}

    def state_size(self, T: int) -> int:
        return len(self.parts) * len(self.hh) * self.output_size

    def units(self) -> list[Units]:
        if any(True for _ in self.cells.parameters()) or not all(type(hh) is nn.Linear for hh in self.hh):
            return super().units()  # more than a unit's rows of the linear maps makes it
        found = []
        for layer in range(len(self.hh)):
            above = [f"ih.{layer + 1}.weight"] if layer + 1 < len(self.hh) else []
            makes = tuple(f"{part}.{layer}.{kind}" for part in ("ih", "hh") for kind in ("weight", "bias"))
            found.append(Units(self.output_size, makes, (f"hh.{layer}.weight", *above)))
        return found
