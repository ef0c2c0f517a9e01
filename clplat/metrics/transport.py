"""How far two sets of points are from each other as distributions, by entropic optimal transport."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def sinkhorn_divergence(x_ND: Tensor, y_MD: Tensor, *, blur: float = 0.2, scaling: float = 0.5) -> Tensor:
    """The Sinkhorn divergence of two sets of points of equal weights, a number >= 0 that is 0 for equal sets (Feydy et
    al. 2019, Interpolating between optimal transport and MMD using Sinkhorn divergences, AISTATS, eq. 3)::

        S(x, y) = OT(x, y) - OT(x, x) / 2 - OT(y, y) / 2
        OT(x, y) = min_P sum_nm P_nm C_nm + eps KL(P | 1/(N M))      C_nm = |x_n - y_m|^2 / 2, eps = blur^2

    with P over plans whose rows sum to 1 / N and whose columns to 1 / M. For a small blur S is half the squared
    Wasserstein distance. The potentials are found in logarithms, eps falling to its value by the factor scaling^2 from
    the largest cost on, where ``FINAL`` steps follow. Differentiable in both sets: at the optimum the gradient goes
    through the costs alone, so the potentials are held fixed.

    Args:
        blur: the length below which points are not told apart.
        scaling: between 0 and 1; the larger, the more steps and the more exact.
    """
    with torch.no_grad():
        costs = [_cost(a, b) for a, b in ((x_ND, y_MD), (x_ND, x_ND), (y_MD, y_MD))]
        potentials = [_potentials(cost, blur, scaling) for cost in costs]
    eps = blur**2
    # One more step with gradient, in which each potential moves with its own points alone: each half of a plan once.
    (f_N, g_M), (f_own_N, _), (g_own_M, _) = potentials
    x_N = _soft_min(_cost(x_ND, y_MD.detach()), g_M, eps) - _soft_min(_cost(x_ND, x_ND.detach()), f_own_N, eps)
    y_M = _soft_min(_cost(y_MD, x_ND.detach()), f_N, eps) - _soft_min(_cost(y_MD, y_MD.detach()), g_own_M, eps)
    return x_N.mean() + y_M.mean()


FINAL = 10  # steps at the last eps


def _cost(a_ND: Tensor, b_MD: Tensor) -> Tensor:
    products_NM = a_ND @ b_MD.T
    return (a_ND.square().sum(1)[:, None] + b_MD.square().sum(1) - 2 * products_NM) / 2


def _soft_min(cost_NM: Tensor, g_M: Tensor, eps: float) -> Tensor:
    """``-eps log mean_m exp((g_m - C_nm) / eps)``, (N,)."""
    return -eps * (((g_M - cost_NM) / eps).logsumexp(1) - math.log(len(g_M)))


def _potentials(cost_NM: Tensor, blur: float, scaling: float) -> tuple[Tensor, Tensor]:
    """The potentials of rows and columns; both move at once by half, which does not swing in symmetric problems."""
    start = max(float(cost_NM.max()), blur**2)
    falls = math.ceil(math.log(start / blur**2) / (-2 * math.log(scaling)))
    f_N, g_M = cost_NM.new_zeros(cost_NM.shape[0]), cost_NM.new_zeros(cost_NM.shape[1])
    for step in range(falls + FINAL):
        eps = max(blur**2, start * scaling ** (2 * step))
        f_new_N, g_new_M = _soft_min(cost_NM, g_M, eps), _soft_min(cost_NM.T, f_N, eps)
        f_N, g_M = (f_N + f_new_N) / 2, (g_M + g_new_M) / 2
    return f_N, g_M
