"""The quadratic pull on the weights that importance regularisation adds, and the path of the weights that some of its
importances are made of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from clplat import sharding
from clplat.state import Remembering, grown, overlap
from clplat.strategy import Strategy

if TYPE_CHECKING:
    from clplat.batch import Batch
    from clplat.learner import Learner, Output
    from clplat.scenario import Experience


class Quadratic(Remembering):
    """``sum_i A_i (theta_i - m_i)^2`` with importances A and anchors m, by parameter name.

    Parameters that have grown since are pulled where they were there already.
    """

    kinds: ClassVar[Mapping[str, str]] = {"importance": "importances", "anchor": "importances"}

    def __init__(self) -> None:
        super().__init__()
        # By names: first anchor, importances and anchors side by side; made when needed.
        self._flat: dict[tuple[str, ...], tuple[Tensor, ...]] = {}

    def __bool__(self) -> bool:
        return bool(self.recall("anchor"))

    @property
    def importance(self) -> dict[str, Tensor]:
        """A by parameter name; empty at first."""
        return self.recall("importance")

    @property
    def anchor(self) -> dict[str, Tensor]:
        """m by parameter name; empty at first."""
        return self.recall("anchor")

    def hold(self, importance: Mapping[str, Tensor], anchor: Mapping[str, Tensor]) -> None:
        """Replace A and m; both have the same names."""
        self._flat = {}
        self.remember("importance", importance)
        self.remember("anchor", {name: anchor[name].detach().clone() for name in importance})

    def held(self, network: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A in the shapes that the network has now: 0 for what is new."""
        old = self.importance
        zeros = {name: torch.zeros_like(p, requires_grad=False) for name, p in network.items()}
        return {name: grown(old[name], zero) if name in old else zero for name, zero in zeros.items()}

    def forward(self, network: Mapping[str, Tensor]) -> Tensor:
        """The value at a network's weights, a scalar that is equal on all ranks."""
        anchor = self.anchor
        pieces = tuple(name for name, old in anchor.items() if sharding.is_cut(old))
        rest = tuple(name for name in anchor if name not in pieces)
        found = self._sum(network, anchor, rest) if rest else next(iter(anchor.values())).new_zeros(())
        return found + sharding.total(self._sum(network, anchor, pieces)) if pieces else found

    def _sum(self, network: Mapping[str, Tensor], anchor: Mapping[str, Tensor], names: tuple[str, ...]) -> Tensor:
        """Over some parameters; of those that are cut among the ranks over this rank's pieces."""
        first = anchor[names[0]]
        if names not in self._flat or self._flat[names][0] is not first:  # new after hold, a load, a move
            importance = self.importance
            flat = (torch.cat([sharding.local(of[name]).flatten() for name in names]) for of in (importance, anchor))
            self._flat[names] = (first, *flat)
        _, importance_P, anchor_P = self._flat[names]
        theta = torch.cat([sharding.local(overlap(network[name], anchor[name])).flatten() for name in names])
        return (importance_P * (theta - anchor_P).square()).sum()

    def gradient(self, network: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """``2 A (theta - m)`` in the shapes of the network, without autograd; empty if nothing is held."""
        found = {}
        for name, importance in self.importance.items():
            now = network[name].detach()
            pull = 2 * importance * (overlap(now, importance) - self.anchor[name])
            found[name] = grown(pull, torch.zeros_like(now))
        return found


class PathStrategy(Strategy):
    """Base of strategies whose importances come from the path that the weights take, and which pull by them::

        L + strength * sum_i A_i (theta_i - m_i)^2

    Each optimiser step is handed to :meth:`moved`: the weights before and after it, as they really are, whatever the
    optimiser, its momentum or clipping made of the gradient; and the gradient without that of the strategy's own pull,
    which is known in closed form and so costs no further backward pass. What other strategies of a combination add to
    the loss counts as the task's.
    """

    def __init__(self, strength: float) -> None:
        super().__init__()
        self.strength, self.penalty = strength, Quadratic()
        self._step: dict[str, tuple[Tensor, Tensor]] = {}  # within one step: gradient and weights before it

    def loss(self, learner: Learner, batch: Batch, output: Output) -> dict[str, Tensor]:
        return {"penalty": self.strength * self.penalty(learner.network())} if self.penalty else {}

    def edit_gradients(self, learner: Learner) -> None:
        network = learner.network()
        pull = self.penalty.gradient(network)
        self._step = {}
        for name, p in network.items():
            if p.grad is not None:
                gradient = p.grad - self.strength * pull[name] if name in pull else p.grad.clone()
                self._step[name] = gradient, p.detach().clone()

    @torch.no_grad()
    def after_step(self, learner: Learner, batch: Batch) -> None:
        network, step = learner.network(), self._step
        self._step = {}
        before = {name: weight for name, (_, weight) in step.items()}
        change = {name: network[name].detach() - weight for name, weight in before.items()}
        self.moved({name: gradient for name, (gradient, _) in step.items()}, before, change)

    def moved(self, gradient: dict[str, Tensor], before: dict[str, Tensor], change: dict[str, Tensor]) -> None:
        """An optimiser step has been made; all by name, of the parameters that had a gradient.

        Args:
            gradient: of the loss without the pull, at the weights before; summed over ranks, before clipping.
            before: the weights before the step.
            change: what it made of them, less that.
        """
        raise NotImplementedError

    def start(self, learner: Learner, experience: Experience) -> None:
        """Pull to where the experience begins from now on; importances are those so far."""
        network = learner.network()
        self.penalty.hold(self.penalty.held(network), network)
