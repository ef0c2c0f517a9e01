"""Rehearsal as often as a natural environment brings things back (Gandhi, Shah, Marupudi and Varma 2024,
"Catastrophic Interference is Mitigated in Naturalistic Power-Law Learning Environments", arXiv 2401.10393 v1)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch

from clplat import recurrence
from clplat.apportion import apportion
from clplat.criterion import Criterion
from clplat.errors import UsageError
from clplat.metrics import measures
from clplat.scenario import TensorData
from clplat.strategy import Phase, Strategy

if TYPE_CHECKING:
    from clplat.batch import Batch
    from clplat.learner import Learner, Output
    from clplat.scenario import Experience


class PowerLawRehearsal(Strategy):
    """Power-law rehearsal: old experiences come back ever more rarely, as a power of their age.

    Experience e trains on one shuffled union of its own n samples and k_j samples of each older experience j, drawn
    anew without replacement. With the lag ``l_j = e - j`` and the environment's weight w::

        power        w(l) = (offset + l)^(-exponent)
        exponential  w(l) = exp(-l / decay)
        uniform      w(l) = 1
        none         w(l) = 0 for l > 0

    k_j is ``n w(l_j) / w(0)``, or, with a budget r, a share of ``r n`` in proportion to w(l_j): whole numbers by
    largest remainder, never more than j has (the others then get what is over). The defaults fit the counts of the
    authors' main environment (their code, archana53/power-law-for-CI) to one sample in a thousand. With exponent b,
    offset 0 and a budget it is the ``t^-b`` of the paper's text. Their budgeted power law has other weights,
    ``(10 + j)^4`` by position from the oldest; that is not offered. Nothing is stored: as in the paper, it is the
    environment that shows old samples again, so the data of old experiences must stay available.

    ``results.json`` reports how many samples of each older experience each experience asked for (``expected``, before
    whole numbers and what there is limit them) and showed (``realised``). It reports forward facilitation as well: in
    how many steps the accuracy on the own samples of the training batches (for values: their mean squared error), taken
    before each step and averaged over a window, reached a criterion, and how many times faster that was than on the
    first experience. The paper's criterion is not known.

    Args:
        environment: how rehearsal falls with the lag.
        exponent: of the power law.
        offset: experiences added to the lag under the power.
        decay: experiences in which the exponential falls to 1/e.
        budget: all rehearsed samples as a share of the experience's own, null for no limit.
        lag: experiences since the older one was introduced, or since samples of it were last trained on.
        criterion: accuracy (mean squared error) that counts as learned.
        window: optimiser steps over which it is averaged.
    """

    needs = ("boundaries",)

    def __init__(
        self,
        *,
        environment: Literal["power", "exponential", "uniform", "none"] = "power",
        exponent: float = 5.6,
        offset: float = 10.0,
        decay: float = 1.0,
        budget: float | None = None,
        lag: Literal["introduced", "trained"] = "introduced",
        criterion: float = 0.8,
        window: int = 5,
    ) -> None:
        super().__init__()
        if exponent < 0 or offset < 0 or decay <= 0 or (budget is not None and budget < 0) or window < 1:
            raise UsageError(
                f"power-law-rehearsal: exponent={exponent} >= 0, offset={offset} >= 0, decay={decay} > 0, "
                f"budget={budget} >= 0 (or null) and window={window} >= 1 are needed"
            )
        if environment == "power" and offset == 0 and budget is None:
            raise UsageError("power-law-rehearsal: offset=0 needs a budget: a lag of 0 would weigh infinitely much")
        self.environment, self.exponent, self.offset, self.decay = environment, exponent, offset, decay
        self.budget, self.lag = budget, lag
        self._seen: list[TensorData] = []  # no state: adapt is replayed on resume, and meets them all again
        self._last: list[int] = []  # the experience in which each was last trained on
        self.counts: list[int] = []  # of each older experience in the current one
        self.expected: list[list[float]] = []  # what the law says they are, of each experience; no state either
        self.realised: list[list[int]] = []  # what they were
        self.steps: list[int | None] = []  # to criterion, of each experience; None if it was not reached
        self.mastery = Criterion(criterion, window)
        self.first = -1  # the current experience's first step

    def attach(self, learner: Learner) -> None:
        self.mastery.smaller = measures.first_is_error(learner.target)

    def adapt(self, learner: Learner, experience: Experience) -> None:
        e = len(self._seen)
        self.expected.append(self._expected(e, len(experience.dataset)))
        self.counts = self._counts(e, len(experience.dataset))
        self.realised.append(self.counts)
        self._last = [e if count else last for count, last in zip(self.counts, self._last, strict=True)] + [e]
        self._seen.append(experience.dataset)

    def _counts(self, e: int, n: int) -> list[int]:
        most = [len(data) for data in self._seen]
        if self.budget is not None:
            return apportion(math.floor(self.budget * n), self._weights(e), most)
        return [min(math.floor(count), limit) for count, limit in zip(self._expected(e, n), most, strict=True)]

    def _expected(self, e: int, n: int) -> list[float]:
        """k_j as fractions."""
        weights = self._weights(e)
        if self.budget is not None:
            whole = sum(weights)
            return [math.floor(self.budget * n) * weight / whole if whole else 0.0 for weight in weights]
        first = self._weight(0) if self.environment == "power" else 1.0
        return [n * weight / first for weight in weights]

    def _weights(self, e: int) -> list[float]:
        return [self._weight(e - (j if self.lag == "introduced" else self._last[j])) for j in range(e)]

    def _weight(self, lag: int) -> float:
        if self.environment == "none":
            return 0.0
        law = {"exponent": self.exponent, "offset": self.offset, "decay": self.decay}
        return recurrence.weight(self.environment, lag, **law)

    def start(self, learner: Learner, experience: Experience) -> None:
        self.mastery.recent, self.first = [], learner.step
        self.steps.append(None)

    def phases(self, learner: Learner, experience: Experience) -> Sequence[Phase]:
        parts = [experience.dataset.rows(slice(None))]
        for j, count in enumerate(self.counts):
            draws = learner.generator(f"{self.name}/rehearse", experience.current_experience, j)
            parts.append(self._seen[j].rows(torch.randperm(len(self._seen[j]), generator=draws)[:count]))
        return [Phase("train", data=TensorData(*map(torch.cat, zip(*parts, strict=True))))]

    def observe(self, learner: Learner, batch: Batch, output: Output) -> None:
        if self.steps[-1] is not None:
            return
        stream = batch["stream"]
        own = (stream.index < len(self._seen[-1]))[stream.local].to(stream.y.device)
        parts = measures.first_parts(learner.target, batch.of("stream", output.logits)[own], stream.y[own])
        self.mastery.take(learner.ranks.all_reduce(parts), batch.micro)

    def after_step(self, learner: Learner, batch: Batch) -> None:
        if self.steps[-1] is None and self.mastery.reached:
            self.steps[-1] = batch.step + 1 - self.first

    def report(self) -> dict[str, Any]:
        first = self.steps[0] if self.steps else None
        facilitation = [first / steps if first and steps else None for steps in self.steps]
        return {
            "criterion": self.mastery.value,
            "steps_to_criterion": self.steps,
            "forward_facilitation": facilitation,
            "expected": self.expected,
            "realised": self.realised,
        }

    def get_extra_state(self) -> dict[str, Any]:
        return {"steps": self.steps, "recent": self.mastery.recent, "first": self.first}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.steps, self.mastery.recent, self.first = list(state["steps"]), list(state["recent"]), state["first"]
