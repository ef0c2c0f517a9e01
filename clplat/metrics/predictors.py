"""Predictors whose probabilities are known exactly, to hold a trained network's against.

Each takes symbols ``x_NT`` (0, 1, ..., A - 1) and gives log-probabilities in nats, (N, T, A) in double precision: entry
t is the distribution of symbol t after all symbols before it.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as nnf
from torch import Tensor


def dirichlet(x_NT: Tensor, alpha_A: Tensor) -> Tensor:
    """The Bayes mixture over categorical sources with a Dirichlet prior: ``(n_a + alpha_a) / (t + sum alpha)``."""
    seen_NTA = _seen_before(x_NT, len(alpha_A))
    alpha_A = alpha_A.double()
    return (seen_NTA + alpha_A).log() - (seen_NTA.sum(-1, keepdim=True) + alpha_A.sum()).log()


def kt(x_NT: Tensor, symbols: int = 2) -> Tensor:
    """Krichevsky and Trofimov 1981: :func:`dirichlet` with one half for each symbol; the optimum where nothing
    changes."""
    return dirichlet(x_NT, torch.full((symbols,), 0.5))


def gaussian_mean(x_NT: Tensor, mean: float, spread: float, noise: float) -> Tensor:
    """The posterior mean (N, T) of a level with prior N(mean, spread^2) before each of its observations, whose noise is
    N(0, noise^2): the best prediction of the next one in squared error."""
    x_NT = x_NT.double()
    seen_T = torch.arange(x_NT.shape[1], dtype=torch.float64, device=x_NT.device)
    sum_NT = x_NT.cumsum(1) - x_NT
    return (mean / spread**2 + sum_NT / noise**2) / (1 / spread**2 + seen_T / noise**2)


def ptw(x_NT: Tensor, symbols: int = 2, depth: int | None = None) -> Tensor:
    """Partition tree weighting over KT (Veness, White, Bowling and György 2013, Partition tree weighting, DCC).

    ``P_d(x_1:n) = 1/2 KT(x_1:n) + 1/2 P_{d-1}(x_1:k) P_{d-1}(x_{k+1}:n)`` with ``k = 2^(d-1)`` and ``P_0 = KT``: the
    mixture over all binary temporal partitions, in O(depth) a step.

    Args:
        depth: d; the smallest that covers the sequence if None.
    """
    N, T = x_NT.shape
    d = max(0, T - 1).bit_length() if depth is None else depth
    if 2**d < T:
        raise ValueError(f"a tree of depth {d} covers {2**d} symbols, not {T}")
    empty = x_NT.new_zeros((N, symbols), dtype=torch.float64)
    counts = [empty.clone() for _ in range(d + 1)]  # of the current block of each size
    whole = [empty[:, 0].clone() for _ in range(d + 1)]  # log KT of the current block
    left = [empty[:, 0].clone() for _ in range(d + 1)]  # log weight of its first half, 0 while that goes on
    before = empty[:, 0].clone()
    found = []
    for t in range(T):
        options: list[Tensor] = []  # log weights of each block if symbol t were any of the symbols, (N, A)
        for level in range(d + 1):
            kt_NA = whole[level][:, None] + _log_kt(counts[level])
            if level:
                kt_NA = torch.logaddexp(kt_NA, left[level][:, None] + options[-1]) - math.log(2)
            options.append(kt_NA)
        found.append(options[-1] - before[:, None])
        symbol_N1 = x_NT[:, t, None]
        before = options[-1].gather(1, symbol_N1)[:, 0]
        for level in range(d + 1):
            whole[level] = whole[level] + _log_kt(counts[level]).gather(1, symbol_N1)[:, 0]
            counts[level] = counts[level].scatter_add(1, symbol_N1, torch.ones_like(counts[level]))
            ends = (t + 1) % 2**level == 0
            if ends and level < d and (t + 1) // 2**level % 2:  # it was the first half of the block above
                left[level + 1] = options[level].gather(1, symbol_N1)[:, 0]
            if ends:
                counts[level], whole[level], left[level] = empty.clone(), empty[:, 0].clone(), empty[:, 0].clone()
    return torch.stack(found, 1)


def lin(x_NT: Tensor, symbols: int = 2) -> Tensor:
    """The linear "live and die" predictor (Willems 1996, Coding for a binary independent piecewise-identically-
    distributed source, IEEE Transactions on Information Theory 42), over KT.

    A mixture over all partitions of time: after m symbols of a segment it ends with probability ``(1/2) / m``, else it
    goes on. O(T) a step.
    """
    N, T = x_NT.shape
    log_w_NS = x_NT.new_zeros((N, 1), dtype=torch.float64)  # weight of "the segment began at step s"
    counts_NSA = x_NT.new_zeros((N, 1, symbols), dtype=torch.float64)
    found = []
    for t in range(T):
        if t:
            length_S = torch.arange(t, 0, -1, dtype=torch.float64, device=x_NT.device)
            dies_N = torch.logsumexp(log_w_NS + (0.5 / length_S).log(), 1)
            log_w_NS = torch.cat([log_w_NS + ((length_S - 0.5) / length_S).log(), dies_N[:, None]], 1)
            counts_NSA = nnf.pad(counts_NSA, (0, 0, 0, 1))
        joint_NSA = log_w_NS[..., None] + _log_kt(counts_NSA)
        found.append(torch.logsumexp(joint_NSA, 1) - torch.logsumexp(log_w_NS, 1)[:, None])
        symbol_NS1 = x_NT[:, t, None, None].expand(N, t + 1, 1)
        log_w_NS = joint_NSA.gather(2, symbol_NS1)[..., 0]
        counts_NSA = counts_NSA.scatter_add(2, symbol_NS1, torch.ones_like(symbol_NS1, dtype=torch.float64))
    return torch.stack(found, 1)


def hidden_markov(x_NT: Tensor, start_M: Tensor, transition_MM: Tensor, emission_MA: Tensor) -> Tensor:
    """The Bayes filter of a hidden Markov model that is known (Rabiner 1989, eq. 19-20, the forward recursion)."""
    belief_NM = start_M.double().expand(len(x_NT), -1)
    found = []
    for t in range(x_NT.shape[1]):
        found.append((belief_NM @ emission_MA.double()).log())
        belief_NM = belief_NM * emission_MA.double().T[x_NT[:, t]]
        belief_NM = belief_NM / belief_NM.sum(1, keepdim=True) @ transition_MM.double()
    return torch.stack(found, 1)


def _seen_before(x_NT: Tensor, symbols: int) -> Tensor:
    """How often each symbol occurred before each step, (N, T, A)."""
    one_NTA = nnf.one_hot(x_NT, symbols).double()
    return one_NTA.cumsum(1) - one_NTA


def _log_kt(counts: Tensor) -> Tensor:
    """KT's log-probabilities of the next symbol after ``counts`` (..., A)."""
    return (counts + 0.5).log() - (counts.sum(-1, keepdim=True) + 0.5 * counts.shape[-1]).log()
