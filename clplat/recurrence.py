"""In which order tasks come back: laws that an environment's stream follows (:mod:`clplat.wrapping`), and rehearsal."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from clplat.errors import UsageError
from clplat.randomness import generator

Falling = Literal["power", "exponential", "uniform"]
Law = Literal["power", "exponential", "uniform", "zipf", "cyclic", "none"]


def weight(law: Falling, lag: float, *, exponent: float = 1.0, offset: float = 0.0, decay: float = 1.0) -> float:
    """How much something counts that was last met ``lag`` ago: ``(offset + lag)^-exponent`` (power),
    ``exp(-lag / decay)`` (exponential) or 1 (uniform)."""
    if law == "power":
        return float((offset + lag) ** -exponent)
    return math.exp(-lag / decay) if law == "exponential" else 1.0


def visits(
    tasks: int,
    n: int,
    law: Law,
    seed: int,
    *,
    exponent: float = 1.0,
    offset: float = 0.0,
    decay: float = 1.0,
    introduce: Literal["spread", "first"] = "spread",
) -> tuple[int, ...]:
    """Which task an environment shows at each of n visits.

    Tasks are introduced in order; at all other visits one of those seen so far comes back. Its lag is the number of
    visits since it was last shown, 1 for the one just shown. Under power, exponential and uniform the chance of a task
    is in proportion to the :func:`weight` of its lag; under zipf to ``rank^-exponent``, with ranks 1, 2, ... in an
    order drawn by the seed; cyclic takes the task that was not shown for longest, none the newest. What was shown last
    may come again at once, and an exponential of few visits does so for ever: the others' lags grow out of its reach.

    Args:
        introduce: spread: task j is first shown at visit ``floor(j n / tasks)``; first: at visit j.

    Raises:
        UsageError: there are fewer visits than tasks.
    """
    if n < tasks:
        raise UsageError(f"scenario.visits={n}: each of the {tasks} experiences needs one visit at least")
    introduced = {(j if introduce == "first" else j * n // tasks): j for j in range(tasks)}
    rates: Tensor  # by lag - 1, or by task
    if law == "zipf" or law == "cyclic" or law == "none":
        ranks = 1 + torch.randperm(tasks, generator=generator(seed, "recurrence/ranks"))
        rates = ranks.double() ** -exponent
    else:
        options = {"exponent": exponent, "offset": offset, "decay": decay}
        rates = torch.tensor([weight(law, lag, **options) for lag in range(1, n + 1)], dtype=torch.float64)
    chance = torch.rand(n, generator=generator(seed, "recurrence"), dtype=torch.float64)
    last = torch.zeros(tasks, dtype=torch.long)
    order: list[int] = []
    seen = 0
    for i in range(n):
        if i in introduced:
            task, seen = introduced[i], seen + 1
        elif law == "cyclic":
            task = int(last[:seen].argmin())
        elif law == "none":
            task = seen - 1
        else:
            sums = (rates[:seen] if law == "zipf" else rates[i - last[:seen] - 1]).cumsum(0)
            task = int(torch.searchsorted(sums, chance[i] * sums[-1], right=True).clamp(max=seen - 1))
        last[task] = i
        order.append(task)
    return tuple(order)
