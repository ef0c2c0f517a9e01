"""Elastic weight consolidation (Kirkpatrick et al. 2017) and its online form (Schwarz et al. 2018)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from clplat import sharding
from clplat.errors import UsageError
from clplat.fisher import FisherKind, draws, experience_fisher, passes
from clplat.quadratic import Quadratic
from clplat.scenario import PER_STEP, TensorData
from clplat.state import grown
from clplat.strategy import Strategy

if TYPE_CHECKING:
    from clplat.batch import Batch
    from clplat.learner import Learner, Output
    from clplat.scenario import Experience


class EWC(Strategy):
    """Elastic weight consolidation: pull weights back to where they mattered, by the Fisher information.

    After each experience k estimate the diagonal Fisher ``F_k`` at its weights
    ``theta_k``; then minimise::

        separate:  L + lambda/2 * sum_k sum_i F_k,i (theta_i - theta_k,i)^2            (Kirkpatrick et al. 2017, eq. 3)
        online:    L + lambda/2 * sum_i F~_i (theta_i - theta_last,i)^2,  F~ <- gamma F~ + F_k   (Schwarz et al. 2018)

    The sum of the separate penalties is one quadratic, kept as such: with ``A = sum_k F_k`` and ``m = sum_k F_k theta_k
    / A`` it is ``sum_i A_i (theta_i - m_i)^2`` plus a constant, exactly, in the memory of one task. F is averaged over
    samples; see ``clplat.fisher`` for its kinds. Factors by Kronecker products (K-FAC) are left out: they exist for
    linear layers, while most of what sequence memories learn are gates, decays, norms and heads stacked over tasks.

    Args:
        importance: lambda, weight of the quadratic penalty.
        fisher: how F is estimated; auto is exact, or sampled where that would take more than 64 backward passes a batch
            (tokens and bits at many steps); batched is the common wrong shortcut, for comparison with other code only.
        online: one running importance, pulled to the latest weights.
        decay: gamma of the online form.
        samples: samples of the experience to estimate F on; null takes all.
    """

    needs = ("boundaries",)
    hopeless = ("class",)
    shardable = True

    def __init__(
        self,
        *,
        importance: float = 100.0,
        fisher: Literal["auto", "exact", "sampled", "empirical", "batched"] = "auto",
        online: bool = False,
        decay: float = 1.0,
        samples: int | None = None,
    ) -> None:
        super().__init__()
        if importance < 0 or not 0 <= decay <= 1 or (samples is not None and samples < 1):
            raise UsageError(
                f"ewc: importance={importance} >= 0, 0 <= decay={decay} <= 1, samples={samples} >= 1 needed"
            )
        self.importance, self.fisher, self.online = importance, fisher, online
        self.decay, self.samples = decay, samples
        self.quadratic = Quadratic()

    def start(self, learner: Learner, experience: Experience) -> None:
        """Refuse now, on all ranks alike, what would not be possible after training; say which Fisher auto takes."""
        kind = self._kind(learner, experience)
        if self.fisher == "auto" and kind != "exact" and experience.current_experience == 0:
            learner.note(f"{self.name}: the Fisher is {kind}, since the exact one would need too many backward passes")

    def _kind(self, learner: Learner, experience: Experience) -> FisherKind:
        if self.fisher != "auto" and self.fisher != "exact":
            return self.fisher
        if learner.target in PER_STEP:
            data = experience.dataset
            chosen, _ = draws(learner, experience, f"{self.name}/fisher", self.samples)
            one = TensorData(*data.rows(slice(1))).to(learner.ranks.device, next(learner.parameters()).dtype)
            with learner.evaluating():
                outputs = learner(one.x, one.task).shape[-1]
            try:
                passes(data.y[chosen.to(data.y.device)], outputs, learner.target)
            except UsageError:
                if self.fisher == "exact":
                    raise
                return "sampled"
        return "exact"

    def loss(self, learner: Learner, batch: Batch, output: Output) -> dict[str, Tensor]:
        if not self.quadratic:
            return {}
        penalty = self.quadratic(learner.network()) + self.recall("constant")["value"]
        return {"penalty": 0.5 * self.importance * penalty}

    def finish(self, learner: Learner, experience: Experience) -> None:
        fisher = self.estimate(learner, experience)
        weights = {name: p.detach().clone() for name, p in learner.network().items()}
        held = self.quadratic.held(weights) if self.quadratic else {}
        anchors = self.quadratic.anchor  # parameters that are new since then mattered to nobody
        anchor = {name: grown(anchors[name], p) if name in anchors else p for name, p in weights.items()}
        constant = self.recall("constant").get("value", torch.zeros((), device=learner.ranks.device))
        if held and self.online:
            fisher = {name: self.decay * held[name] + new for name, new in fisher.items()}
        elif held:
            for name, new in fisher.items():
                total = held[name] + new
                share = torch.where(total > 0, new / total, 0.0)  # of the new task in the common minimum
                apart = weights[name] - anchor[name]
                constant = constant + sharding.whole((held[name] * share * apart.square()).sum())
                # lerp gives the very weight where only one of the two counts: a minimum off by a rounding error is a
                # tiny gradient that Adam, dividing by its size, would blow up.
                weights[name] = torch.lerp(anchor[name], weights[name], share)
                fisher[name] = total
        self.quadratic.hold(fisher, weights)
        self.remember("constant", {"value": constant})

    def estimate(self, learner: Learner, experience: Experience) -> dict[str, Tensor]:
        """The diagonal Fisher of the network's parameters on an experience, summed over ranks."""
        kind = self._kind(learner, experience)
        return experience_fisher(learner, experience, kind=kind, purpose=f"{self.name}/fisher", samples=self.samples)
