"""Homeostatic learning rate (Man, Damasio and Neven 2022, "Need is All You Need"; arXiv 2205.08645)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from clplat.errors import UsageError
from clplat.strategy import Strategy

if TYPE_CHECKING:
    from clplat.batch import Batch
    from clplat.learner import Learner, Output


class HomeostaticLR(Strategy):
    """A learner whose learning rate rises and falls with the classes that it meets, and that decides whether to let it.

    The upper half of the classes is excitatory, the lower half inhibitory: d(y) = +1 or -1. In each step the first
    sample (x, y) of the global batch of n asks a question; with g its gradient, y^ what the network takes it for, and
    s = step * eta_0 (authors' code)::

        leave it:  theta - eta g/n
        take it:   theta - (eta + s d(y^)) g/n
        if take it is right more often on the last samples before the batch:  eta <- max(eta + s d(y), floor)

    The rate moves by the true class, so that who mistakes an object moves it the wrong way: that is the vulnerability.
    The step itself is then the optimiser's, over the whole batch, with the new eta. ``random``, the authors' control,
    takes it with probability 1/2 unasked; nothing is decided before ``memory`` samples have been seen. The paper has
    plain gradient descent and n = 10; here the question is of plain descent, too, whatever optimiser steps.

    What the paper reports of labels that swap is not reproduced at the sizes that we could try (300 digits, an MLP of
    width 32, swaps between two random classes in training and test, validation accuracy over all epochs). With 20
    swaps in an epoch of 30 steps, eta_0 = 0.02 and step = 0.1, two seeds, both this and the control stay at chance
    (0.10), and no question is ever answered by taking it: s is so small that no remembered sample changes sides. With
    3 swaps, eta_0 = 0.1 and step = 0.5, three seeds, the control is ahead (0.41 against 0.30), since its rate drifts
    upwards; without swaps they are level (0.40). The paper has 60,000 images, 3000 of them between two swaps.

    Args:
        mode: decide, or move at random.
        step: s / eta_0, change of the rate in units of ``optimizer.lr``.
        memory: samples on which the two are judged.
        floor: least eta, in units of ``optimizer.lr`` (1e-8 at 1e-3 in the paper).
    """

    needs = ("classes",)

    def __init__(
        self,
        *,
        mode: Literal["homeostatic", "random"] = "homeostatic",
        step: float = 0.1,
        memory: int = 20,
        floor: float = 1e-5,
    ) -> None:
        super().__init__()
        if step < 0 or memory < 1 or not 0 < floor <= 1:
            raise UsageError(
                f"homeostatic-lr: step={step} >= 0, memory={memory} >= 1 and 0 < floor={floor} <= 1 needed"
            )
        self.mode, self.step, self.memory, self.floor = mode, step, memory, floor
        self.factor = 1.0  # eta / eta_0

    def lr_factor(self, learner: Learner) -> float:
        return self.factor

    def observe(self, learner: Learner, batch: Batch, output: Output) -> None:
        """The gradients are made and the step is still to come: decide, then remember the batch."""
        assert learner.data is not None
        rows = learner.data.rows(batch["stream"].index[-self.memory :])
        held = self.recall("last")
        if batch.micro == 0 and len(held.get("y", ())) == self.memory:
            index = batch["stream"].index
            first = learner.data.rows(index[:1])
            if self._takes(learner, held, first, len(index)):
                half = output.logits.shape[-1] / 2
                moved = self.factor + self.step * (1 if int(first[1]) >= half else -1)
                self.factor = max(moved, self.floor)
        new = dict(zip(("x", "y", "task"), rows, strict=True))
        self.remember("last", {n: torch.cat([held[n], t])[-self.memory :] if held else t for n, t in new.items()})

    def _takes(self, learner: Learner, held: dict[str, Tensor], first: tuple[Tensor, ...], n: int) -> bool:
        if self.mode == "random":
            return bool(torch.rand((), generator=learner.generator(f"{self.name}/take", learner.step)) < 0.5)
        x, y, task = first
        network = {name: p for name, p in learner.network().items() if p.requires_grad}
        logits = learner.output_with(network, x, task).logits
        loss = learner.base_loss(logits, y).sum() / n
        gradients = torch.autograd.grad(loss, list(network.values()), allow_unused=True)
        recognised = 1 if int(logits.argmax(-1)) >= logits.shape[-1] / 2 else -1
        rate, right = learner.learning_rate(), []
        with torch.no_grad():
            for factor in (self.factor, max(self.factor + self.step * recognised, self.floor)):
                pairs = zip(network.items(), gradients, strict=True)
                moved = {name: p if g is None else p - rate * factor * g for (name, p), g in pairs}
                answers = learner.output_with(moved, held["x"], held["task"]).logits.argmax(-1)
                right.append(int((answers == held["y"]).sum()))
        return right[1] > right[0]

    def get_extra_state(self) -> dict[str, Any]:
        return {"factor": self.factor}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.factor = state["factor"]
