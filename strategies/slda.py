"""Deep streaming LDA (Hayes and Kanan 2020, "Lifelong machine learning with deep streaming linear discriminant
analysis", CVPR workshops; arXiv 1909.01520)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from clplat.errors import UsageError
from clplat.pretrained import Frozen
from clplat.prototypes import Prototypes
from clplat.strategy import Phase

if TYPE_CHECKING:
    from clplat.learner import Learner, Output
    from clplat.scenario import Experience


class SLDA(Frozen):
    """Streaming linear discriminant analysis on features z = f(x) of an encoder that stands still.

    Class means mu_k, counts c_k and one covariance Sigma for all classes take one sample after the other in. For (z, y)
    after n samples, with Delta made before the mean moves (sec. 3)::

        Sigma <- (n Sigma + Delta) / (n + 1),     Delta = n / (n + 1) (z - mu_y)(z - mu_y)^T
        mu_y  <- (c_y mu_y + z) / (c_y + 1)

    and the answer is the argmax over the classes seen of (sec. 3)::

        w_k . z + b_k,   w_k = Lambda mu_k,   b_k = -1/2 mu_k . w_k,   Lambda = [(1 - eps) Sigma + eps I]^-1

    The base experiences are taken in at once, as in the authors' code: class means, and the oracle approximating
    shrinkage estimate (Chen et al. 2010, with scikit-learn's constants) of the covariance about them. With ``base=0``
    Sigma starts at zero. The first sample of a class adds nothing to Sigma, for it has no mean to be apart from (the
    authors' code takes it from zero). All of it is in double precision and independent of the batch size; samples come
    in their data set's order.

    Args:
        shrinkage: eps, between 0 (excluded) and 1.
    """

    kinds: ClassVar[Mapping[str, str]] = {"lda": "prototypes"}

    keeps_precision = True

    def __init__(self, *, shrinkage: float = 1e-4, **options: Any) -> None:
        super().__init__(**options)
        if not 0 < shrinkage <= 1:
            raise UsageError(f"slda: shrinkage={shrinkage} must be above 0 and at most 1")
        self.shrinkage = shrinkage
        self.prototypes = Prototypes()

    def lessons(self, learner: Learner, experience: Experience) -> Sequence[Phase]:
        return []

    def finish(self, learner: Learner, experience: Experience) -> None:
        data = self.lesson(experience).to(learner.ranks.device)
        z_NF = learner.features_of(data).double()
        if self.in_base(experience):
            self.prototypes.clear()
            self.prototypes.add(z_NF, data.y, data.task)
            scatter = len(z_NF) * oas(z_NF - self._means_of(data.y, data.task))
        else:
            scatter = self.recall("lda").get("scatter", z_NF.new_zeros(z_NF.shape[1], z_NF.shape[1]))
            scatter = scatter + self._stream(z_NF, data.y, data.task)
        n = self.prototypes.counts.sum()
        eye = torch.eye(len(scatter), dtype=scatter.dtype, device=scatter.device)
        means = self.prototypes.means
        weight = torch.linalg.solve((1 - self.shrinkage) * scatter / n + self.shrinkage * eye, means.T).T
        self.remember("lda", {"scatter": scatter, "weight": weight, "bias": -0.5 * (means * weight).sum(1)})

    def _stream(self, z_NF: Tensor, y_N: Tensor, task_N: Tensor) -> Tensor:
        """Take samples in one after the other; what they add to n Sigma."""
        seen = float(self.prototypes.counts.sum())
        gap_NF, new_N = torch.zeros_like(z_NF), torch.zeros(len(z_NF), dtype=torch.bool, device=z_NF.device)
        labels, index_N = torch.stack([task_N, y_N], 1).unique(dim=0, return_inverse=True)
        known = {tuple(label): k for k, label in enumerate(self.prototypes.labels.tolist())}
        for k, label in enumerate(labels.tolist()):
            rows = (index_N == k).nonzero().squeeze(1)
            held = known.get(tuple(label))
            count = 0.0 if held is None else float(self.prototypes.counts[held])
            mean = z_NF.new_zeros(z_NF.shape[1]) if held is None else self.prototypes.means[held]
            before = count + torch.arange(len(rows), dtype=z_NF.dtype, device=z_NF.device)
            sums = count * mean + z_NF[rows].cumsum(0) - z_NF[rows]  # of the class's samples before each
            gap_NF[rows] = z_NF[rows] - sums / before.clamp(min=1)[:, None]
            new_N[rows[before == 0]] = True
        n_N = seen + torch.arange(len(z_NF), dtype=z_NF.dtype, device=z_NF.device)
        self.prototypes.add(z_NF, y_N, task_N)
        return gap_NF.T @ (gap_NF * ((n_N / (n_N + 1)).masked_fill(new_N, 0.0))[:, None])

    def _means_of(self, y_N: Tensor, task_N: Tensor) -> Tensor:
        same_NK = (torch.stack([task_N, y_N], 1)[:, None] == self.prototypes.labels).all(-1)
        return self.prototypes.means[same_NK.long().argmax(1)]

    def classify(self, learner: Learner, output: Output, task: Tensor) -> Tensor:
        held = self.recall("lda")
        if not held:
            return output.logits
        scores_NK = output.features.double() @ held["weight"].T + held["bias"]
        return self.prototypes.spread(scores_NK, output.logits, task)


def oas(centred_NF: Tensor) -> Tensor:
    """The oracle approximating shrinkage estimate of a covariance, from samples about their mean: with S their
    covariance and mu = tr(S) / F, ``(1 - rho) S + rho mu I``."""
    N, F = centred_NF.shape
    S = centred_NF.T @ centred_NF / N
    mu, square = S.diagonal().mean(), S.square().mean()
    rho = ((square + mu**2) / ((N + 1) * (square - mu**2 / F))).nan_to_num(1.0, posinf=1.0).clamp(max=1)
    return (1 - rho) * S + rho * mu * torch.eye(F, dtype=S.dtype, device=S.device)
