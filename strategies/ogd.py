"""Orthogonal gradient descent (Farajtabar et al. 2020, "Orthogonal Gradient Descent for Continual Learning")."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from clplat.errors import UsageError
from clplat.fisher.definition import estimation, gradients
from clplat.projection import Changes, Projecting, common_parameters
from clplat.scenario import TensorData
from clplat.state import grown

if TYPE_CHECKING:
    from clplat.learner import Learner
    from clplat.scenario import Experience

DEPENDENT = 1e-4  # a vector of which less than this share is new adds no direction


class OGD(Projecting):
    """OGD: step only where the outputs on past samples do not change, to first order.

    After each experience take the gradient of the true class's logit at some of its samples (OGD-GTL, section 4 of the
    paper, which found it best), make them orthonormal to those before by Gram-Schmidt, and keep them as rows of B. From
    then on (algorithm 1)::

        B <- B and the normalised  v - B^T B v  for v = d f_y(x) / d theta
        g <- g - B^T B g

    theta are the parameters that tasks have in common, biases included. The optimiser's step is projected as well as
    the gradient, so that momentum does not lead out of the subspace. B takes as much memory as ``samples`` networks for
    each experience.

    Args:
        samples: gradients kept of each experience.
    """

    needs = ("boundaries", "classes")

    def __init__(self, *, samples: int = 100) -> None:
        super().__init__()
        if samples < 1:
            raise UsageError(f"ogd: samples={samples}: at least 1 is needed")
        self.samples = samples
        self._flat: tuple[Tensor, ...] = ()  # the first block of the basis, and all of them side by side

    def project(self, learner: Learner, change: Changes) -> Changes:
        basis = self.recall("basis")
        if not basis:
            return {}
        first = next(iter(basis.values()))
        if not self._flat or self._flat[0] is not first:
            self._flat = first, torch.cat([block.flatten(1) for block in self._basis(learner).values()], 1)
        basis_KP, network = self._flat[1], common_parameters(learner)
        whole = {name: change.get(name, torch.zeros_like(network[name])) for name in basis}
        change_P = torch.cat([whole[name].flatten() for name in basis])
        allowed_P = change_P - (basis_KP @ change_P) @ basis_KP
        pieces = zip(basis, allowed_P.split([whole[name].numel() for name in basis]), strict=True)
        return {name: piece.view_as(whole[name]) for name, piece in pieces if name in change}

    def _basis(self, learner: Learner) -> dict[str, Tensor]:
        """B by parameter, (K, *shape), with zeros for what has grown since."""
        network = common_parameters(learner)
        return {
            name: grown(block, block.new_zeros(len(block), *network[name].shape))
            for name, block in self.recall("basis").items()
        }

    def finish(self, learner: Learner, experience: Experience) -> None:
        network = common_parameters(learner)
        new_NP = self._logit_gradients(learner, experience).double()
        old = [block.flatten(1) for block in self._basis(learner).values()]
        basis_KP = orthonormal(torch.cat(old, 1).double() if old else new_NP[:0], new_NP).to(
            next(iter(network.values()))
        )
        blocks = basis_KP.split([p.numel() for p in network.values()], 1)
        self.remember("basis", {n: b.view(-1, *p.shape) for (n, p), b in zip(network.items(), blocks, strict=True)})

    def _logit_gradients(self, learner: Learner, experience: Experience) -> Tensor:
        """(samples, P): the gradient of the true class's logit at each sample, from whichever rank made it."""
        data = experience.dataset.to(learner.ranks.device, next(learner.parameters()).dtype)
        network = common_parameters(learner)
        draws = learner.generator(f"{self.name}/samples", experience.current_experience)
        chosen = TensorData(*data.rows(torch.randperm(len(data), generator=draws)[: self.samples]))
        found_NP = next(iter(network.values())).new_zeros(len(chosen), sum(p.numel() for p in network.values()))
        with estimation(learner, network):
            for rows in learner.batches(chosen, size=1):
                x, y, task = chosen.rows(rows)
                logit = learner(x, task)[0, y[0]]
                found_NP[rows] = torch.cat([g.flatten() for g in gradients(logit, network)])
        return learner.ranks.all_reduce(found_NP.detach())


def orthonormal(basis_KP: Tensor, new_NP: Tensor) -> Tensor:
    """The basis and what the new vectors add to its span; each is made orthogonal twice, since once loses digits."""
    rests_NP, added_NP, n = new_NP, torch.empty_like(new_NP), 0
    for _ in range(2):
        rests_NP = rests_NP - (rests_NP @ basis_KP.T) @ basis_KP
    for v_P, rest_P in zip(new_NP, rests_NP, strict=True):
        for _ in range(2):
            rest_P = rest_P - (added_NP[:n] @ rest_P) @ added_NP[:n]
        if rest_P.norm() > DEPENDENT * v_P.norm():
            added_NP[n], n = rest_P / rest_P.norm(), n + 1
    return torch.cat([basis_KP, added_NP[:n]])
