"""The score as a vector at the outputs: with J the Jacobian of a sample's outputs, what it contributes is
``sum_r (J^T u_r)^2`` for a few vectors ``u_r`` that do not depend on the network but through its outputs.

For one label the vector is ``d log p / d logits = e_label - p``. For the exact Fisher of a softmax the vectors are the
columns of a factor of the covariance ``diag(p) - p p^T = U U^T``, which has rank C - 1, so that C classes take C - 1
backward passes. The Cholesky factor is known in closed form, without cancellation (Tanabe and Sagae 1992, "An exact
Cholesky decomposition and the generalized inverse of the variance-covariance matrix of the multinomial distribution,
with applications", J. R. Stat. Soc. B 54(1)).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor

from clplat.fisher.definition import FisherBatch, FisherKind, draw, normal
from clplat.metrics import measures
from clplat.scenario import Target


def directions(output: Tensor, batch: FisherBatch, kind: FisherKind, target: Target) -> Iterator[Tensor]:
    """The vectors ``u_r`` of all samples, one r at a time, each of the shape of ``output``. No gradient."""
    output, y = output.detach(), batch.y
    if kind == "sensitivity":
        yield 2 * output.masked_fill(output == -torch.inf, 0.0)
        return
    if target == "value":
        if kind == "exact":
            for k in range(output.shape[-1]):
                u_NK = torch.zeros_like(output)
                u_NK[:, k] = 1
                yield u_NK
        else:
            yield y.to(output) - output if kind == "empirical" else _normal(batch, output)
        return
    asked = torch.ones_like(batch.task, dtype=torch.bool) if target == "class" else measures.asked(target, y)
    if target == "series":
        if kind == "exact":
            for at_NP in _each(asked.flatten(1)):
                yield at_NP.to(output.dtype).reshape(output.shape)
        else:
            u_NTK = y.to(output) - output if kind == "empirical" else _normal(batch, output)
            yield torch.where(asked, u_NTK, 0.0)
        return
    if target == "bits":
        p = output.sigmoid()
        if kind == "exact":
            spread_NP = (p * (-output).sigmoid()).sqrt().flatten(1)
            for at_NP in _each(asked.flatten(1)):
                yield (spread_NP * at_NP).reshape(output.shape)
        else:
            bit = y if kind == "empirical" else _drawn(torch.stack([(-output).sigmoid(), p], -1), batch)
            yield torch.where(asked, bit.to(p.dtype) - p, 0.0)
        return
    p = output.softmax(-1)
    if kind == "exact":
        if target == "class":
            yield from factor(p)
            return
        for at_NT in _each(asked):
            for u_NV in factor((p * at_NT[..., None]).sum(1)):
                yield torch.where(at_NT[..., None], u_NV[:, None], 0.0)
        return
    label = (y if kind == "empirical" else _drawn(p, batch)).clamp(min=0)
    yield torch.where(
        asked[..., None], torch.scatter(-p, -1, label[..., None], 1 - p.gather(-1, label[..., None])), 0.0
    )


def factor(p_NC: Tensor) -> Iterator[Tensor]:
    """Columns of U, with ``U U^T = diag(p) - p p^T`` for each sample; those that are zero for all are left out."""
    tail_NC = p_NC.flip(-1).cumsum(-1).flip(-1)
    possible = (p_NC != 0).any(0).nonzero().squeeze(-1).tolist()
    for c, following in itertools.pairwise(possible):
        p_N, tail_N, rest_N = p_NC[:, c], tail_NC[:, c], tail_NC[:, following]
        root_N = (p_N / tail_N).sqrt()
        scale_N = torch.where(rest_N > 0, root_N / rest_N.sqrt(), 0.0)
        u_NC = torch.zeros_like(p_NC)
        u_NC[:, following:] = p_NC[:, following:] * -scale_N.unsqueeze(-1)
        u_NC[:, c] = torch.where(rest_N > 0, root_N * rest_N.sqrt(), 0.0)
        yield u_NC


def _each(asked_NP: Tensor) -> Iterator[Tensor]:
    """The first place that is asked of each sample, the second, and so on: masks with at most one place a sample."""
    number_NP = asked_NP.cumsum(1) * asked_NP
    for number in range(1, int(number_NP.max()) + 1 if number_NP.numel() else 1):
        yield number_NP == number


def _drawn(p: Tensor, batch: FisherBatch) -> Tensor:
    assert batch.uniform is not None
    return draw(p, batch.uniform)


def _normal(batch: FisherBatch, like: Tensor) -> Tensor:
    assert batch.uniform is not None
    return normal(batch.uniform).to(like)
