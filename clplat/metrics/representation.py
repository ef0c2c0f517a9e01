"""How a network's features, head and gradients change over a run.

The first half are pure functions of tensors. The second half are metrics of a run's networks at the ends of its
experiences; those that look at earlier ends need ``trainer.keep_boundaries=true``. Features are what the head sees, on
test samples, a vector for each sample or for each of its steps.
"""

from __future__ import annotations

import torch
from torch import Tensor

from clplat.errors import UsageError
from clplat.metrics.evidence import Evidence, NotMeasuredError


def linear_cka(X_ND: Tensor, Y_NE: Tensor) -> float:
    """Linear CKA: ``|Y'X|^2 / (|X'X| |Y'Y|)`` with Frobenius norms of centred features of the same N samples: 1 for
    features that differ by a rotation and a scale, near 0 for unrelated ones when N is far larger than D and E
    (Kornblith et al. 2019, eq. 4).

    Raises:
        NotMeasuredError: the features of one do not vary at all.
    """
    X_ND, Y_NE = (Z.double() - Z.double().mean(0) for Z in (X_ND, Y_NE))
    norms = torch.linalg.matrix_norm(X_ND.T @ X_ND) * torch.linalg.matrix_norm(Y_NE.T @ Y_NE)
    if norms == 0:
        raise NotMeasuredError("CKA is undefined where features do not vary")
    return float(torch.linalg.matrix_norm(Y_NE.T @ X_ND) ** 2 / norms)


def effective_rank(X_ND: Tensor) -> float:
    """exp of the entropy of the singular values of X, taken as shares of their sum: between 1 and min(N, D) (Roy and
    Vetterli 2007). X is not centred.

    Raises:
        NotMeasuredError: all features are zero.
    """
    values = torch.linalg.svdvals(X_ND.double())
    if not values.sum() > 0:
        raise NotMeasuredError("the effective rank is undefined where all features are zero")
    shares = values / values.sum()
    return float(torch.special.entr(shares).sum().exp())


def dormant(X_ND: Tensor, tau: float) -> float:
    """The share of units whose mean absolute value is at most tau times that of the mean unit (Sokar et al. 2023,
    definition 3.1)."""
    score_D = X_ND.double().abs().mean(0)
    return float((score_D <= tau * score_D.mean()).double().mean())


def mean_cosine(vectors: list[Tensor]) -> float:
    """The mean cosine between all pairs of vectors.

    Raises:
        NotMeasuredError: there are not two vectors other than zero.
    """
    known = [v / v.norm() for v in (v.double() for v in vectors) if v.norm() > 0]
    if len(known) < 2:
        raise NotMeasuredError("a cosine needs two gradients that are not zero")
    gram = torch.stack(known) @ torch.stack(known).T
    pairs = torch.triu_indices(len(known), len(known), 1)
    return float(gram[pairs[0], pairs[1]].mean())


# --- metrics of a run


def cka(run: Evidence) -> dict[str, float]:
    """Linear CKA of the features at the end and at the end of each earlier train experience i, on the test samples of
    t(i): 1 means that the features of i are what they were, up to rotation and scale (Kornblith et al. 2019, eq. 4)."""
    if run.n < 2:
        raise NotMeasuredError("CKA to earlier experiences needs two experiences")
    before = {i: run.network().features(i, run.test(i)) for i in range(run.n - 1)}
    return {str(i): linear_cka(X, run.network().features(run.n - 1, run.test(i))) for i, X in before.items()}


def features_rank(run: Evidence) -> float:
    """Effective rank of the features at the end, on the test samples of all experiences seen (Roy and Vetterli 2007).
    It falls where a network loses the ability to learn (Lyle et al. 2022)."""
    return effective_rank(_last_features(run))


def dormant_units(run: Evidence, *, tau: float = 0.025) -> float:
    """Share of features that are dormant at the end, on the test samples of all experiences seen (Sokar et al. 2023,
    definition 3.1, there for the units of each layer).

    Args:
        tau: a unit at most that many times as active as the mean unit is dormant.
    """
    return dormant(_last_features(run), tau)


def _last_features(run: Evidence) -> Tensor:
    if not run.n:
        raise NotMeasuredError("there is no experience")
    return torch.cat([run.network().features(run.n - 1, j) for j in run.seen])


def head_drift(run: Evidence) -> dict[str, float]:
    """How far the head has moved since the end of each earlier train experience i: ``|W_end - W_i| / |W_i|`` over all
    parameters of the head; of one that has grown, over what was there."""
    if run.n < 2:
        raise NotMeasuredError("drift of the head needs two experiences")
    before = {i: run.network().head(i) for i in range(run.n - 1)}
    now = run.network().head(run.n - 1)
    found = {}
    for i, then in before.items():
        if not then.keys() <= now.keys():
            raise NotMeasuredError("the head has other parameters than it had")
        pairs = [(now[name][tuple(slice(n) for n in old.shape)], old) for name, old in then.items()]
        moved = torch.stack([(new - old).double().square().sum() for new, old in pairs]).sum().sqrt()
        found[str(i)] = float(moved / torch.stack([old.double().square().sum() for _, old in pairs]).sum().sqrt())
    return found


def gradient_interference(run: Evidence, *, samples: int = 512) -> float:
    """Mean cosine between the gradients of the mean loss on the train samples of every two experiences, at the end:
    negative where what helps one hurts the other (Riemer et al. 2019, section 2, by their dot product).

    Args:
        samples: the first so many of each experience.
    """
    if samples < 1:
        raise UsageError(f"gradient_interference: samples={samples}: at least 1 is needed")
    if run.n < 2:
        raise NotMeasuredError("interference needs two experiences")
    return mean_cosine([run.network().gradient(run.n - 1, i, samples) for i in range(run.n)])
