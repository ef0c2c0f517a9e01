"""A linear associative memory in closed form: what a matrix of outer products recalls under a heavy-tailed law.

Cabannes, Dohmatob and Bietti 2023, Scaling Laws for Associative Memories (arXiv 2310.02984). Inputs x = 1, ..., N come
with probability p(x); each has an embedding e_x, and each output y an unembedding u_y, random on the unit sphere. The
memory and its answer are::

    W = sum_x q(x) u_f(x) e_x'          answer(x) = argmax_y u_y' W e_x

and the error is the probability of an x whose answer is not f(x). The rules of storage are recalled from the paper,
whose exponents were not checked against its text.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as nnf
from torch import Generator, Tensor

Rule = Literal["all", "frequency", "threshold"]


def stored(p_N: Tensor, rule: Rule, *, exponent: float = 1.0, most: int | None = None) -> Tensor:
    """How strongly each input is stored, q (N,).

    Args:
        rule: all: 1 wherever p is positive; frequency: ``p^exponent``; threshold: ``p^exponent`` for the ``most`` most
            frequent inputs alone.
    """
    if rule == "all":
        return (p_N > 0).to(p_N.dtype)
    q_N = torch.where(p_N > 0, p_N**exponent, 0.0)
    if rule == "frequency":
        return q_N
    assert most is not None, "a threshold needs a number"
    kept_N = torch.zeros_like(q_N).index_fill(0, p_N.argsort(descending=True, stable=True)[:most], 1.0)
    return q_N * kept_N


def embeddings(n: int, dim: int, source: Generator) -> Tensor:
    """Random directions (n, dim)."""
    return nnf.normalize(torch.randn((n, dim), generator=source, dtype=torch.float64), dim=1)


def memory(q_N: Tensor, target_N: Tensor, e_ND: Tensor, u_MD: Tensor) -> Tensor:
    """W (D, D)."""
    return (q_N[:, None] * u_MD[target_N]).T @ e_ND


def error(W_DD: Tensor, p_N: Tensor, target_N: Tensor, e_ND: Tensor, u_MD: Tensor) -> float:
    """The probability that the memory answers wrong."""
    answer_N = (e_ND @ W_DD.T @ u_MD.T).argmax(1)
    return float(p_N[answer_N != target_N].sum() / p_N.sum())


def learned(
    p_N: Tensor,
    target_N: Tensor,
    e_ND: Tensor,
    u_MD: Tensor,
    *,
    optimizer: Literal["sgd", "adam"],
    lr: float,
    steps: int,
    batch: int,
    source: Generator,
) -> Tensor:
    """W (D, D) by gradient steps on the cross-entropy of ``u_y' W e_x``, from zero, on inputs drawn by p."""
    W_DD = torch.zeros(e_ND.shape[1], e_ND.shape[1], dtype=e_ND.dtype, requires_grad=True)
    step = (torch.optim.Adam if optimizer == "adam" else torch.optim.SGD)([W_DD], lr=lr)
    for _ in range(steps):
        x_B = torch.multinomial(p_N, batch, replacement=True, generator=source)
        loss = nnf.cross_entropy(e_ND[x_B] @ W_DD.T @ u_MD.T, target_N[x_B])
        step.zero_grad()
        loss.backward()
        step.step()
    return W_DD.detach()
