"""What a setting makes of the labels of experiences that are given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from clplat.errors import UsageError
from clplat.scenario import Setting


@dataclass
class Labelled:
    """The labels of one experience's samples (N,), and its task label."""

    y: Tensor
    task: int

    @property
    def classes(self) -> list[int]:
        """The labels that occur."""
        return torch.unique(self.y).tolist()


def usual_setting(train: Sequence[Labelled]) -> Setting:
    """task where there are several task labels, domain where several experiences all have the same classes, else class
    (van de Ven et al. 2022)."""
    if len({part.task for part in train}) > 1:
        return "task"
    return "domain" if len(train) > 1 and all(part.classes == train[0].classes for part in train) else "class"


def relabel(streams: Mapping[str, Sequence[Labelled]], setting: Setting) -> list[int]:
    """Make labels what the setting wants, in place; returns the number of classes of each task, or experience.

    In ``class`` they stay as they are. In ``task`` and ``domain`` they become positions among the classes of their task
    or experience, in increasing order; without task labels each experience is a task of its own.

    Args:
        streams: train, and others that are empty or have an experience for each of train's.

    Raises:
        UsageError: test experiences are not those of training.
    """
    train = streams["train"]
    every = [part for parts in streams.values() for part in parts]
    if setting == "class":
        for part in every:
            part.task = 0
        return [len(part.classes) for part in train]
    same = all(part.classes == train[0].classes for part in train)
    if any(len(parts) not in (0, len(train)) for parts in streams.values()) and not (setting == "domain" and same):
        raise UsageError(
            f"scenario.setting={setting} needs a test experience for each of the {len(train)} training experiences, "
            f"but this benchmark has {len(streams['test'])}: choose scenario.setting=class"
        )
    own = len({part.task for part in train}) == 1  # no task labels: each experience is a task
    members: dict[int, set[int]] = {}
    for parts in streams.values():
        for number, part in enumerate(parts):
            part.task = number if own and not (setting == "domain" and same) else part.task
            members.setdefault(part.task, set()).update(part.classes)
    if sorted(members) != list(range(len(members))):
        raise UsageError(f"task labels should be 0, 1, 2, ..., but the benchmark's are {sorted(members)}")
    for part in every:
        part.y = torch.searchsorted(torch.tensor(sorted(members[part.task])), part.y)
    sizes = [len(members[task]) for task in sorted(members)]
    if setting == "domain":
        for part in every:
            part.task = 0
    return sizes
