"""Task-agnostic continual learning with a pairwise layer (Keskinen)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from torch import Tensor

from clplat.errors import UsageError
from clplat.heads.head import SharedHead
from clplat.heads.pairwise import PairwiseHead
from clplat.strategy import Strategy

if TYPE_CHECKING:
    from clplat.batch import Batch
    from clplat.learner import Learner, Output


class PairwiseLayer(Strategy):
    """Pairwise layer: a head of products of few active features, and steps that shrink where much has been learned.

    The head, with x the k = active * F strongest features h of F, less the k-th, and a fixed random share of all pairs
    for each class::

        x = relu(h - kth largest of h),   logit_c = sum_r w_rc x_i(r,c) x_j(r,c),   w ~ N(0, 0.001^2) at first

    The optimiser, for every weight of the network, with N samples and C classes, from omega = 0::

        s-mas:    omega += lambda | d/d theta  1/(N C) sum_nc logit_nc^2 |
        adagrad:  omega += lambda g^2
        theta    -= lr * g / sqrt(omega + 1e-6)

    Neither task labels nor boundaries are needed, and no sample is kept. Formulas and constants are those of the
    author's published code to "Task agnostic continual learning with Pairwise layer architecture"; the paper's text was
    not read. There the features come of a layer without bias and with a
    GELU; here they are the backbone's. It needs plain gradient descent, to which the shares are applied.

    Args:
        pairs: products in the head, over all classes; null takes each pair of features once.
        active: share of the features that may be active.
        importance: s-mas, adagrad, or none for plain steps.
        strength: lambda; null takes 0.01 for s-mas and 0.8 for adagrad.
        head: dense leaves the linear head as it is, for comparison.
    """

    kinds: ClassVar[Mapping[str, str]] = {"omega": "importances"}

    needs = ("classes",)

    def __init__(
        self,
        *,
        pairs: int | None = None,
        active: float = 0.15,
        importance: Literal["s-mas", "adagrad", "none"] = "s-mas",
        strength: float | None = None,
        head: Literal["pairwise", "dense"] = "pairwise",
    ) -> None:
        super().__init__()
        if not 0 < active <= 1 or (pairs is not None and pairs < 1) or (strength is not None and strength < 0):
            raise UsageError(
                f"pairwise-layer: 0 < active={active} <= 1, pairs={pairs} >= 1 and strength={strength} >= 0 are needed"
            )
        self.pairs, self.active, self.importance, self.head = pairs, active, importance, head
        self.strength = {"s-mas": 0.01, "adagrad": 0.8, "none": 0.0}[importance] if strength is None else strength
        self._found: list[list[Tensor]] = []  # of the step's micro-batches

    def attach(self, learner: Learner) -> None:
        if not isinstance(learner.head, SharedHead):
            raise UsageError(f"{self.name} is itself one head for all tasks: choose learner.head=shared")
        probe = learner.make_optimizer([{"params": [torch.nn.Parameter(torch.zeros(()))]}])
        if not isinstance(probe, torch.optim.SGD) or any(probe.defaults[o] for o in ("momentum", "weight_decay")):
            raise UsageError(
                f"{self.name} sets the size of each weight's step itself: choose --optimizer sgd, without momentum and "
                "weight decay"
            )
        if self.head == "dense":
            return
        old = learner.head.linear
        draws = learner.generator(f"{self.name}/pairs")
        learner.head = PairwiseHead(
            old.in_features, old.out_features, pairs=self.pairs, active=self.active, generator=draws
        )

    def observe(self, learner: Learner, batch: Batch, output: Output) -> None:
        if self.importance == "s-mas":
            squares = lambda of_batch: of_batch.logits.square().mean(-1)  # noqa: E731
            self._found.append(learner.auxiliary_gradients(batch, list(learner.network().values()), squares))

    @torch.no_grad()
    def edit_gradients(self, learner: Learner) -> None:
        if self.importance == "none":
            return
        omega = self.recall("omega")
        network = learner.network()
        if not omega:
            omega = {name: torch.zeros_like(p) for name, p in network.items()}
        for number, (name, p) in enumerate(network.items()):
            g = torch.zeros_like(p) if p.grad is None else p.grad
            if self.importance == "s-mas":
                omega[name] += self.strength * torch.stack([of_batch[number] for of_batch in self._found]).mean(0).abs()
            else:
                omega[name] += self.strength * g.square()
            g.mul_((omega[name] + 1e-6).rsqrt())
        self._found = []
        self.remember("omega", omega)
