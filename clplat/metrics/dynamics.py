"""How long a forecast of a dynamical system is worth anything, and how fast the system itself forgets its state."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor


def valid_prediction_time(
    predicted_NTD: Tensor, true_NTD: Tensor, deviation_D: Tensor, *, interval: float, lyapunov: float, threshold: float
) -> Tensor:
    """VPT of each forecast, (N,), in Lyapunov times: how long it runs until its normalised error first exceeds a
    threshold, ``max {t : NRMSE(s) < threshold for all s <= t} * lyapunov`` (Vlachas et al. 2020, Backpropagation
    algorithms and reservoir computing in recurrent neural networks for the forecasting of complex spatiotemporal
    dynamics, equation for VPT), where ``NRMSE(t)^2`` is the mean over the D values of ``(predicted - true)^2 /
    deviation^2``. A forecast that stays below it to its end counts with its whole length, which is then too short.

    Args:
        predicted_NTD, true_NTD: forecasts in closed loop, from the first predicted step on, and what came.
        deviation_D: standard deviation over time of each value of the system.
        interval: time between steps.
        lyapunov: largest Lyapunov exponent, in the same time.
        threshold: 0.5 in that paper.
    """
    error_NT = ((predicted_NTD - true_NTD) / deviation_D).square().mean(-1).sqrt()
    # Not "greater or equal": a forecast that is not a number is no longer valid either.
    valid_NT = (error_NT < threshold).cumprod(1)
    return valid_NT.sum(1) * interval * lyapunov


def largest_lyapunov_exponent(
    step: Callable[[Tensor], Tensor], state_ND: Tensor, *, interval: float, steps: int, source: torch.Generator
) -> float:
    """The largest Lyapunov exponent, from how fast neighbouring paths part: a small distance is taken along and
    brought back to its length after each step (Benettin et al. 1976, Kolmogorov entropy and numerical experiments). The
    mean over N pairs and the second half of the steps; the first half lets the distance turn into the direction that
    grows most.

    Args:
        step: takes states (N, D) one interval ahead; states should be in double precision.
        state_ND: states on the attractor.
        interval: time of a step.
        steps: how many.
        source: of the first distances' directions.
    """
    size = 1e-7 * max(1.0, float(state_ND.abs().max()))
    apart_ND = torch.randn(state_ND.shape, generator=source, dtype=state_ND.dtype)
    apart_ND *= size / apart_ND.norm(dim=1, keepdim=True)
    growth = 0.0
    for number in range(steps):
        moved_ND = step(state_ND + apart_ND)
        state_ND = step(state_ND)
        apart_ND = moved_ND - state_ND
        length_N1 = apart_ND.norm(dim=1, keepdim=True)
        if number >= steps // 2:
            growth += float((length_N1 / size).log().mean())
        apart_ND *= size / length_N1
    counted = steps - steps // 2
    return growth / (counted * interval) if counted else math.nan
