"""Learning without forgetting (Li and Hoiem 2016, ECCV; arXiv 1606.09282)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from clplat.distillation import Taught
from clplat.errors import UsageError
from clplat.heads.head import PerTaskHead

if TYPE_CHECKING:
    from clplat.batch import Batch
    from clplat.learner import Learner, Output
    from clplat.scenario import Experience


class LwF(Taught):
    """Learning without forgetting: on new data, answer for old classes as the network before did.

    At the start of each experience the network becomes a frozen teacher; then for each sample (eq. 2 and 3, with the
    Kullback-Leibler divergence in place of the cross-entropy, which differs by a constant)::

        L + alpha * sum_{old heads} KL( softmax(z_teacher / T) || softmax(z / T) )

    over the classes seen before: the heads of old tasks where the task label is given, else the old classes of the one
    head.

    Args:
        alpha: weight of the distillation; lambda_o in the paper.
        temperature: T.
    """

    needs = ("boundaries", "classes")

    def __init__(self, *, alpha: float = 1.0, temperature: float = 2.0) -> None:
        super().__init__()
        if alpha < 0 or temperature <= 0:
            raise UsageError(f"lwf: alpha={alpha} >= 0 and temperature={temperature} > 0 are needed")
        self.alpha, self.temperature = alpha, temperature
        self.seen: dict[int, list[int]] = {}  # classes by task label, of the experiences before

    def start(self, learner: Learner, experience: Experience) -> None:
        if self.seen:
            self.keep_teacher(learner)

    def loss(self, learner: Learner, batch: Batch, output: Output) -> dict[str, Tensor]:
        old = self.ask_teacher(learner, batch)
        if old is None:
            return {}
        teacher = self.recall("teacher")
        divergences = [
            self._divergence(
                self._logits(learner, old, task, teacher)[:, classes],
                self._logits(learner, output, task)[:, classes],
            )
            for task, classes in self.seen.items()
        ]
        return {"distillation": self.alpha * torch.stack(divergences).sum(0)}

    def _logits(self, learner: Learner, output: Output, task: int, weights: dict[str, Tensor] | None = None) -> Tensor:
        """Logits of one task's head, where there are several, on features made already."""
        if not isinstance(learner.head, PerTaskHead):
            return output.logits
        label = torch.full((len(output.features),), task, device=output.features.device)
        if weights is None:
            logits: Tensor = learner.head(output.features, label)
        else:
            own = {name.removeprefix("head."): w for name, w in weights.items() if name.startswith("head.")}
            logits = torch.func.functional_call(learner.head, own, (output.features, label))
        return logits

    def _divergence(self, teacher_NC: Tensor, student_NC: Tensor) -> Tensor:
        log_p, log_q = (z.div(self.temperature).log_softmax(-1) for z in (teacher_NC, student_NC))
        return (log_p.exp() * (log_p - log_q)).sum(-1)

    def finish(self, learner: Learner, experience: Experience) -> None:
        classes = set(self.seen.get(experience.task_label, [])) | set(experience.classes_in_this_experience)
        self.seen[experience.task_label] = sorted(classes)

    def get_extra_state(self) -> dict[str, Any]:
        return {"seen": self.seen}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.seen = state["seen"]
