"""How far apart networks are that do the same: in their dynamics, and in their weights.

Distances that do not see what does not matter: the order of units, and the axes in which a trajectory is described.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor

Array = NDArray[np.float64]


def permuted(blocks_GNN: Array, order: NDArray[np.int64]) -> Array:
    """``P' W P`` of each block, for units in another order."""
    found: Array = blocks_GNN[:, order][:, :, order]
    return found


def weight_distance(a_GNN: Array, b_GNN: Array, *, restarts: int = 5) -> float:
    """``min over permutations P of ||A - P' B P||_F`` over all blocks (the gates of a cell) with one P, as low as it is
    found; the plain distance is an upper bound.

    The assignment is searched by Frank-Wolfe steps over doubly stochastic matrices with exact line search (Vogelstein
    et al. 2015, FAQ), from their centre, from the assignment of units of similar rows, columns and loops, and from
    random ones; each end is improved by exchanging two units until no exchange helps. Restarts are always the same.
    """
    source, n = np.random.default_rng(0), a_GNN.shape[-1]
    starts = [np.full((n, n), 1.0 / n), _matching(-_apart(_signature(a_GNN), _signature(b_GNN))), np.eye(n)]
    starts += [0.5 / n + 0.5 * np.eye(n)[source.permutation(n)] for _ in range(restarts)]
    best = np.inf
    for start in starts:
        order = _exchanged(a_GNN, b_GNN, _searched(a_GNN, b_GNN, start))
        best = min(best, float(np.linalg.norm(a_GNN - permuted(b_GNN, order))))
    return best


def _signature(W_GNN: Array) -> Array:
    """What each unit has whatever the others' order: its loops, and its sorted rows and columns, (N, ...)."""
    rows, columns = np.sort(W_GNN, 2), np.sort(W_GNN, 1).transpose(0, 2, 1)
    loops = np.diagonal(W_GNN, 0, 1, 2)[..., None]
    return np.concatenate([*rows, *columns, *loops], 1)


def _apart(a_NF: Array, b_NF: Array) -> Array:
    found: Array = np.square(a_NF[:, None] - b_NF[None]).sum(-1)
    return found


def _matching(gain_NN: Array) -> Array:
    """The permutation matrix with the largest sum."""
    rows, columns = linear_sum_assignment(-gain_NN)
    found = np.zeros_like(gain_NN)
    found[rows, columns] = 1.0
    return found


def _searched(a: Array, b: Array, P: Array, steps: int = 50) -> NDArray[np.int64]:
    """Unit ``order[i]`` of b stands for unit i of a."""
    for _ in range(steps):
        # f(P) = sum_g tr(A_g' P B_g P'), to be made as large as possible
        gradient = (a @ P @ b.transpose(0, 2, 1) + a.transpose(0, 2, 1) @ P @ b).sum(0)
        D = _matching(gradient) - P
        quadratic = float((a.transpose(0, 2, 1) @ D @ b * D).sum())
        linear = float((gradient * D).sum())
        if linear < 1e-9:
            break
        step = 1.0 if quadratic >= 0 else min(1.0, -linear / (2 * quadratic))
        P = P + step * D
    return _matching(P).argmax(1)


def _exchanged(a: Array, b: Array, order: NDArray[np.int64]) -> NDArray[np.int64]:
    """The order after exchanges of two units, as long as one makes the distance smaller."""
    n = len(order)
    best = np.square(a - permuted(b, order)).sum()
    better = n <= 64  # beyond that it takes too long
    while better:
        better = False
        for i in range(n):
            for j in range(i + 1, n):
                other = order.copy()
                other[[i, j]] = other[[j, i]]
                value = np.square(a - permuted(b, other)).sum()
                if value < best - 1e-12:
                    best, order, better = value, other, True
    return order


def delay_embedded(x_BTD: Array, delays: int) -> Array:
    """Each step beside the ``delays - 1`` before it, (B, T - delays + 1, delays D)."""
    T = x_BTD.shape[1]
    found: Array = np.concatenate([x_BTD[:, k : T - delays + 1 + k] for k in range(delays)], -1)
    return found


def dynamics(x_BTD: Array, *, delays: int = 3, rank: int = 10) -> Array:
    """The linear map (rank, rank) that best takes a trajectory a step on, in its leading delay coordinates (dynamic
    mode decomposition of a delay embedding): ``z_{t+1} ~ A z_t`` by least squares, with z the projections of the
    centred embedding on its first principal axes, at unit variance, each turned so that its third moment is positive.
    Axes beyond the data's own rank give zeros."""
    h_BTE = delay_embedded(x_BTD, delays)
    flat = h_BTE.reshape(-1, h_BTE.shape[-1])
    centre = flat.mean(0)
    _, s, axes = np.linalg.svd(flat - centre, full_matrices=False)
    kept = min(rank, int((s > 1e-6 * s[0]).sum()))
    z = (h_BTE - centre) @ axes[:kept].T / (s[:kept] / np.sqrt(len(flat)))
    z *= np.where(np.power(z, 3).mean((0, 1)) < 0, -1.0, 1.0)  # an axis has no direction of its own
    before, after = z[:, :-1].reshape(-1, kept), z[:, 1:].reshape(-1, kept)
    A = np.zeros((rank, rank))
    A[:kept, :kept] = np.linalg.lstsq(before, after, rcond=None)[0].T
    return A


def dynamical_distance(a_RR: Array, b_RR: Array, *, steps: int = 200, restarts: int = 6) -> float:
    """``min over orthogonal C of ||A - C B C'||_F`` (dynamical similarity analysis, Ostrow et al. 2023, arXiv
    2306.10168), as low as it is found.

    By Adam over skew matrices, ``C = exp(S - S') C_0``, all starts at once: the identity, a reflection, the axes of the
    symmetric parts, and random orthogonal matrices. Starts are always the same.
    """
    A, B = torch.from_numpy(a_RR), torch.from_numpy(b_RR)
    n = len(A)
    source = torch.Generator().manual_seed(0)
    u, v = (torch.linalg.eigh(M + M.T)[1] for M in (A, B))
    mirror = torch.eye(n, dtype=A.dtype)
    mirror[0, 0] = -1
    drawn = torch.linalg.qr(torch.randn(restarts, n, n, generator=source, dtype=A.dtype))[0]
    first = torch.cat([torch.stack([torch.eye(n, dtype=A.dtype), mirror, u @ v.T, u @ mirror @ v.T]), drawn])
    with torch.enable_grad():
        skew = torch.zeros_like(first, requires_grad=True)
        optimizer = torch.optim.Adam([skew], lr=0.05)
        best = float("inf")
        for step in range(steps + 1):
            C = torch.matrix_exp(skew - skew.mT) @ first
            squared: Tensor = (A - C @ B @ C.mT).square().sum((-2, -1))
            best = min(best, float(squared.detach().min()) ** 0.5)
            if step < steps:
                optimizer.zero_grad()
                squared.sum().backward()
                optimizer.step()
    return best


def mean_of_pairs(distances: Sequence[Sequence[float]]) -> float:
    """The mean over pairs of a symmetric table."""
    pairs = [distances[i][j] for i in range(len(distances)) for j in range(i + 1, len(distances))]
    return sum(pairs) / len(pairs) if pairs else float("nan")
