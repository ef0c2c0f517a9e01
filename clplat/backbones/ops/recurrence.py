"""The plain loop over time that step-by-step networks share."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from clplat.backbones.base import State, select_rows


def unroll(
    step: Callable[[Tensor, State], tuple[Tensor, State]],
    x_BTD: Tensor,
    state: State,
    initial: State,
    reset_BT: Tensor | None = None,
    mask_BT: Tensor | None = None,
) -> tuple[Tensor, State]:
    """``y_t, s_t = step(x_t, s_{t-1})`` for t = 1..T, with resets and padding.

    Args:
        step: maps x_t (B, D) and a state to y_t (B, D') and the next state.
        x_BTD: inputs.
        state: s_0.
        initial: what the state becomes where ``reset_BT`` is True.
        reset_BT: True where a new sequence begins.
        mask_BT: False where the state stays as it was. The outputs there mean nothing; blank them.

    Returns:
        y of shape (B, T, D') and the last state.
    """
    outputs = []
    for t, x_BD in enumerate(x_BTD.unbind(1)):  # not x[:, t], whose backward fills a (B, T, D) tensor at each step
        if reset_BT is not None:
            state = select_rows(reset_BT[:, t], initial, state)
        y_BD, after = step(x_BD, state)
        state = after if mask_BT is None else select_rows(mask_BT[:, t], after, state)
        outputs.append(y_BD)
    return torch.stack(outputs, 1), state
