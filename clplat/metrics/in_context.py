"""What is asked of a network that learns from its context: regret to an exact predictor, and results by step, by
distance to a change, and by legality."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as nnf
from torch import Tensor

from clplat.metrics.measures import IGNORED


def regret(log_q_NTA: Tensor, log_p_NTA: Tensor, y_NT: Tensor) -> Tensor:
    """Bits (N, T) that prediction q costs more than p on the symbols that came: ``log2 p(y_t) - log2 q(y_t)``; NaN
    where nothing is asked. Its cumulative sum is the regret of a sequence.

    Args:
        log_q_NTA, log_p_NTA: log-probabilities in nats; logits will not do.
    """
    asked_NT = y_NT != IGNORED
    index_NT1 = y_NT.clamp(min=0).unsqueeze(-1)
    extra_NT = log_p_NTA.double().gather(-1, index_NT1) - log_q_NTA.double().gather(-1, index_NT1)
    return torch.where(asked_NT, extra_NT.squeeze(-1) / math.log(2), torch.nan)


def divergence(log_q_NTA: Tensor, log_p_NTA: Tensor) -> Tensor:
    """Kullback-Leibler divergence (N, T) in nats of prediction q from the optimum p, for the whole distribution."""
    log_p_NTA = log_p_NTA.double()
    return (log_p_NTA.exp() * (log_p_NTA - log_q_NTA.double())).nan_to_num(nan=0.0).sum(-1)


def by_step(values_NT: Tensor) -> Tensor:
    """The mean over samples at each step, (T,), without NaN entries."""
    return values_NT.nanmean(0)


def since_change(values_NT: Tensor, change_NT: Tensor) -> Tensor:
    """The mean at each distance from the last change, (T,): entry 0 is the step of a change itself. NaN entries, steps
    before any change, and distances that never occur (NaN in the result) do not count.

    Args:
        change_NT: true at the first step of each segment.
    """
    T = values_NT.shape[1]
    step_T = torch.arange(T, device=values_NT.device)
    last_NT = torch.where(change_NT, step_T, -1).cummax(1).values
    counted_NT = (last_NT >= 0) & ~values_NT.isnan()
    distance = (step_T - last_NT)[counted_NT]
    values = values_NT.double()[counted_NT]
    return torch.bincount(distance, values, minlength=T) / torch.bincount(distance, minlength=T)


def accuracy(logits_NTV: Tensor, y_NT: Tensor, allowed_NTV: Tensor | None = None) -> float:
    """Share of asked steps at which the largest logit is the label's.

    Args:
        allowed_NTV: the answers that are compared, where not all are (broadcast): e.g. the two labels in context of a
            two-way test.
    """
    if allowed_NTV is not None:
        logits_NTV = logits_NTV.masked_fill(~allowed_NTV, -torch.inf)
    asked_NT = y_NT != IGNORED
    return (logits_NTV.argmax(-1) == y_NT)[asked_NT].double().mean().item()


def validity(logits_NTV: Tensor, legal_NTV: Tensor) -> float:
    """Share of steps at which the largest logit is one of the legal answers; steps with no legal answer do not
    count."""
    counted_NT = legal_NTV.any(-1)
    right_NT = legal_NTV.gather(-1, logits_NTV.argmax(-1, keepdim=True))[..., 0]
    return right_NT[counted_NT].double().mean().item()


def total_variation(log_q_NTV: Tensor, log_p_NTV: Tensor) -> Tensor:
    """``1/2 sum |q - p|`` (N, T)."""
    return 0.5 * (log_q_NTV.double().exp() - log_p_NTV.double().exp()).abs().sum(-1)


def ngram(x_NT: Tensor, vocabulary: int, n: int) -> Tensor:
    """An n-gram model of the context alone (N, T, V): probabilities of the token after step t, counted after earlier
    occurrences of the last n - 1 tokens, backing off to ever shorter ones until one has occurred; uniform if none has
    (Akyürek et al. 2024, In-context language learning, their n-gram baseline without smoothing).
    """
    N, T = x_NT.shape
    found = torch.full((N, T, vocabulary), 1 / vocabulary, dtype=torch.float64)
    earlier_TT = torch.ones(T, T, dtype=torch.bool).tril(-1)
    match_NTS = earlier_TT.expand(N, T, T)
    following_NTV = nnf.pad(nnf.one_hot(x_NT, vocabulary).double()[:, 1:], (0, 0, 0, 1))
    for order in range(n):
        if order:  # step t - order + 1 must agree as well
            k = order - 1
            same_NTS = x_NT[:, :, None] == x_NT[:, None, :]
            shifted = torch.zeros_like(same_NTS)
            shifted[:, k:, k:] = same_NTS[:, : T - k, : T - k]
            match_NTS = match_NTS & shifted
        counts_NTV = match_NTS.double() @ following_NTV
        total_NT1 = counts_NTV.sum(-1, keepdim=True)
        found = torch.where(total_NT1 > 0, counts_NTV / total_NT1.clamp(min=1), found)
    return found
