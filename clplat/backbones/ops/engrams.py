"""A store of engrams that live, associate and die by use (Park & Bak 2024, arXiv 2310.03052), without gradients.

An engram is a vector with a kind (working, short-term, long-term), a lifespan, and counts of how often it fired
together with each other one. For each segment: :func:`add` what is in working memory, :func:`remind`, :func:`settle`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from clplat.backbones.ops.attention import latest
from clplat.backbones.ops.retrieval import best

NONE, WORKING, SHORT, LONG = range(4)


class Engrams(NamedTuple):
    """E engrams of each sample, in the order in which they came; empty places have kind 0 and zeros.

    Attributes:
        data: vectors, (B, E, D).
        kind: 0 for none, or 1 working, 2 short-term, 3 long-term, (B, E).
        lifespan: segments left to live, (B, E).
        counts: how often two fired together, (B, E, E).
    """

    data: Tensor
    kind: Tensor
    lifespan: Tensor
    counts: Tensor


@torch.no_grad()
def add(engrams: Engrams, data_BMD: Tensor, there_B: Tensor, lifespan: float) -> Engrams:
    """With M engrams of working memory behind the others, for the samples where there is one."""
    data = torch.cat([engrams.data, data_BMD.to(engrams.data.dtype) * there_B[:, None, None]], 1)
    kind_BM = torch.where(there_B[:, None].expand(data_BMD.shape[:2]), WORKING, NONE).to(engrams.kind.dtype)
    lifespan_BM = lifespan * (kind_BM > NONE).to(engrams.lifespan.dtype)
    M = data_BMD.shape[1]
    return Engrams(
        data,
        torch.cat([engrams.kind, kind_BM], 1),
        torch.cat([engrams.lifespan, lifespan_BM], 1),
        torch.nn.functional.pad(engrams.counts, (0, M, 0, M)),
    )


@torch.no_grad()
def remind(engrams: Engrams, short: int, long: int, depth: int) -> tuple[Tensor, Engrams]:
    """Which engrams come to mind with those in working memory; all of these fire together.

    First the ``short`` short-term ones that are nearest to working memory. From each of them a walk begins, at the
    long-term one that fired with it most often, and goes on ``depth`` times to the one that fired with the last most
    often and has not been found yet. Of all that are found, the ``long`` nearest ones are taken. Nearness is the sum of
    ``exp(-|w - e|^2)`` over working memory.

    Returns:
        What is reminded, (B, E), and the engrams with one count more for each pair that fired.
    """
    data, kind, _, counts = engrams
    working, short_term, long_term = kind == WORKING, kind == SHORT, kind == LONG
    apart_BEE = torch.cdist(data, data, compute_mode="donot_use_mm_for_euclid_dist")
    near_BE = (
        (-apart_BEE.square()).masked_fill(~working[:, :, None], -torch.inf).logsumexp(1)
    )  # a logarithm underflows later
    places_E = torch.arange(kind.shape[1], device=kind.device)

    def nearest(among_BE: Tensor, n: int) -> Tensor:
        return best(near_BE[:, None, None], among_BE, n)[:, 0, 0]

    def associated(at_BN: Tensor, among_BE: Tensor) -> tuple[Tensor, Tensor]:
        count_BNE = counts.take_along_dim(at_BN[..., None], 1).masked_fill(~among_BE[:, None], -1)
        count_BN, next_BN = count_BNE.max(-1)
        return count_BN >= 0, next_BN

    short_BE = nearest(short_term, short)
    at_BN = near_BE.masked_fill(~short_term, -torch.inf).topk(min(short, kind.shape[1]), 1).indices
    walks_BN = short_BE.gather(1, at_BN)
    found_BE = torch.zeros_like(short_BE)
    for _ in range(depth + 1):
        goes_on_BN, at_BN = associated(at_BN, long_term & ~found_BE)
        walks_BN = walks_BN & goes_on_BN
        found_BE = found_BE | ((places_E == at_BN[..., None]) & walks_BN[..., None]).any(1)

    reminded_BE = short_BE | nearest(found_BE, long)
    fired_BE = reminded_BE | working
    counts = counts + (fired_BE[:, :, None] & fired_BE[:, None]).to(counts.dtype)
    return reminded_BE, engrams._replace(counts=counts)


@torch.no_grad()
def settle(engrams: Engrams, gained_BE: Tensor, short: int, keep: int) -> Engrams:
    """After a segment: lifespans gain what is given and lose 1; working memory becomes short-term; the oldest beyond
    ``short`` short-term ones become long-term; those with no life left die.

    Args:
        gained_BE: what each lifespan gains.
        short: capacity of short-term memory.
        keep: places of the whole store; beyond that the oldest are lost.
    """
    data, kind, lifespan, counts = engrams
    kind = torch.where(kind == WORKING, SHORT, kind)
    later_BE = (kind == SHORT).flip(1).cumsum(1).flip(1)  # short-term ones from here on
    kind = torch.where((kind == SHORT) & (later_BE > short), LONG, kind).to(engrams.kind.dtype)
    lifespan = lifespan + gained_BE.to(lifespan.dtype) - 1
    index_BN, live_BN = latest((kind > NONE) & (lifespan > 0), keep)
    counts = counts.take_along_dim(index_BN[..., None], 1).take_along_dim(index_BN[:, None], 2)
    return Engrams(
        data.take_along_dim(index_BN[..., None], 1) * live_BN[..., None],
        kind.gather(1, index_BN) * live_BN,
        lifespan.gather(1, index_BN) * live_BN,
        counts * (live_BN[:, :, None] & live_BN[:, None]),
    )
