"""Class means of features, exact in any order and however the samples are divided among those who learn them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from clplat.state import Remembering


class Prototypes(Remembering):
    """The mean feature and the number of samples of each class, in double precision.

    Classes are told apart by (task label, label), in the order in which they came.
    """

    kinds: ClassVar[Mapping[str, str]] = {"classes": "prototypes"}

    keeps_precision = True

    @property
    def labels(self) -> Tensor:
        """(K, 2): task label and label of each class."""
        return self.recall("classes").get("labels", torch.zeros(0, 2, dtype=torch.long))

    @property
    def means(self) -> Tensor:
        """(K, F), in the order of ``labels``."""
        return self.recall("classes")["means"]

    @property
    def counts(self) -> Tensor:
        """(K,): samples of each class, as floating-point numbers."""
        return self.recall("classes").get("counts", torch.zeros(0, dtype=torch.float64))

    def __len__(self) -> int:
        return len(self.counts)

    def copy(self) -> Prototypes:
        """The same classes, to go on from."""
        other = Prototypes()
        other.remember("classes", {name: tensor.clone() for name, tensor in self.recall("classes").items()})
        return other

    def clear(self) -> None:
        """Forget all classes."""
        self.remember("classes", {})

    @torch.no_grad()
    def add(self, features_NF: Tensor, y_N: Tensor, task_N: Tensor) -> None:
        """Take further samples in: of whole batches at once, which comes to the same as one by one."""
        labels, index_N, counts = torch.stack([task_N, y_N], 1).unique(dim=0, return_inverse=True, return_counts=True)
        sums = torch.zeros(len(labels), features_NF.shape[1], dtype=torch.float64, device=features_NF.device)
        sums.index_add_(0, index_N, features_NF.double())
        self.merge(labels, sums / counts[:, None], counts.double())

    @torch.no_grad()
    def merge(self, labels: Tensor, means: Tensor, counts: Tensor) -> None:
        """Take the prototypes of other samples in: ``c <- c + n_new / (n + n_new) * (c_new - c)`` for a class that is
        known, else a copy.

        Args:
            labels, means, counts: what those samples made; none of them may have been counted here before.
        """
        known = {tuple(label): k for k, label in enumerate(self.labels.tolist())}
        places = [known.setdefault(tuple(label), len(known)) for label in labels.tolist()]
        index = torch.tensor(places, dtype=torch.long, device=means.device)
        new_labels = labels.new_zeros(len(known), 2)
        new_means, new_counts = means.new_zeros(len(known), means.shape[1]), counts.new_zeros(len(known))
        if K := len(self):
            new_labels[:K], new_means[:K], new_counts[:K] = self.labels, self.means, self.counts
        new_labels[index] = labels
        total = new_counts[index] + counts
        share = torch.where(total > 0, counts / total, 0.0)
        new_means[index] += share[:, None] * (means - new_means[index])
        new_counts[index] = total
        self.remember("classes", {"labels": new_labels, "means": new_means, "counts": new_counts})

    def since(self, before: Prototypes) -> tuple[Tensor, Tensor, Tensor]:
        """What was learned after ``before``, of which this is a continuation: labels, means and counts of the new
        samples alone, ``x = (n c - n_before c_before) / (n - n_before)``."""
        K = len(before)
        counts, sums = self.counts.clone(), self.counts[:, None] * self.means
        if K:
            counts[:K] -= before.counts
            sums[:K] -= before.counts[:, None] * before.means
        new = counts > 0
        return self.labels[new], sums[new] / counts[new, None], counts[new]

    def spread(self, scores_NK: Tensor, logits_NC: Tensor, task_N: Tensor) -> Tensor:
        """Scores of the classes held as logits (N, C): -inf for a class that is not held, or of another task."""
        own_NK = task_N[:, None] == self.labels[:, 0]
        found = torch.full_like(logits_NC, -torch.inf, dtype=scores_NK.dtype)
        index_NK = self.labels[:, 1].expand(len(task_N), -1)
        return found.scatter_reduce(1, index_NK, scores_NK.masked_fill(~own_NK, -torch.inf), "amax")

    def nearest(self, features_NF: Tensor, logits_NC: Tensor, task_N: Tensor) -> Tensor:
        """Logits (N, C): minus the squared distance to each class's mean, see :meth:`spread`."""
        apart_NK = torch.cdist(features_NF.double()[None], self.means[None], compute_mode=EXACT)[0].square()
        return self.spread(-apart_NK, logits_NC, task_N)


EXACT = "donot_use_mm_for_euclid_dist"  # differences, not a difference of squares
