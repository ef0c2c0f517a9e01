"""Rehearsal with distillation of features and predictions (Cappellazzo, Falavigna and Brutti 2023, Interspeech)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from clplat.distillation import Taught
from clplat.errors import UsageError
from clplat.heads.head import PerTaskHead
from clplat.memory import BalancedMemory
from clplat.scenario import TensorData
from clplat.strategy import Phase

if TYPE_CHECKING:
    from clplat.batch import Batch
    from clplat.learner import Learner, Output
    from clplat.scenario import Experience

Rows = Literal["none", "memory", "all"]


class RehearsalKD(Taught):
    """Rehearsal and two distillations: of features and of predictions, each on the memory's rows or on all.

    An epoch is a pass over the experience's data and the memory, shuffled together. With the network before the
    experience as teacher, f features, z logits, the K_old classes so far of K, and n_R rows of a batch of n from the
    memory (arXiv 2211.08161 and the authors' code)::

        L' = (1 - a) CE + a * mean_{rows, units} (f - f_teacher)^2
             + b * T^2 * mean_{rows, old classes} p_teacher (log p_teacher - log p)         p = softmax(z_old / T)

        weight a or b: sqrt(n_R / n) for a term on the memory's rows, ln(1 + K_old / K) for one on all rows

    Without the feature term the cross-entropy's weight is 1 - b. A term on the memory's rows has no weight in a batch
    that has none. Both means are over entries, as in the code, so the second is 1/K_old of the usual divergence. (The
    code takes the logarithm of a for all rows again in each batch, which looks like a slip; not so here.) The memory
    has equally many random samples of each class seen; the paper's other ways to select are left out.

    Args:
        memory: samples in the memory.
        features: rows on which features are distilled.
        predictions: rows on which predictions are distilled.
        temperature: T.
    """

    needs = ("boundaries", "classes")

    def __init__(
        self, *, memory: int = 930, features: Rows = "memory", predictions: Rows = "all", temperature: float = 1.0
    ) -> None:
        super().__init__()
        if memory < 1 or temperature <= 0:
            raise UsageError(f"rehearsal-kd: memory={memory} >= 1 and temperature={temperature} > 0 are needed")
        self.features, self.predictions, self.temperature = features, predictions, temperature
        self.memory = BalancedMemory(memory, by=("y",))
        self.seen: list[int] = []  # classes of the experiences before

    def attach(self, learner: Learner) -> None:
        if isinstance(learner.head, PerTaskHead):
            raise UsageError("rehearsal-kd distils one head's old classes: choose learner.head=shared or growing")

    def start(self, learner: Learner, experience: Experience) -> None:
        if self.seen:
            self.keep_teacher(learner)

    def phases(self, learner: Learner, experience: Experience) -> Sequence[Phase]:
        held = self.memory.rows(self.memory.slots())
        if not held:
            return [Phase("train")]
        pairs = zip(experience.dataset.rows(slice(None)), (held[name] for name in ("x", "y", "task")), strict=True)
        return [Phase("train", data=TensorData(*(torch.cat([new, old.cpu().to(new.dtype)]) for new, old in pairs)))]

    def base_loss(self, learner: Learner, batch: Batch, output: Output) -> Tensor:
        loss_N = super().base_loss(learner, batch, output)
        on = self.predictions if self.features == "none" else self.features
        return (1 - self._weight(learner, batch, on)) * loss_N

    def loss(self, learner: Learner, batch: Batch, output: Output) -> dict[str, Tensor]:
        old = self.ask_teacher(learner, batch)
        if old is None:
            return {}
        log_p, log_q = (z[:, self.seen].div(self.temperature).log_softmax(-1) for z in (old.logits, output.logits))
        divergence_N = self.temperature**2 * (log_p.exp() * (log_p - log_q)).mean(-1)
        distance_N = (output.features - old.features).square().mean(-1)
        wanted = {"features": (self.features, distance_N), "predictions": (self.predictions, divergence_N)}
        terms = {}
        for name, (on, values_N) in wanted.items():
            weight = self._weight(learner, batch, on)
            if weight and on == "memory":  # the mean over n rows becomes that over those of the memory
                from_memory = self._memory_rows(learner, batch)
                own_N = from_memory[batch["stream"].local].to(values_N)
                values_N = batch.on("stream", batch.of("stream", values_N) * own_N / from_memory.double().mean().item())
            if weight:
                terms[name] = weight * values_N
        return terms

    def _memory_rows(self, learner: Learner, batch: Batch) -> Tensor:
        """Which rows of the whole global batch come from the memory: they stand behind the experience's own."""
        assert learner.experience is not None
        return batch["stream"].index >= len(learner.experience.dataset)

    def _weight(self, learner: Learner, batch: Batch, on: Rows) -> float:
        if not self.seen or on == "none":
            return 0.0
        if on == "memory":
            return math.sqrt(float(self._memory_rows(learner, batch).double().mean()))
        assert learner.experience is not None
        classes = {*self.seen, *learner.experience.classes_in_this_experience}
        return math.log(1 + len(self.seen) / len(classes))

    def finish(self, learner: Learner, experience: Experience) -> None:
        data = experience.dataset.to(learner.ranks.device, next(learner.parameters()).dtype)
        x, y, task = data.rows(slice(None))
        draws = learner.generator(f"{self.name}/memory", experience.current_experience)
        self.memory.add({"x": x, "y": y, "task": task}, draws)
        self.seen = sorted({*self.seen, *experience.classes_in_this_experience})

    def get_extra_state(self) -> dict[str, Any]:
        return {"seen": self.seen}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.seen = state["seen"]
