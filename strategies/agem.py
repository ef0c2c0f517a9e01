"""Averaged gradient episodic memory (Chaudhry et al. 2019, "Efficient Lifelong Learning with A-GEM", ICLR)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from clplat.batch import Batch, Part
from clplat.errors import UsageError
from clplat.memory import ReservoirMemory
from clplat.strategy import Strategy

if TYPE_CHECKING:
    from clplat.learner import Learner
    from clplat.scenario import Experience


class AGEM(Strategy):
    """A-GEM: never step against the average gradient on a memory of past experiences.

    With g the gradient of the step and g_ref that of a random batch from the memory (eq. 11)::

        g <- g - (g.g_ref / g_ref.g_ref) g_ref     if g.g_ref < 0, else g

    Both are gradients over the global batch, so every rank makes the same projection. The memory is a reservoir over
    the samples of the experiences before the current one (the paper keeps equal numbers of each task; a reservoir does
    so in the mean when experiences are equally large).

    Args:
        memory: samples in the memory.
        batch_size: samples drawn from the memory in each step.
    """

    needs = ("boundaries",)

    def __init__(self, *, memory: int = 200, batch_size: int = 64) -> None:
        super().__init__()
        if batch_size < 1:
            raise UsageError(f"agem: batch_size={batch_size}: at least 1 is needed")
        self.batch_size = batch_size
        self.memory = ReservoirMemory(memory)

    def edit_gradients(self, learner: Learner) -> None:
        if not len(self.memory):
            return
        learning = [p for p in learner.parameters() if p.requires_grad and p.grad is not None]
        gradients = [p.grad for p in learning if p.grad is not None]
        reference = learner.auxiliary_gradients(self._batch(learner), learning)
        along = sum((g * r).sum() for g, r in zip(gradients, reference, strict=True))
        size = sum(r.square().sum() for r in reference)
        # Where g_ref is 0 there is nothing to step against, and the quotient would not be a number.
        against = torch.as_tensor(along) < 0
        share = torch.where(against, torch.as_tensor(along) / torch.where(against, torch.as_tensor(size), 1.0), 0.0)
        for g, r in zip(gradients, reference, strict=True):
            g.sub_(share * r)

    def finish(self, learner: Learner, experience: Experience) -> None:
        x, y, task = experience.dataset.rows(slice(None))
        draws = learner.generator(f"{self.name}/reservoir", experience.current_experience)
        self.memory.add({"x": x.to(next(learner.parameters()).dtype), "y": y, "task": task}, draws)

    def _batch(self, learner: Learner) -> Batch:
        index = self.memory.draw(self.batch_size, learner.generator(f"{self.name}/draw", learner.step))
        local = learner.ranks.part(len(index))
        rows = {name: t.to(learner.ranks.device) for name, t in self.memory.rows(index[local]).items()}
        part = Part(self.name, rows["x"], rows["y"], rows["task"], index, local)
        return Batch([part], experience=-1, epoch=0, step=learner.step)
