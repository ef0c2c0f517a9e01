"""AdaMerging (Yang et al. 2024, "Adaptive Model Merging for Multi-Task Learning", ICLR; arXiv 2310.02575)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from clplat.errors import UsageError
from clplat.heads.head import GrowingHead
from clplat.merging import Merged, merged_names, ties
from clplat.scenario import TensorData
from clplat.state import grown
from clplat.strategy import Phase

if TYPE_CHECKING:
    from clplat.batch import Batch
    from clplat.learner import Learner
    from clplat.scenario import Experience


class AdaMerging(Merged):
    """AdaMerging: learn from unlabelled samples how much of each task's change to merge, by the entropy of the answers.

    With theta_0, theta_k and tau_k as in task arithmetic, K experiences so far and one coefficient for each tensor l
    and vector (layer-wise, equations 4 and 5 of the paper), or for each vector (task-wise)::

        theta^l = theta_0^l + sum_k clamp(lambda_k^l, 0, 1) tau_k^l
        lambda = argmin  mean_x H(softmax(f_theta(x))),   H(p) = -sum_c p_c log p_c

    Coefficients start at 0.3. A clamped one gets no gradient, as in the authors' code. They are learned after each
    experience in a phase of its own, in which nothing else moves, by the run's own optimiser (Adam in the paper) at the
    rate ``lr``. The paper takes unlabelled *test* inputs of all tasks and sums the entropies of their batches; here a
    few training inputs of each experience are kept, without labels, equally many of each where there are enough, and
    mixed in the batches, which in the mean differs by the factor K only. ``keep`` makes it AdaMerging++: the vectors
    first go through TIES (Yadav et al. 2023). All vectors are stored: memory grows by a network with each experience.

    It needs vectors that are small beside theta_0 (``pretrain``, short trainings). Small networks trained from scratch
    interfere: the entropy then falls by confident mistakes, and fixed coefficients are better (measured on split
    digits, 3 tasks, hidden 64: 0.87 against 0.91).

    Args:
        per: what has a coefficient of its own.
        initial: where coefficients start.
        lr: learning rate of the coefficients; null takes the optimiser's own.
        epochs: passes over the kept samples (500 steps of batches of 16 of each task in the paper).
        samples: unlabelled inputs kept of each experience.
        keep: share of each vector's entries that TIES keeps, those of largest size; null merges the vectors whole.
    """

    kinds: ClassVar[Mapping[str, str]] = {"unlabelled": "memory"}

    needs = ("boundaries", "classes")

    def __init__(
        self,
        *,
        per: Literal["layer", "task"] = "layer",
        initial: float = 0.3,
        lr: float | None = 0.01,
        epochs: int = 20,
        samples: int = 100,
        keep: float | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if not 0 <= initial <= 1 or min(epochs, samples) < 1:
            raise UsageError(
                f"adamerging: 0 <= initial={initial} <= 1, epochs={epochs} >= 1 and samples={samples} >= 1 are needed"
            )
        if (keep is not None and not 0 < keep <= 1) or (lr is not None and lr <= 0):
            raise UsageError(f"adamerging: keep={keep} must be above 0 and at most 1, and lr={lr} above 0")
        self.per, self.initial, self.lr, self.epochs, self.samples, self.keep = per, initial, lr, epochs, samples, keep
        self.coefficients = nn.ParameterList()  # one for each vector: a number for each tensor, or one
        self._parts: tuple[int, list[dict[str, Tensor]]] | None = None  # what is merged, by experience

    def adapt(self, learner: Learner, experience: Experience) -> None:
        if isinstance(learner.head, GrowingHead):  # as the engine does next: there is a coefficient for each tensor
            learner.head.grow(1 + max(experience.classes_in_this_experience))
        size = len(merged_names(learner)) if self.per == "layer" else 1
        if self.vectors(experience) > 0:
            self.coefficients.append(nn.Parameter(torch.full((size,), self.initial)))

    def start(self, learner: Learner, experience: Experience) -> None:
        super().start(learner, experience)
        with torch.no_grad():
            for coefficient in self.coefficients:
                coefficient.fill_(self.initial)
        draws = learner.generator(f"{self.name}/unlabelled", experience.current_experience)
        chosen = torch.randperm(len(experience.dataset), generator=draws)[: self.samples]
        x, _, task = experience.dataset.rows(chosen)
        new = TensorData(x, torch.zeros(len(x), dtype=torch.long), task.cpu())
        new = new.to(learner.ranks.device, next(learner.parameters()).dtype)
        held = self.recall("unlabelled")
        rows = {"x": new.x, "task": new.task}
        self.remember("unlabelled", {n: torch.cat([held[n], t]) if held else t for n, t in rows.items()})

    def phases(self, learner: Learner, experience: Experience) -> Sequence[Phase]:
        held = self.recall("unlabelled")
        data = TensorData(held["x"], torch.zeros_like(held["task"]), held["task"])
        learned = list(self.coefficients)
        merge = Phase("merge", loss=self._entropy, parameters=learned, data=data, epochs=self.epochs, lr=self.lr)
        return [Phase("train"), merge] if learned else [Phase("train")]

    def param_groups(self, learner: Learner) -> Iterable[dict[str, Any]]:
        return []  # coefficients learn in their own phase only

    def _entropy(self, learner: Learner, batch: Batch) -> Tensor:
        assert learner.experience is not None
        if self._parts is None or self._parts[0] != learner.experience.current_experience:
            self._parts = (learner.experience.current_experience, self._vectors(learner, self.vector(learner)))
        base = self.recall("base")
        weights = {**self._merged(base, self._parts[1]), **self.heads(learner, learner.experience)}
        logits = learner.output_with(weights, batch.x, batch.task).logits
        log_p = logits.masked_fill(logits == -torch.inf, -1e4).log_softmax(-1)  # classes that are not there: p = 0
        return -(log_p.exp() * log_p).sum(-1)

    def merge(
        self, learner: Learner, experience: Experience, base: dict[str, Tensor], vector: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        with torch.no_grad():
            merged = self._merged(base, self._vectors(learner, vector))
        self.remember(f"vector/{len(self.coefficients) - 1}", vector)
        return merged

    def _vectors(self, learner: Learner, newest: dict[str, Tensor]) -> list[dict[str, Tensor]]:
        """The vectors of all experiences so far, each as large as the network is now."""
        old = [self.recall(f"vector/{k}") for k in range(len(self.coefficients) - 1)]
        found = [{name: grown(v[name], torch.zeros_like(t)) for name, t in newest.items()} for v in old]
        return [*found, newest] if self.keep is None else ties([*found, newest], self.keep)

    def _merged(self, base: dict[str, Tensor], vectors: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        names = list(vectors[-1])
        shares = [c.clamp(0, 1).expand(len(names)) for c in self.coefficients]
        return {
            name: base[name]
            + torch.stack([share[i] * v[name] for share, v in zip(shares, vectors, strict=True)]).sum(0)
            for i, name in enumerate(names)
        }
