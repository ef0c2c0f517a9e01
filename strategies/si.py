"""Synaptic intelligence (Zenke, Poole and Ganguli 2017, "Continual Learning Through Synaptic Intelligence", ICML)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from clplat.errors import UsageError
from clplat.quadratic import PathStrategy

if TYPE_CHECKING:
    from clplat.learner import Learner
    from clplat.scenario import Experience


class SI(PathStrategy):
    """Synaptic intelligence: a weight matters as much as its path has lowered the loss.

    With g the gradient of the task's loss at each step, ``delta`` the change that the step then made, ``Delta`` the
    change over the whole experience and theta* the weights at its beginning (eq. 3 to 5; arXiv 1703.04200)::

        omega_i <- omega_i - g_i delta_i
        Omega_i <- relu( Omega_i + omega_i / (Delta_i^2 + xi) )       at the end of an experience; then omega = 0
        L + c * sum_i Omega_i (theta_i - theta*_i)^2

    g does not contain the penalty. The relu, which the paper does not have, keeps a weight that made things worse from
    being pushed away; it is applied to the sum, as in the authors' code. There is no 1/2 in front of c.

    Args:
        strength: c, weight of the penalty. The authors' 0.1 does nothing on short streams with Adam; 100 was chosen on
            split and permuted digits, on other seeds than those of the tables.
        damping: xi, in squared units of the weights; keeps the importance of weights that hardly moved finite.
    """

    kinds: ClassVar[Mapping[str, str]] = {"omega": "importances"}

    needs = ("boundaries",)
    hopeless = ("class",)

    def __init__(self, *, strength: float = 100.0, damping: float = 0.1) -> None:
        if strength < 0 or damping <= 0:
            raise UsageError(f"si: strength={strength} >= 0 and damping={damping} > 0 are needed")
        super().__init__(strength)
        self.damping = damping

    def start(self, learner: Learner, experience: Experience) -> None:
        super().start(learner, experience)
        self.remember("omega", {name: torch.zeros_like(p) for name, p in learner.network().items()})

    def moved(self, gradient: dict[str, Tensor], before: dict[str, Tensor], change: dict[str, Tensor]) -> None:
        omega = self.recall("omega")
        for name, g in gradient.items():
            omega[name].addcmul_(g, change[name], value=-1)

    def finish(self, learner: Learner, experience: Experience) -> None:
        omega, importance, anchor = self.recall("omega"), self.penalty.importance, self.penalty.anchor
        for name, p in learner.network().items():
            share = omega[name] / ((p.detach() - anchor[name]).square() + self.damping)
            importance[name] = (importance[name] + share).relu()
        self.penalty.hold(importance, anchor)
