"""Riemannian walk (Chaudhry et al. 2018, "Riemannian Walk for Incremental Learning: Understanding Forgetting and
Intransigence", ECCV)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from clplat.errors import UsageError
from clplat.quadratic import PathStrategy
from clplat.state import grown

if TYPE_CHECKING:
    from clplat.batch import Batch
    from clplat.learner import Learner
    from clplat.scenario import Experience


class RWalk(PathStrategy):
    """Riemannian walk: a running Fisher plus how much the loss fell for each bit of way through the distribution.

    With g the gradient of the task's loss on each batch (section 4; arXiv 1801.10112), every ``interval`` steps::

        F <- alpha F_now + (1 - alpha) F          F_now: mean of g^2 over the interval's steps
        s <- s + relu( -sum g dtheta / (1/2 F Dtheta^2 + xi) )            Dtheta: the interval's change of the weights

    and at the end of an experience ``S <- (S + s) / 2`` (in the first, S <- s), s = 0; F goes on. Then

        L + lambda * sum_i (F^_i + S^_i) (theta_i - theta*_i)^2

    where ^ scales to [0, 1] over all parameters together (least and largest value). s takes its own interval's F. g
    does not contain the penalty and is that of a whole batch, so F is the cheap approximation of the authors' code, not
    the Fisher of ``clplat.fisher``. That code also leaves out the 1/2 and adds S once more; here the paper's formulas
    hold.

    Args:
        strength: lambda, weight of the penalty.
        alpha: weight of the newest interval in F.
        interval: optimiser steps in an interval (Delta t).
        damping: xi, in units of the loss.
    """

    kinds: ClassVar[Mapping[str, str]] = {"fisher": "importances", "score": "importances", "scores": "importances"}

    needs = ("boundaries",)
    hopeless = ("class",)

    def __init__(self, *, strength: float = 1.0, alpha: float = 0.9, interval: int = 10, damping: float = 1e-3) -> None:
        if strength < 0 or not 0 < alpha <= 1 or interval < 1 or damping <= 0:
            raise UsageError(
                f"rwalk: strength={strength} >= 0, 0 < alpha={alpha} <= 1, interval={interval} >= 1 and "
                f"damping={damping} > 0 are needed"
            )
        super().__init__(strength)
        self.alpha, self.interval, self.damping = alpha, interval, damping
        self.steps = 0  # made in the interval that is under way

    def start(self, learner: Learner, experience: Experience) -> None:
        super().start(learner, experience)
        network = learner.network()
        self.remember("score", {name: torch.zeros_like(p) for name, p in network.items()})
        zeros = {name: torch.zeros_like(p, requires_grad=False) for name, p in network.items()}
        fisher = self.recall("fisher")
        self.remember("fisher", {n: grown(fisher[n], zero) if n in fisher else zero for n, zero in zeros.items()})
        self._begin(learner)

    def _begin(self, learner: Learner) -> None:
        """A new interval."""
        network = learner.network()
        self.remember("from", {name: p.detach().clone() for name, p in network.items()})
        for key in ("fall", "squares"):
            self.remember(key, {name: torch.zeros_like(p) for name, p in network.items()})
        self.steps = 0

    def moved(self, gradient: dict[str, Tensor], before: dict[str, Tensor], change: dict[str, Tensor]) -> None:
        fall, squares = self.recall("fall"), self.recall("squares")
        for name, g in gradient.items():
            fall[name].addcmul_(g, change[name], value=-1)
            squares[name].addcmul_(g, g)
        self.steps += 1

    def after_step(self, learner: Learner, batch: Batch) -> None:
        super().after_step(learner, batch)
        if self.steps == self.interval:
            fisher, score = self._interval(learner)
            self.remember("fisher", fisher)
            self.remember("score", score)
            self._begin(learner)

    @torch.no_grad()
    def _interval(self, learner: Learner) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """F, and then s with it, after the interval that is under way; as they are if it has no step yet."""
        old, score = self.recall("fisher"), self.recall("score")
        if not self.steps:
            return old, score
        fall, squares, begin = self.recall("fall"), self.recall("squares"), self.recall("from")
        fisher = {name: torch.lerp(old[name], squares[name] / self.steps, self.alpha) for name in old}
        gained = {}
        for name, p in learner.network().items():
            way = 0.5 * fisher[name] * (p - begin[name]).square()
            gained[name] = score[name] + (fall[name] / (way + self.damping)).relu()
        return fisher, gained

    def finish(self, learner: Learner, experience: Experience) -> None:
        fisher, score = self._interval(learner)
        held = self.recall("scores")
        if held:
            score = {n: (grown(held[n], torch.zeros_like(s)) + s) / 2 if n in held else s for n, s in score.items()}
        F, S = scaled(fisher), scaled(score)
        self.penalty.hold({name: F[name] + S[name] for name in F}, self.penalty.anchor)
        self.remember("fisher", fisher)
        self.remember("scores", score)

    def get_extra_state(self) -> dict[str, int]:
        return {"steps": self.steps}

    def set_extra_state(self, state: dict[str, int]) -> None:
        self.steps = state["steps"]


def scaled(values: dict[str, Tensor]) -> dict[str, Tensor]:
    """All values moved and scaled to [0, 1] together; 0 if they are all the same."""
    least = torch.stack([v.min() for v in values.values()]).min()
    range_ = torch.stack([v.max() for v in values.values()]).max() - least
    return {name: torch.where(range_ > 0, (v - least) / range_, 0.0) for name, v in values.items()}
