"""Known algorithms for linear regression in context, to hold a trained network's predictions against.

Each takes points ``x_NPD`` and values ``y_NP`` and gives its prediction of each value from the pairs before it alone,
(N, P), in double precision.
"""

from __future__ import annotations

import torch
from torch import Tensor


def ridge(x_NPD: Tensor, y_NP: Tensor, penalty: float) -> Tensor:
    """``w = (X^T X + penalty I)^-1 X^T y``: the Bayes estimator for w ~ N(0, s^2 I) and noise of deviation sigma if the
    penalty is sigma^2 / s^2. With penalty 0: ordinary least squares, of least norm while pairs are few."""
    x, y = x_NPD.double(), y_NP.double()
    gram_NPDD, cross_NPD = _sums_before(x, y)
    if penalty:
        eye = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
        w_NPD = torch.linalg.solve(gram_NPDD + penalty * eye, cross_NPD)
    else:
        w_NPD = (torch.linalg.pinv(gram_NPDD, hermitian=True, rtol=1e-10) @ cross_NPD[..., None])[..., 0]
    return (w_NPD * x).sum(-1)


def least_squares(x_NPD: Tensor, y_NP: Tensor) -> Tensor:
    """:func:`ridge` without a penalty."""
    return ridge(x_NPD, y_NP, 0.0)


def gradient_descent(x_NPD: Tensor, y_NP: Tensor, rate: float, steps: int = 1) -> Tensor:
    """``steps`` steps of batch gradient descent on half the mean squared error of the pairs so far, from w = 0."""
    x, y = x_NPD.double(), y_NP.double()
    gram_NPDD, cross_NPD = _sums_before(x, y)
    many_P1 = torch.arange(x.shape[1], dtype=x.dtype, device=x.device).clamp(min=1)[:, None]
    w_NPD = torch.zeros_like(x)
    for _ in range(steps):
        w_NPD = w_NPD - rate * ((gram_NPDD @ w_NPD[..., None])[..., 0] - cross_NPD) / many_P1
    return (w_NPD * x).sum(-1)


def online_gradient_descent(x_NPD: Tensor, y_NP: Tensor, rate: float) -> Tensor:
    """One pass of stochastic gradient descent over the pairs, each once in order, on half the squared error."""
    x, y = x_NPD.double(), y_NP.double()
    w_ND = torch.zeros_like(x[:, 0])
    found = []
    for t in range(x.shape[1]):
        found.append((w_ND * x[:, t]).sum(-1))
        w_ND = w_ND + rate * (y[:, t] - found[-1])[:, None] * x[:, t]
    return torch.stack(found, 1)


def nearest_neighbours(x_NPD: Tensor, y_NP: Tensor, k: int = 3) -> Tensor:
    """The mean of the values of the k nearest points before (of all while they are fewer, 0 at first)."""
    x, y = x_NPD.double(), y_NP.double()
    P = x.shape[1]
    later_PP = torch.ones(P, P, dtype=torch.bool, device=x.device).triu()
    distance_NPP = torch.cdist(x, x).masked_fill(later_PP, torch.inf)
    near_NPK, which_NPK = distance_NPP.topk(min(k, P), largest=False)
    known_NPK = near_NPK.isfinite()
    values_NPK = y[:, None].expand(-1, P, -1).gather(2, which_NPK) * known_NPK
    return values_NPK.sum(-1) / known_NPK.sum(-1).clamp(min=1)


def spd(a_NP: Tensor, b_NP: Tensor) -> Tensor:
    """Squared prediction difference (P,) of two algorithms after each number of pairs, the mean over sequences
    (Akyürek et al. 2023, What learning algorithm is in-context learning?, eq. 9)."""
    return (a_NP.double() - b_NP.double()).square().mean(0)


def implied_weights(predict_NQ: Tensor, query_NQD: Tensor) -> Tensor:
    """The weights (N, D) that predictions at many query points come from, by least squares: the w_A of the implicit
    linear weight difference ``E |w_A - w_B|^2`` (the same, eq. 10)."""
    solution: Tensor = torch.linalg.lstsq(query_NQD.double(), predict_NQ.double()[..., None]).solution
    return solution[..., 0]


def _sums_before(x_NPD: Tensor, y_NP: Tensor) -> tuple[Tensor, Tensor]:
    """X^T X (N, P, D, D) and X^T y (N, P, D) of the pairs before each."""
    outer = x_NPD[..., :, None] * x_NPD[..., None, :]
    cross = x_NPD * y_NP[..., None]
    return outer.cumsum(1) - outer, cross.cumsum(1) - cross
