"""Gradient episodic memory (Lopez-Paz and Ranzato 2017, "Gradient Episodic Memory for Continual Learning", NeurIPS)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from clplat.batch import Batch, Part
from clplat.errors import UsageError
from clplat.strategy import Strategy

if TYPE_CHECKING:
    from clplat.learner import Learner
    from clplat.scenario import Experience

RIDGE = 1e-3


class GEM(Strategy):
    """GEM: take the step nearest to the gradient that raises the loss on no past experience's memory.

    With g the gradient of the step and the rows of G those of the mean loss on each past experience's memory, all
    parameters side by side: if some ``<g, g_k> < 0``, solve the dual problem (eq. 11) and combine::

        min_v  1/2 v^T (G G^T + 1e-3 I) v + (G g)^T v   subject to v >= margin
        g <- G^T v + g

    The ridge and the margin, which pushes further away from the past than asked, are the authors' code's. The paper
    keeps the last samples of each task; here a random draw of each experience, which is the same in distribution where
    the order is random. An optimiser with momentum, moments or weight decay does not step along the projected gradient,
    so the promise holds for plain SGD. A step takes one more backward pass for each past experience.

    Args:
        memory: samples kept of each experience.
        margin: lower bound of v (memory strength in the paper, gamma in its algorithm).
    """

    kinds: ClassVar[Mapping[str, str]] = {"memory": "memory"}

    needs = ("boundaries",)

    def __init__(self, *, memory: int = 256, margin: float = 0.5) -> None:
        super().__init__()
        if memory < 1 or margin < 0:
            raise UsageError(f"gem: memory={memory} >= 1 and margin={margin} >= 0 are needed")
        self.size, self.margin = memory, margin

    def edit_gradients(self, learner: Learner) -> None:
        batches = self._batches(learner)
        if not batches:
            return
        learning = [p for p in learner.parameters() if p.requires_grad and p.grad is not None]
        g_P = torch.cat([p.grad.flatten() for p in learning if p.grad is not None]).double()
        g_KP = torch.stack(
            [torch.cat([g.flatten() for g in learner.auxiliary_gradients(b, learning)]).double() for b in batches]
        )
        along_K = g_KP @ g_P
        if bool((along_K >= 0).all()):
            return
        new_P = g_P + nearest(g_KP, along_K, self.margin) @ g_KP
        start = 0
        for p in learning:
            assert p.grad is not None
            p.grad.copy_(new_P[start : start + p.numel()].view_as(p))
            start += p.numel()

    def finish(self, learner: Learner, experience: Experience) -> None:
        data = experience.dataset
        draws = learner.generator(f"{self.name}/memory", experience.current_experience)
        x, y, task = data.rows(torch.randperm(len(data), generator=draws)[: self.size])
        rows = {"x": x.to(next(learner.parameters()).dtype) if x.is_floating_point() else x, "y": y, "task": task}
        self.remember(f"memory{experience.current_experience}", rows)

    def _batches(self, learner: Learner) -> list[Batch]:
        """This rank's share of each past experience's memory."""
        assert learner.experience is not None
        found = []
        for number in range(learner.experience.current_experience):
            rows = self.recall(f"memory{number}")
            n = len(rows["y"])
            local = learner.ranks.part(n)
            x, y, task = (rows[name][local].to(learner.ranks.device) for name in ("x", "y", "task"))
            part = Part(f"{self.name}/{number}", x, y, task, torch.arange(n), local)
            found.append(Batch([part], experience=number, epoch=0, step=learner.step))
        return found


def nearest(g_KP: Tensor, along_K: Tensor, margin: float) -> Tensor:
    """The v of the dual problem, in double precision on the CPU: with v = margin + u it is non-negative least squares,
    ``|| L^T u + L^-1 q ||`` for the Cholesky factor L of ``G G^T + ridge`` and q its linear term."""
    from scipy.optimize import nnls

    P_KK = (g_KP @ g_KP.T).cpu() + RIDGE * torch.eye(len(g_KP), dtype=torch.float64)
    q_K = along_K.cpu() + P_KK @ torch.full((len(g_KP),), margin, dtype=torch.float64)
    L_KK = torch.linalg.cholesky(P_KK)
    target_K = -torch.linalg.solve_triangular(L_KK, q_K[:, None], upper=False)[:, 0]
    u_K, _ = nnls(L_KK.T.numpy(), target_K.numpy())
    return torch.as_tensor(u_K + margin).to(g_KP)
