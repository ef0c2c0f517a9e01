"""The digit streams: nothing lost, nothing shared between train and test, the same for the same seed."""

from __future__ import annotations

import pytest
import torch

from clplat import registry
from clplat.errors import UsageError
from clplat.scenario import Scenario, TensorData, class_groups, stream


def build(name: str, seed: int = 0, **options: object) -> Scenario:
    return registry.find("scenario", name).build(seed, **options)


@pytest.mark.parametrize("name", registry.names("scenario"))
def test_streams_are_a_function_of_the_seed(name: str) -> None:
    first, again, other = build(name, 3), build(name, 3), build(name, 4)
    for a, b in zip(first.train_stream, again.train_stream, strict=True):
        assert torch.equal(a.dataset.x, b.dataset.x)
        assert torch.equal(a.dataset.y, b.dataset.y)
    assert any(
        a.dataset.x.shape != b.dataset.x.shape or not torch.equal(a.dataset.x, b.dataset.x)
        for a, b in zip(first.train_stream, other.train_stream, strict=True)
    )


@pytest.mark.parametrize("name", registry.names("scenario"))
def test_avalanches_nouns_are_there_and_true(name: str) -> None:
    scenario = build(name)
    for stream_name in ("train", "test"):
        for i, experience in enumerate(getattr(scenario, f"{stream_name}_stream")):
            assert experience.current_experience == i
            assert experience.origin_stream == stream_name
            assert set(experience.classes_in_this_experience) == set(experience.dataset.y.tolist())
            assert set(experience.dataset.task.tolist()) == {experience.task_label}
            assert experience.dataset.x.shape[1:] == scenario.spec.shape


def test_permuted_digits_permute_pixels_and_nothing_else() -> None:
    scenario = build("permuted-digits", experiences=4)
    plain = scenario.train_stream[0].dataset
    for experience in scenario.train_stream[1:]:
        x, y = experience.dataset.x, experience.dataset.y
        assert torch.equal(y, plain.y)
        assert not torch.equal(x, plain.x)
        assert torch.equal(x.flatten(1).sort(1).values, plain.x.flatten(1).sort(1).values)
    # Train and test of one experience are permuted alike: pixels that are blank everywhere are so in both.
    for train, test in zip(scenario.train_stream, scenario.test_stream, strict=True):
        blank = train.dataset.x.flatten(1).amax(0) == 0
        assert blank.any()
        assert (test.dataset.x.flatten(1)[:, blank].amax(0) == 0).float().mean() > 0.8


@pytest.mark.parametrize("validation", [0.0, 0.1])
def test_splits_are_disjoint_complete_and_balanced(validation: float) -> None:
    scenario = build("permuted-digits", experiences=1, validation=validation)
    streams = [scenario.train_stream, scenario.test_stream, scenario.valid_stream]
    rows = [tuple(row.tolist()) for s in streams for e in s for row in e.dataset.x.flatten(1)]
    assert len(rows) == 1797
    assert (len(scenario.valid_stream) > 0) == (validation > 0)
    train, test = scenario.train_stream[0].dataset.y, scenario.test_stream[0].dataset.y
    shares = torch.bincount(train) / torch.bincount(test)
    assert shares.max() - shares.min() < 0.2


@pytest.mark.parametrize("experiences", range(1, 11))
def test_uneven_splits_lose_no_class_and_no_sample(experiences: int) -> None:
    scenario = build("split-digits", experiences=experiences)
    seen = [c for e in scenario.train_stream for c in e.classes_in_this_experience]
    assert sorted(seen) == list(range(10))
    assert sum(len(e.dataset) for s in (scenario.train_stream, scenario.test_stream) for e in s) == 1797


def test_settings_differ_in_labels_only() -> None:
    settings = {s: build("split-digits", setting=s, experiences=4, order="random") for s in ("class", "task", "domain")}
    for i in range(4):
        by_class = settings["class"].train_stream[i]
        for name in ("task", "domain"):
            other = settings[name].train_stream[i]
            assert torch.equal(other.dataset.x, by_class.dataset.x)
            assert other.classes_in_this_experience == tuple(range(len(by_class.classes_in_this_experience)))
    assert [e.task_label for e in settings["task"].train_stream] == [0, 1, 2, 3]
    assert {e.task_label for e in settings["domain"].train_stream} == {0}
    assert settings["task"].spec.classes_per_task == (3, 3, 2, 2)
    assert [settings[s].spec.classes for s in ("class", "task", "domain")] == [10, 3, 3]


@pytest.mark.parametrize(
    ("name", "options", "word"),
    [
        ("permuted-digits", {"experiences": 0}, "experiences=0"),
        ("split-digits", {"experiences": 11}, "experiences=11"),
        ("permuted-digits", {"test": 0.0}, "test=0.0"),
        ("permuted-digits", {"test": 1.5}, "test=1.5"),
        ("split-digits", {"test": 0.5, "validation": 0.5}, "nothing to train on"),
    ],
)
def test_nonsense_is_refused(name: str, options: dict[str, object], word: str) -> None:
    with pytest.raises(UsageError, match=word):
        build(name, **options)


def test_class_groups() -> None:
    assert class_groups(range(10), 3) == [[0, 1, 2, 3], [4, 5, 6], [7, 8, 9]]


def test_an_experience_has_one_task_label() -> None:
    mixed = TensorData(torch.zeros(2, 3), torch.zeros(2, dtype=torch.long), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="task labels"):
        stream("train", [mixed])
    with pytest.raises(ValueError, match="2 samples, 3 targets"):
        TensorData(torch.zeros(2, 3), torch.zeros(3))
