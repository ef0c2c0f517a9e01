"""One pool of samples becomes a stream of experiences: by classes, with or without task labels, or by random shares.

Everything here is a function of the data, the options and the seed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from clplat.errors import UsageError
from clplat.randomness import generator
from clplat.scenario import Scenario, Setting, Spec, TensorData, class_groups, stream

Arrangement = Literal["class", "task", "domain", "data"]


def shares(y: Tensor, seed: int, purpose: str, *, test: float, validation: float = 0.0) -> dict[str, Tensor]:
    """Indices of train, valid and test, drawn per class so that each has the same mix; none overlaps another.

    Args:
        y: labels (N,); targets of another kind are drawn from all samples alike.
        purpose: what the draws are called.
        test, validation: shares of the samples. Without a test share there is no test part: the test samples are
            elsewhere.

    Raises:
        UsageError: a share is out of range, or nothing is left to train on.
    """
    problems = [
        f"scenario.{name}={value}: a share between 0 and 1 is needed"
        for name, value in (("test", test), ("validation", validation))
        if not 0 <= value < 1
    ]
    if not problems and test + validation >= 1:
        problems.append(f"scenario.test={test} and scenario.validation={validation} leave nothing to train on")
    if problems:
        raise UsageError(*problems)
    parts: dict[str, list[Tensor]] = {"test": [], "valid": [], "train": []}
    for label, index in enumerate(strata(y)):
        index = index[torch.randperm(len(index), generator=generator(seed, purpose, label))]
        first, second = round(len(index) * test), round(len(index) * (test + validation))
        parts["test"].append(index[:first])
        parts["valid"].append(index[first:second])
        parts["train"].append(index[second:])
    return {name: torch.cat(index).sort().values for name, index in parts.items()}


def pools(
    pool: TensorData,
    seed: int,
    purpose: str,
    *,
    test: float = 0.2,
    validation: float = 0.0,
    test_pool: TensorData | None = None,
) -> dict[str, TensorData]:
    """A pool cut into train, valid and test; see :func:`shares`.

    Args:
        test_pool: the test samples, where they are apart from the others; then there is no share of the pool for them.
    """
    if test_pool is None and not test > 0:
        raise UsageError(f"scenario.test={test}: a share between 0 and 1 is needed")
    test = test if test_pool is None else 0.0
    found = {n: pool.subset(i) for n, i in shares(pool.y, seed, purpose, test=test, validation=validation).items()}
    return found if test_pool is None else {**found, "test": test_pool}


def class_order(classes: int, seed: int, purpose: str, order: Literal["natural", "random"]) -> list[int]:
    """In which order classes come: as they are numbered, or shuffled by the seed."""
    if order == "natural":
        return list(range(classes))
    return torch.randperm(classes, generator=generator(seed, purpose)).tolist()


def arrange(
    parts: Mapping[str, TensorData],
    spec: Spec,
    seed: int,
    purpose: str,
    *,
    setting: Arrangement,
    experiences: int,
    order: Literal["natural", "random"] = "natural",
) -> Scenario:
    """Make a stream of pools of samples, see :func:`pools`.

    Settings: ``class``, ``task`` and ``domain`` (van de Ven et al. 2022) give each experience some of the classes, in
    groups that differ by at most one in size. ``class``: one head over all classes. ``task``: the task label is given,
    and each task has a head of its own. ``domain``: no task label, one head over the position of a class within its
    experience. ``data``: each experience has a random share of all classes and of the samples of each; to strategies
    that is domain-incremental.

    Args:
        parts: train, test and valid, with labels 0 to ``spec.classes`` - 1; an empty one makes no stream.
        spec: of the pool, one head over all of it.
        purpose: what the draws are called.
        order: of the classes: as they are numbered, or shuffled by the seed.

    Raises:
        UsageError: more experiences than classes or samples, no labels to go by, or an experience that would have
            nothing to learn or to be tested on.
    """
    if experiences < 1:
        raise UsageError(f"scenario.experiences={experiences}: at least one is needed")
    if setting == "data":
        dealt = {name: _deal(part, experiences, seed, f"{purpose}/{name}") for name, part in parts.items()}
        return _scenario(replace(spec, setting="domain"), dealt)
    if spec.target != "class":
        raise UsageError(f"scenario.setting={setting} goes by classes, which these targets are not: choose data")
    if experiences > spec.classes:
        raise UsageError(f"scenario.experiences={experiences}: {spec.classes} classes make 1 to {spec.classes}")
    groups = class_groups(class_order(spec.classes, seed, purpose, order), experiences)
    streams = {
        name: [_of_classes(part, group, spec.classes, setting, task) for task, group in enumerate(groups)]
        for name, part in parts.items()
    }
    sizes = tuple(map(len, groups))
    width = spec.classes if setting == "class" else max(sizes)
    spec = replace(spec, classes=width, setting=setting, classes_per_task=sizes if setting == "task" else ())
    return _scenario(spec, streams)


def strata(y: Tensor) -> list[Tensor]:
    """Indices of the samples of each class; of all samples where targets are no classes."""
    if not len(y) or y.ndim > 1 or y.is_floating_point():
        return [torch.arange(len(y))]
    return [torch.nonzero(y == label).squeeze(1) for label in torch.unique(y)]


def _of_classes(part: TensorData, group: Sequence[int], classes: int, setting: Setting, task: int) -> TensorData:
    """The samples of some classes, labelled as the setting wants."""
    position = torch.full((classes,), -1)
    position[list(group)] = torch.arange(len(group))
    own = part.subset(torch.nonzero(position[part.y] >= 0).squeeze(1))
    return own.labelled(own.y if setting == "class" else position[own.y], task if setting == "task" else 0)


def _deal(part: TensorData, experiences: int, seed: int, purpose: str) -> list[TensorData]:
    """Random shares: the shuffled classes one behind the other, dealt out like cards, so that each share has as many
    of each class as any other, up to one, and as many samples in all."""
    cards = torch.cat(
        [
            rows[torch.randperm(len(rows), generator=generator(seed, purpose, i))]
            for i, rows in enumerate(strata(part.y))
        ]
    )
    return [part.subset(cards[e::experiences].sort().values) for e in range(experiences)]


def _scenario(spec: Spec, parts: Mapping[str, Sequence[TensorData]]) -> Scenario:
    there = {name: data for name, data in parts.items() if name in ("train", "test") or any(map(len, data))}
    problems = [
        f"experience {e} has no {name} samples: use fewer scenario.experiences, or another share"
        for name, data in there.items()
        for e, part in enumerate(data)
        if not len(part)
    ]
    if problems:
        raise UsageError(*problems)
    streams = {name: stream(name, data) for name, data in there.items()}
    return Scenario(spec, streams["train"], streams["test"], streams.get("valid", ()))
