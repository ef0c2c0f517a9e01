"""The context maintenance and retrieval model of free recall, as far as lags between recalled items go.

After the code of Ji-An et al. 2024 (arXiv 2405.14992): n items are one-hot, a last state absorbs. With
``T[i, i+1] = 1`` and encoding drift b, items are tied to later ones by ``M = (I - (1 - b) T)^-1 T``. Recall starts with
the context t at an item; an item is recalled with probability proportional to ``M' t``, the end with the absorbing
state; after item f::

    t_in = normed((1 - g) f + g M f)        t = normed((1 - r) t + r t_in)

with retrieval drift r and g, how much an item brings back of what followed it (``M f`` as in their code, which is the
context *before* f when M is read by rows). Lags between successive items, from the first after the start on, are
counted; their distribution is the conditional response probability (CRP).
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def association(beta_enc: float, items: int) -> Array:
    """M, (items + 1, items + 1)."""
    n = items + 1
    T = np.eye(n, k=1)
    return np.asarray(np.linalg.solve(np.eye(n) - (1 - beta_enc) * T, T), dtype=np.float64)


def recalled(M: Array, beta_rec: float, gamma: float, starts: NDArray[np.int64], uniform: Array) -> NDArray[np.int64]:
    """Items recalled in R runs, (R, steps), -1 after the end.

    Args:
        starts: the item that each run starts at, (R,).
        uniform: numbers in [0, 1) that decide each recall, (R, steps).
    """
    n = len(M)
    found = np.full(uniform.shape, -1, dtype=np.int64)
    context = np.eye(n)[starts]
    live = np.arange(len(starts))
    for step in range(uniform.shape[1]):
        strength = context @ M
        share = np.cumsum(strength, 1) / strength.sum(1, keepdims=True)
        item = (uniform[live, step, None] > share).sum(1).clip(max=n - 1)
        going = item < n - 1
        live, item, context = live[going], item[going], context[going]
        if len(live) == 0:
            break
        found[live, step] = item
        incoming = gamma * M.T[item]
        incoming[np.arange(len(item)), item] += 1 - gamma
        incoming /= np.linalg.norm(incoming, axis=1, keepdims=True).clip(min=1e-30)
        context = (1 - beta_rec) * context + beta_rec * incoming
        context /= np.linalg.norm(context, axis=1, keepdims=True)
    return found


def lag_distribution(items: NDArray[np.int64], starts: NDArray[np.int64], lags: int) -> Array:
    """Shares of the lags -lags to lags between an item and the one before it, (2 lags + 1,); others are not counted.

    All transitions of all runs count alike (the authors take shares of each run first, so that runs which end early
    count more).
    """
    before = np.concatenate([starts[:, None], items[:, :-1]], 1)
    lag = np.where(items >= 0, items - before, 2 * lags + 1)
    counts = np.array([(lag == d).sum() for d in range(-lags, lags + 1)], dtype=np.float64)
    found: Array = counts / max(float(counts.sum()), 1.0)
    return found


def closed_form(beta_enc: float, items: int, start: int, lags: int) -> Array:
    """The same for beta_rec = 1 and gamma = 0, exactly: the context is always the last item, so that each recall has
    the distribution ``P^k[start]`` with P the rows of M over their sums, and ends in the absorbing state."""
    M = association(beta_enc, items)
    P = M / M.sum(1, keepdims=True).clip(min=1e-300)  # the absorbing state has no row
    at, shares = np.eye(items + 1)[start], np.zeros(2 * lags + 1)
    for _ in range(items):
        at[-1] = 0.0
        for d in range(1, lags + 1):
            shares[lags + d] += float((at[: items - d] * np.diagonal(P, d)[: items - d]).sum())
        at = at @ P
    found: Array = shares / shares.sum()
    return found


@cache
def table(lags: int = 5, items: int = 30, runs: int = 40, starts: int = 8) -> tuple[Array, Array]:
    """CRPs over a grid, and their parameters (beta_enc, beta_rec, gamma): (G, 2 lags + 1) and (G, 3).

    The authors' grid has 20 x 21 x 11 points of 100 items and 20000 runs each; this one has 10 x 6 x 6, fewer runs,
    and the same random numbers at each point.
    """
    source = np.random.default_rng(0)
    first = np.repeat(np.arange(starts) + items // 4, runs)
    uniform = source.random((len(first), items))
    parameters = [
        (enc, rec, gamma)
        for enc in np.linspace(0.1, 1, 10)
        for rec in np.linspace(0, 1, 6)
        for gamma in np.linspace(0, 1, 6)
    ]
    found, matrices = [], {enc: association(enc, items) for enc in {p[0] for p in parameters}}
    for enc, rec, gamma in parameters:
        found.append(lag_distribution(recalled(matrices[enc], rec, gamma, first, uniform), first, lags))
    return np.stack(found), np.array(parameters)


def fit(profile: Array) -> tuple[float, Array]:
    """The CMR distance of an attention profile over lags, and the parameters of the nearest point of the grid.

    The distance is the mean squared error between the profile less its minimum and the CRP less its minimum, scaled to
    the same maximum, over the variance of the profile; NaN for a flat one.
    """
    curves, parameters = table(len(profile) // 2)
    shifted = profile - profile.min()
    variance = shifted.var()
    if variance < 1e-20:
        return float("nan"), np.full(3, np.nan)
    crps = curves - curves.min(1, keepdims=True)
    scaled = crps * (shifted.max() / crps.max(1, keepdims=True).clip(min=1e-300))
    distances = np.square(scaled - shifted).mean(1) / variance
    best = int(np.nanargmin(distances))
    return float(distances[best]), parameters[best]
