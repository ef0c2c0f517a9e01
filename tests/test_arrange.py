"""Pools become streams: nothing lost, nothing shared between train, validation and test, the same for the same seed."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clplat.arrange import arrange, pools, shares
from clplat.errors import UsageError
from clplat.scenario import LazyData, Scenario, Spec, TensorData


def pool(counts: list[int], seed: int = 0) -> TensorData:
    """Samples (number, class) in random order."""
    y = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    y = y[torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))]
    return TensorData(torch.stack([torch.arange(len(y)), y], 1).float(), y)


def arranged(data: TensorData, classes: int, seed: int = 0, **options: Any) -> Scenario:
    cut = {key: options.pop(key) for key in ("test", "validation", "test_pool") if key in options}
    return arrange(pools(data, seed, "x", **cut), Spec((2,), classes, "class"), seed, "x", **options)


def rows(scenario: Scenario) -> dict[str, list[list[tuple[int, int]]]]:
    """(number, class) of each sample, by stream and experience."""
    streams = {"train": scenario.train_stream, "valid": scenario.valid_stream, "test": scenario.test_stream}
    return {n: [[tuple(map(int, row)) for row in e.dataset.x.tolist()] for e in s] for n, s in streams.items()}


@settings(max_examples=60)
@given(
    counts=st.lists(st.integers(5, 12), min_size=3, max_size=7),
    experiences=st.integers(1, 3),
    setting=st.sampled_from(["class", "task", "domain", "data"]),
    order=st.sampled_from(["natural", "random"]),
    validation=st.sampled_from([0.0, 0.3]),
    seed=st.integers(0, 5),
)
def test_every_sample_is_in_one_experience_of_one_stream(
    counts: list[int], experiences: int, setting: Any, order: Any, validation: float, seed: int
) -> None:
    data = pool(counts)
    options: dict[str, Any] = {"setting": setting, "experiences": experiences, "order": order}
    scenario = arranged(data, len(counts), seed, validation=validation, **options)
    found = rows(scenario)
    everything = [row for experiences in found.values() for one in experiences for row in one]
    assert Counter(everything) == Counter((i, c) for i, c in enumerate(data.y.tolist()))
    assert bool(found["valid"]) == (validation > 0)
    assert found == rows(arranged(data, len(counts), seed, validation=validation, **options))
    groups = [sorted({c for _, c in one}) for one in found["train"]]
    for name, parts in found.items():
        for e, one in enumerate(parts):
            experience = getattr(scenario, f"{name}_stream")[e]
            if setting == "data":
                continue
            assert {c for _, c in one} <= set(groups[e])
            expected = [c if setting == "class" else position(groups[e], c, order, experience) for _, c in one]
            assert experience.dataset.y.tolist() == expected
            assert experience.task_label == (e if setting == "task" else 0)
    sizes = [len(group) for group in groups]
    if setting == "data":
        assert scenario.spec.setting == "domain"
        assert scenario.spec.classes == len(counts)
        lengths = [len(one) for one in found["train"]]
        assert max(lengths) - min(lengths) <= 1
        for c in range(len(counts)):
            of_class = [sum(row[1] == c for row in one) for one in found["train"]]
            assert max(of_class) - min(of_class) <= 1
    else:
        assert sorted(c for group in groups for c in group) == list(range(len(counts)))
        assert max(sizes) - min(sizes) <= 1
        assert scenario.spec.classes == (len(counts) if setting == "class" else max(sizes))
        assert scenario.spec.classes_per_task == (tuple(sizes) if setting == "task" else ())


def position(group: list[int], c: int, order: str, experience: Any) -> int:
    """The label of a class within its experience; with a random order any, but always the same one."""
    if order == "natural":
        return group.index(c)
    data = experience.dataset
    (label,) = set(data.y[data.x[:, 1] == c].tolist())
    return label


def test_each_class_gives_its_share_to_every_part() -> None:
    y = pool([40, 100, 20]).y
    parts = shares(y, 3, "x", test=0.25, validation=0.1)
    for name, share in {"train": 0.65, "valid": 0.1, "test": 0.25}.items():
        assert torch.bincount(y[parts[name]]).tolist() == [round(share * n) for n in (40, 100, 20)]
    assert not torch.equal(parts["test"], shares(y, 4, "x", test=0.25, validation=0.1)["test"])


def test_the_order_of_classes_comes_from_the_seed() -> None:
    def order(seed: int, of: str) -> list[tuple[int, ...]]:
        scenario = arranged(pool([9] * 6), 6, seed, setting="class", experiences=6, order=of)
        return [experience.classes_in_this_experience for experience in scenario.train_stream]

    assert order(0, "natural") == [(c,) for c in range(6)] != order(1, "random")
    assert order(1, "random") == order(1, "random") != order(2, "random")


def test_test_samples_of_their_own_stay_whole() -> None:
    train, test = pool([10, 10]), TensorData(torch.tensor([[100.0, 0], [101, 1]]), torch.tensor([0, 1]))
    found = rows(arranged(train, 2, setting="class", experiences=2, test_pool=test))
    assert found["test"] == [[(100, 0)], [(101, 1)]]
    assert sum(map(len, found["train"])) == 20


def test_samples_are_loaded_when_they_are_asked_for() -> None:
    held, asked = pool([8, 8]), []

    def load(i: int) -> torch.Tensor:
        asked.append(i)
        return held.x[i]

    options: dict[str, Any] = {"setting": "task", "experiences": 2, "validation": 0.25}
    lazy = arranged(LazyData(load, held.y), 2, **options)
    assert not asked
    assert isinstance(lazy.train_stream[1].dataset, LazyData)
    assert rows(lazy) == rows(arranged(held, 2, **options))
    assert [e.task_label for e in lazy.train_stream] == [0, 1]


def test_targets_that_are_no_classes_are_dealt_out() -> None:
    data = TensorData(torch.arange(20.0)[:, None].expand(-1, 2), torch.rand(20, 1))
    spec = Spec((2,), 1, "domain", target="value", metric="mse", direction="min")
    parts = pools(data, 0, "x", test=0.5)
    scenario = arrange(parts, spec, 0, "x", setting="data", experiences=3)
    assert [len(e.dataset) for e in scenario.train_stream] == [4, 3, 3]
    with pytest.raises(UsageError, match="choose data"):
        arrange(parts, spec, 0, "x", setting="class", experiences=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"experiences": 0, "setting": "data"}, "at least one"),
        ({"experiences": 4, "setting": "class"}, "3 classes make 1 to 3"),
        ({"experiences": 9, "setting": "data"}, "experience 3 has no test samples"),
        ({"experiences": 2, "setting": "class", "test": 0.0}, "test=0.0"),
        ({"experiences": 2, "setting": "class", "test": 1.0}, "test=1.0"),
        ({"experiences": 2, "setting": "class", "validation": -0.1}, "validation=-0.1"),
        ({"experiences": 2, "setting": "class", "test": 0.5, "validation": 0.5}, "nothing to train on"),
    ],
)
def test_nonsense_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        arranged(pool([5, 5, 5]), 3, **options)
