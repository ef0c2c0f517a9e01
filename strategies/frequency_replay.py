"""Replay of the classes that come back most rarely (Lesort et al. 2023, "Challenging Common Assumptions about
Catastrophic Forgetting and Knowledge Accumulation", CoLLAs, arXiv 2207.04543, and the authors' code,
TLESORT/SCoLe-SCaling-Continual-Learning)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor

from clplat.errors import UsageError
from clplat.memory import group_keys
from clplat.scenario import TensorData
from clplat.strategy import Phase, Strategy

if TYPE_CHECKING:
    from clplat.learner import Learner
    from clplat.scenario import Experience

Group = tuple[int, int]  # task label and class
RARE = 3  # visits before a class may be replayed
LEAST = 20  # a visit renews one in so many of a class's samples, or more


class FrequencyReplay(Strategy):
    """Frequency replay: beside the classes of an experience train on stored samples of those visited most rarely.

    An experience has k classes; its training data are its own and all that is stored of up to k others, those with the
    fewest visits v first, of which::

        v >= 3        low < v / e <= high        e: experiences before this one

    A class that is too rare (noise, perhaps) or frequent enough is left to the stream. ``random`` takes others at
    random from all that were seen instead: each of the k with probability ``budget``. Visits are those by the stream
    and by replay, as there.

    After its experience a class is stored: ``size`` of its samples at the first visit, or all if there are fewer; later
    ones replace ``max(size / (v + 1), size / 20)`` of what is held, whole numbers below, by as many new ones at random.
    What the authors weigh by accuracy (their ``freq_acc``) is not here. In a task-incremental stream a class is one of
    a task.

    ``results.json`` reports the classes that each experience replayed.

    Args:
        choose: which classes are replayed.
        size: samples that are stored of a class.
        low: classes that are as rare, as a share of the experiences, are not replayed.
        high: classes that are more frequent are not replayed.
        budget: of ``random``, the probability for each of the experience's classes that another is replayed.
    """

    needs = ("boundaries", "classes")
    kinds: ClassVar[Mapping[str, str]] = {"group": "memory"}

    def __init__(
        self,
        *,
        choose: Literal["frequency", "random"] = "frequency",
        size: int = 200,
        low: float = 0.01,
        high: float = 0.1,
        budget: float = 1.0,
    ) -> None:
        super().__init__()
        problems = []
        if size < 1:
            problems.append(f"frequency-replay: size={size}: at least 1 is needed")
        if not 0 <= low < high <= 1:
            problems.append(f"frequency-replay: 0 <= low={low} < high={high} <= 1 is needed")
        if not 0 < budget <= 1:
            problems.append(f"frequency-replay: budget={budget}: a probability above 0 is needed")
        if problems:
            raise UsageError(*problems)
        self.choose, self.size, self.low, self.high, self.budget = choose, size, low, high, budget
        self.visits: dict[Group, int] = {}
        self.replayed: list[list[Group]] = []  # of each experience that is over

    def phases(self, learner: Learner, experience: Experience) -> Sequence[Phase]:
        chosen = self.chosen(learner, experience)
        if not chosen:
            return [Phase("train")]
        own = experience.dataset.rows(slice(None))
        held = [self._held(group) for group in chosen]
        columns = [
            torch.cat([new, *(rows[name].to(new) for rows in held)])
            for name, new in zip(("x", "y", "task"), own, strict=True)
        ]
        return [Phase("train", data=TensorData(*columns))]

    def chosen(self, learner: Learner, experience: Experience) -> list[Group]:
        """The classes that an experience replays."""
        current = self._current(experience)
        others = [group for group in self.visits if group not in current]
        if self.choose == "random":
            source = learner.generator(f"{self.name}/choose", experience.current_experience)
            many = int((torch.rand(len(current), generator=source) < self.budget).sum())
            return [others[i] for i in torch.randperm(len(others), generator=source)[:many].tolist()]
        e = experience.current_experience
        fitting = [
            (visits, group)
            for group in others
            if (visits := self.visits[group]) >= RARE and self.low < visits / e <= self.high
        ]
        return [group for _, group in sorted(fitting)[: len(current)]]

    def finish(self, learner: Learner, experience: Experience) -> None:
        chosen, current = self.chosen(learner, experience), self._current(experience)
        data = experience.dataset
        keys = group_keys({"task": data.task, "y": data.y})
        for group in current:
            rows = torch.tensor([i for i, key in enumerate(keys) if key == group])
            source = learner.generator(f"{self.name}/store", experience.current_experience, *group)
            self._store(group, data.subset(rows[torch.randperm(len(rows), generator=source)]), source)
        for group in (*current, *chosen):
            self.visits[group] = self.visits.get(group, 0) + 1
        self.replayed.append(chosen)

    def _store(self, group: Group, shuffled: TensorData, source: torch.Generator) -> None:
        held = self._held(group)
        many = max(self.size // (self.visits.get(group, 0) + 1), self.size // LEAST) if held else self.size
        new = dict(zip(("x", "y", "task"), shuffled.rows(slice(0, many)), strict=True))
        if held:
            slots = torch.randperm(len(held["y"]), generator=source)[: len(new["y"])]
            new = {
                name: tensor.index_copy(0, slots.to(tensor.device), new[name][: len(slots)].to(tensor))
                for name, tensor in held.items()
            }
        self.remember(self._key(group), new)

    def _held(self, group: Group) -> dict[str, Tensor]:
        return self.recall(self._key(group))

    def _key(self, group: Group) -> str:
        return f"group/{group[0]}/{group[1]}"

    def _current(self, experience: Experience) -> list[Group]:
        return [(experience.task_label, c) for c in experience.classes_in_this_experience]

    def report(self) -> dict[str, Any]:
        return {"replayed": [[c for _, c in groups] for groups in self.replayed]}

    def get_extra_state(self) -> dict[str, Any]:
        return {"visits": self.visits, "replayed": self.replayed}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.visits, self.replayed = dict(state["visits"]), list(state["replayed"])
