"""How a network mixes steps, read from its Jacobian: how many value maps its token interactions span, and how they
fade with distance."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def jacobian(function: Callable[[Tensor], Tensor], x_TD: Tensor) -> Tensor:
    """``J_ij = dy_i / dx_j`` of a function (T, D) -> (T, E), as (T, T, E, D)."""
    with torch.enable_grad():
        found = torch.autograd.functional.jacobian(function, x_TD)
    assert isinstance(found, Tensor)
    return found.permute(0, 2, 1, 3)


def operators(J_TTED: Tensor) -> Tensor:
    """The blocks with j <= i, each as one row, (T (T + 1) / 2, E D)."""
    i, j = torch.tril_indices(*J_TTED.shape[:2], device=J_TTED.device)
    return J_TTED[i, j].flatten(1)


def rank(rows_NF: Tensor, tolerance: float = 1e-6) -> int:
    """Singular values above ``tolerance`` of the largest; 0 where all are zero."""
    values = torch.linalg.svdvals(rows_NF.double())
    return int((values > tolerance * values[0]).sum())


def fading(J_TTED: Tensor) -> Tensor:
    """The mean Frobenius norm of the blocks at each distance i - j, (T,)."""
    norm_TT = torch.linalg.matrix_norm(J_TTED)
    return torch.stack([norm_TT.diagonal(-d).mean() for d in range(len(norm_TT))])


def slope(norm_T: Tensor) -> float:
    """Change of ``log |J|`` in a step of distance, by least squares over the distances from 1 on with a norm that is
    not zero; NaN where there are fewer than two."""
    distance = torch.arange(1, len(norm_T), dtype=torch.float64)
    log, known = norm_T[1:].double().cpu().log(), norm_T[1:].cpu() > 0
    if int(known.sum()) < 2:
        return float("nan")
    d, value = distance[known] - distance[known].mean(), log[known]
    return float((d * value).sum() / d.square().sum())
