"""Scenarios made of scenarios: noisy labels, long tails, blurred boundaries, a single pass, tasks that come back.

Pure functions of a scenario and the seed. Test data stay as they are, and experiences are made when they are asked for.
Where the samples of an experience go on from one another (``Spec.contiguous``) parts are cut out of it in order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from clplat.arrange import shares, strata
from clplat.errors import UsageError
from clplat.metrics.measures import IGNORED
from clplat.randomness import generator
from clplat.scenario import Experience, LazyStream, Scenario, TensorData, changed, joined, task_labels


def _train(scenario: Scenario, change: Callable[[int, Experience], TensorData]) -> Scenario:
    """The scenario with each experience's training data changed."""
    stream = scenario.train_stream
    return changed(scenario, train_stream=LazyStream("train", lambda i: change(i, stream[i]), task_labels(stream)))


def _order(n: int, scenario: Scenario, seed: int, purpose: str, *numbers: int) -> Tensor:
    """Samples in the order in which parts are taken: at random, or as they are where one goes on from another."""
    if scenario.spec.contiguous:
        return torch.arange(n)
    return torch.randperm(n, generator=generator(seed, purpose, *numbers))


def reordered(scenario: Scenario, seed: int, order: Literal["random", "reversed"]) -> Scenario:
    """The same experiences in another order. Test experiences move along where each train experience has its own."""
    n = len(scenario.train_stream)
    drawn = torch.randperm(n, generator=generator(seed, "wrap/order")).tolist()
    places = drawn if order == "random" else list(reversed(range(n)))

    def moved(name: str, stream: Sequence[Experience]) -> LazyStream:
        labels = task_labels(stream)
        return LazyStream(name, lambda i: stream[places[i]].dataset, [labels[j] for j in places])

    other: dict[str, Any] = {"train_stream": moved("train", scenario.train_stream)}
    if len(scenario.valid_stream) == n:
        other["valid_stream"] = moved("valid", scenario.valid_stream)
    if scenario.tested == tuple(range(n)) and len(scenario.test_stream) == n:
        other["test_stream"] = moved("test", scenario.test_stream)
        other["slices"] = {name: moved("test", part) for name, part in scenario.slices.items()}
    else:
        other["tests"] = tuple(scenario.tested[j] for j in places)
    return changed(scenario, **other)


def validated(scenario: Scenario, seed: int, share: float) -> Scenario:
    """A share of each class of each experience's training samples becomes the validation stream.

    Raises:
        UsageError: the scenario has one.
    """
    if scenario.valid_stream:
        raise UsageError(f"scenario.validation={share}: this scenario has validation samples of its own")
    stream, labels = scenario.train_stream, task_labels(scenario.train_stream)

    def part(name: str) -> LazyStream:
        def make(i: int) -> TensorData:
            data = stream[i].dataset
            if scenario.spec.contiguous:
                kept = len(data) - round(len(data) * share)
                rows = {"train": torch.arange(kept), "valid": torch.arange(kept, len(data))}
            else:
                rows = shares(data.y, seed, f"wrap/validation/{i}", test=0.0, validation=share)
            return data.subset(rows[name])

        return LazyStream(name, make, labels)

    return changed(scenario, train_stream=part("train"), valid_stream=part("valid"))


def thinned(scenario: Scenario, seed: int, purpose: str, factor: Callable[[int, int], float]) -> Scenario:
    """A part of each class of each experience's training samples, one at least.

    Args:
        factor: share that is kept of a class, by (experience, label); of all samples alike, as label 0, where targets
            are no classes.
    """

    def change(i: int, experience: Experience) -> TensorData:
        data = experience.dataset
        kept = []
        for number, rows in enumerate(strata(data.y)):
            label = int(data.y[rows[0]]) if scenario.spec.target == "class" else 0
            n = min(len(rows), max(1, round(factor(i, label) * len(rows))))
            kept.append(rows[_order(len(rows), scenario, seed, purpose, i, number)[:n]])
        return data.subset(torch.cat(kept).sort().values)

    return _train(scenario, change)


def imbalanced(scenario: Scenario, seed: int, ratio: float, by: Literal["class", "experience"]) -> Scenario:
    """A long tail (Cui et al. 2019): the most frequent of n classes keeps all its training samples, the rarest 1 in
    ``ratio``, those between fall geometrically, in an order drawn by the seed. By experience: the first keeps all, the
    last 1 in ``ratio`` (the ordered long tail of Liu et al. 2022)."""
    n = len(scenario.train_stream)
    if by == "experience":
        return thinned(scenario, seed, "wrap/imbalance", lambda i, label: ratio ** (-i / max(1, n - 1)))
    if scenario.spec.target != "class":
        raise UsageError("scenario.imbalance_by=class needs classes, which these targets are not: choose experience")
    labels, width = task_labels(scenario.train_stream), scenario.spec.classes
    classes = width * scenario.tasks  # a label means another class in each task
    rank = torch.randperm(classes, generator=generator(seed, "wrap/imbalance/ranks")).tolist()
    return thinned(
        scenario,
        seed,
        "wrap/imbalance",
        lambda i, label: ratio ** (-rank[labels[i] * width + label] / max(1, classes - 1)),
    )


