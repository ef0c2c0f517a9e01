"""Running a layer whose chunks are part of the model: a step at a time, or a chunk at a time, with equal results."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from clplat.backbones.base import State, in_reference_form, select_rows
from clplat.backbones.ops.recurrence import unroll
from clplat.backbones.ops.rows import rows

# slots (B, S, X), which of them hold a step (B, S), their numbers in the chunk (B or 1, S), state -> outputs, state
Advance = Callable[[Tensor, Tensor, Tensor, State], tuple[Tensor, State]]


def by_chunk(
    advance: Advance,
    close: Callable[[State], State],
    x_BTX: Tensor,
    state: State,
    first: State,
    chunk: int,
    reset_BT: Tensor | None = None,
    mask_BT: Tensor | None = None,
) -> tuple[Tensor, State]:
    """Run over T steps in chunks of C, counted from the start of each sequence.

    Args:
        advance: what some steps of one chunk make of a state: in the reference form of one, else of all C slots of a
            chunk, of which empty ones change nothing.
        close: what becomes of the state at the end of a chunk.
        x_BTX: inputs, (B, T, ...).
        state: with ``position`` (B,), the number of steps in the chunk so far.
        first: the initial state.
        chunk: C.
        reset_BT: True where a new sequence begins.
        mask_BT: False for padding; the outputs there mean nothing.

    Returns:
        Outputs (B, T, ...) and the last state.
    """
    B, T = x_BTX.shape[:2]

    def moved(state: State, part: State, full_B: Tensor, position_B: Tensor) -> State:
        part = select_rows(full_B, close(part), part)
        return {**part, "position": position_B}

    if in_reference_form():
        live_B1 = torch.ones((B, 1), dtype=torch.bool, device=x_BTX.device)

        def step(x_BX: Tensor, state: State) -> tuple[Tensor, State]:
            y, part = advance(x_BX[:, None], live_B1, state["position"][:, None], state)
            position_B = state["position"] + 1
            return y[:, 0], moved(state, part, position_B == chunk, position_B % chunk)

        return unroll(step, x_BTX, state, first, reset_BT, mask_BT)

    layout = rows(T, chunk, state["position"], reset_BT, mask_BT)
    x_BNCX, slots_1C = layout.lay(x_BTX), torch.arange(chunk, device=x_BTX.device)[None]
    outputs = []
    for x_BCX, live_BC, fresh_B in zip(*(part.unbind(1) for part in (x_BNCX, layout.live, layout.fresh)), strict=True):
        if reset_BT is not None:
            state = select_rows(fresh_B, first, state)
        y, part = advance(x_BCX, live_BC, slots_1C, state)
        state = moved(state, part, live_BC[:, -1], layout.position)
        outputs.append(y)
    if reset_BT is not None:
        state = select_rows(layout.ended, first, state)
    return layout.collect(torch.stack(outputs, 1)), {**state, "position": layout.position}