def mislabelled(scenario: Scenario, seed: int, share: float) -> Scenario:
    """A share of the training labels is replaced by another label of the same experience, all others being equally
    likely (symmetric noise); bits are flipped. So an experience shows no class that it would not show without noise.

    Raises:
        UsageError: targets are values, or an experience has one label only.
    """
    if scenario.spec.target not in ("class", "token", "bits"):
        raise UsageError(f"scenario.label_noise={share}: targets are no labels that could be mistaken for others")
    if any(len(experience.classes_in_this_experience) < 2 for experience in scenario.train_stream):
        raise UsageError(f"scenario.label_noise={share}: an experience with one label has no other to mistake it for")

    def change(i: int, experience: Experience) -> TensorData:
        data, source = experience.dataset, generator(seed, "wrap/label-noise", i)
        labels = torch.tensor(experience.classes_in_this_experience)
        y = data.y.flatten()
        asked = torch.nonzero(y != IGNORED).squeeze(1)
        wrong = asked[torch.randperm(len(asked), generator=source)[: round(share * len(asked))]]
        step = torch.randint(1, len(labels), (len(wrong),), generator=source)
        y = y.scatter(0, wrong, labels[(torch.searchsorted(labels, y[wrong]) + step) % len(labels)])
        return data.labelled(y.reshape(data.y.shape), data.task)

    return _train(scenario, change)


def blurred(scenario: Scenario, seed: int, how: Literal["neighbours", "gaussian"], amount: float) -> Scenario:
    """A stream without boundaries: training samples stray into other experiences, whose sizes stay. None is lost.

    neighbours: a share of each experience's samples changes places with samples of the experiences before and after it,
    half with each. gaussian: each sample comes at a time drawn around its experience with a standard deviation, in
    experiences, and the stream is cut into experiences by time (after the Gaussian schedules of Shanahan, Kaplanis and
    Mitrovic 2021 and Wang et al. 2022).

    Args:
        amount: the share, or the standard deviation.

    Raises:
        UsageError: task labels would tell where a sample is from, or its samples go on from one another.
    """
    if scenario.spec.setting == "task":
        raise UsageError("scenario.blur: task labels would tell where a sample is from; choose class or domain")
    if scenario.spec.contiguous:
        raise UsageError("scenario.blur: the samples of this scenario go on from one another")
    pool = joined([experience.dataset for experience in scenario.train_stream])
    sizes = [len(experience.dataset) for experience in scenario.train_stream]
    own = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    if how == "gaussian":
        source = generator(seed, "wrap/blur")
        noise = torch.randn(len(own), generator=source, dtype=torch.float64)
        times = own + torch.rand(len(own), generator=source, dtype=torch.float64) + amount * noise
        rows = list(times.argsort(stable=True).split(sizes))
    else:
        rows = list(torch.arange(len(own)).split(sizes))
        mixed = [rows[i][torch.randperm(n, generator=generator(seed, "wrap/blur", i))] for i, n in enumerate(sizes)]
        halves = [int(amount * n / 2) for n in sizes]  # each side's own, so that nobody strays further than one
        rows = [part.clone() for part in mixed]
        for i in range(len(sizes) - 1):
            n = min(halves[i], halves[i + 1])
            if n:
                rows[i][-n:], rows[i + 1][:n] = mixed[i + 1][:n], mixed[i][-n:]
    stream = LazyStream("train", lambda i: pool.subset(rows[i].sort().values), [0] * len(sizes))
    return changed(scenario, train_stream=stream, spec=replace(scenario.spec, boundaries=False))


def recurring(scenario: Scenario, seed: int, order: Sequence[int], samples: Literal["all", "split"]) -> Scenario:
    """A stream that visits experiences again and again; each visit is tested where its experience is.

    Args:
        order: the experience of each visit.
        samples: all: the same samples at each visit; split: each sample at one visit only.

    Raises:
        UsageError: an experience has fewer samples than visits.
    """
    stream, labels = scenario.train_stream, task_labels(scenario.train_stream)
    times: dict[int, int] = {}
    which = []  # of an experience's visits, each visit of the stream
    for j in order:
        which.append(times.get(j, 0))
        times[j] = which[-1] + 1

    def make(i: int) -> TensorData:
        j = order[i]
        data = stream[j].dataset
        if samples == "all":
            return data
        rows = _order(len(data), scenario, seed, "wrap/visits", j).tensor_split(times[j])[which[i]]
        return data.subset(rows.sort().values)

    if samples == "split":
        for j, n in times.items():
            if len(stream[j].dataset) < n:
                raise UsageError(
                    f"scenario.return_samples=split: experience {j} has {len(stream[j].dataset)} samples for {n} "
                    "visits; choose all, or fewer scenario.visits"
                )
    return changed(
        scenario,
        train_stream=LazyStream("train", make, [labels[j] for j in order]),
        tests=tuple(scenario.tested[j] for j in order),
    )


def online(scenario: Scenario, seed: int, n: int) -> Scenario:
    """Each experience in small ones of n samples (the last may have fewer), each sample once, without boundaries."""
    stream, labels = scenario.train_stream, task_labels(scenario.train_stream)
    pieces = [(e, start) for e in range(len(stream)) for start in range(0, len(stream[e].dataset), n)]

    def make(i: int) -> TensorData:
        e, start = pieces[i]
        data = stream[e].dataset
        return data.subset(_order(len(data), scenario, seed, "wrap/online", e)[start : start + n].sort().values)

    return changed(
        scenario,
        spec=replace(scenario.spec, boundaries=False),
        train_stream=LazyStream("train", make, [labels[e] for e, _ in pieces]),
        tests=tuple(scenario.tested[e] for e, _ in pieces),
        single_pass=True,
    )
