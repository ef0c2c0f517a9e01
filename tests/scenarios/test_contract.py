"""What every scenario of conf/ keeps to: streams are functions of the seed, and the spec tells the truth."""

from __future__ import annotations

import math

import pytest
import torch

from clplat import dryrun, registry
from clplat.backbones.encoder import encoded_shape
from clplat.metrics import measures
from clplat.scenario import PER_STEP, Experience, Scenario, TensorData
from tests.scenarios.streams import NAMES, build, in_settings, made, two_steps

DTYPES = {
    "class": torch.long,
    "token": torch.long,
    "bits": torch.long,
    "value": torch.float32,
    "series": torch.float32,
}
EVERY = pytest.mark.parametrize(("name", "setting"), in_settings())


def streams(scenario: Scenario) -> dict[str, list[Experience]]:
    return {"train": list(scenario.train_stream), "test": list(scenario.test_stream)}


def equal(a: TensorData, b: TensorData) -> bool:
    pairs = ((a.x, b.x), (a.y, b.y), (a.task, b.task))
    return all(s.dtype == t.dtype and s.numpy().tobytes() == t.numpy().tobytes() for s, t in pairs)


@EVERY
def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(name: str, setting: str | None) -> None:
    torch.manual_seed(123)  # a generator that is not theirs must not matter
    again, other = streams(made.__wrapped__(name, setting, 0)), streams(made(name, setting, 1))
    for stream, experiences in streams(made(name, setting)).items():
        for i, experience in enumerate(experiences):
            assert equal(experience.dataset, again[stream][i].dataset)
            assert not equal(experience.dataset, other[stream][i].dataset)


@pytest.mark.parametrize("name", NAMES)
def test_building_leaves_torchs_own_generator_alone(name: str) -> None:
    torch.manual_seed(5)
    build(name, 3)
    after = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(after, torch.rand(1))


@EVERY
def test_avalanches_nouns_are_there_and_true(name: str, setting: str | None) -> None:
    scenario = made(name, setting)
    for stream, experiences in streams(scenario).items():
        assert len(experiences) == (len(set(scenario.tested)) if stream == "test" else len(scenario.tested))
        for i, experience in enumerate(experiences):
            y = experience.dataset.y
            assert experience.current_experience == i
            assert experience.origin_stream == stream
            classes = () if y.is_floating_point() else tuple(sorted(set(y[y >= 0].tolist())))
            assert experience.classes_in_this_experience == classes
            assert set(experience.dataset.task.tolist()) == {experience.task_label}
    assert scenario.spec.setting in registry.find("scenario", name).info["settings"]
    assert scenario.spec.setting == (setting or scenario.spec.setting)


@EVERY
def test_samples_and_targets_are_what_the_spec_says(name: str, setting: str | None) -> None:
    spec = made(name, setting).spec
    target_shape = {
        "class": (),
        "token": spec.shape[:1],
        "bits": (*spec.shape[:1], spec.classes),
        "value": (spec.classes,),
        "series": (*spec.shape[:1], spec.classes),
    }[spec.target]
    for experiences in streams(made(name, setting)).values():
        for data in (e.dataset for e in experiences):
            assert data.x.shape[1:] == spec.shape
            assert data.x.dtype == (torch.float32 if spec.vocabulary is None else torch.long)
            assert data.y.shape[1:] == target_shape
            assert data.y.dtype == DTYPES[spec.target]
            assert data.x.isfinite().all()
            if spec.vocabulary is not None:
                assert data.x.min() >= 0
                assert data.x.max() < spec.vocabulary
            if spec.target in PER_STEP:  # every sample asks something
                assert measures.asked_steps(spec.target, data.y).any(1).all()
            asked = data.y[measures.asked(spec.target, data.y)]
            assert len(asked)
            if spec.target in ("value", "series"):
                assert asked.isfinite().all()
                continue
            assert asked.min() >= 0
            assert asked.max() < (2 if spec.target == "bits" else spec.classes)
    encoded_shape(spec.encoder, spec.shape, vocabulary=spec.vocabulary)
    assert spec.metric in measures.NAMES[spec.target]


@EVERY
def test_every_class_and_task_is_there(name: str, setting: str | None) -> None:
    scenario = made(name, setting)
    spec = scenario.spec
    labels = [e.task_label for e in scenario.train_stream]
    pairs = [(train, scenario.test_stream[j]) for train, j in zip(scenario.train_stream, scenario.tested, strict=True)]
    assert all(train.task_label == test.task_label for train, test in pairs)
    assert sorted(set(labels)) == list(range(scenario.tasks))
    assert scenario.tasks == 1 or spec.setting == "task"
    sizes = spec.classes_per_task or (spec.classes,) * scenario.tasks
    for train, test in pairs:
        if spec.target == "token":  # a text may hold a token that its other part lacks
            continue
        known = set(train.classes_in_this_experience)
        # a test of what several experiences teach asks for more than each of them
        assert (
            known <= set(test.classes_in_this_experience)
            if scenario.tests
            else known == set(test.classes_in_this_experience)
        )
        if spec.setting == "task" and spec.target == "class":
            assert train.classes_in_this_experience == tuple(range(sizes[train.task_label]))
    if spec.target == "class":
        found = {c for e in scenario.train_stream for c in e.classes_in_this_experience}
        assert found == set(range(spec.classes))


@EVERY
def test_no_sample_is_in_train_and_test(name: str, setting: str | None) -> None:
    if reason := registry.find("scenario", name).info.get("overlap"):
        pytest.skip(reason)
    scenario = made(name, setting)
    for train, j in zip(scenario.train_stream, scenario.tested, strict=True):
        test = scenario.test_stream[j]
        rows = {row.numpy().tobytes() for row in train.dataset.x}
        assert not rows & {row.numpy().tobytes() for row in test.dataset.x}


@EVERY
def test_the_measures_of_the_target_take_its_samples(name: str, setting: str | None) -> None:
    """A network that answers anything gets a value of every measure, by shapes the spec tells alone."""
    spec = made(name, setting).spec
    y = made(name, setting).test_stream[0].dataset.y[:7]
    steps = spec.shape[:1] if spec.target in PER_STEP else ()
    logits = torch.randn(7, *steps, spec.classes, generator=torch.Generator().manual_seed(0))
    values = measures.values(spec.target, measures.sums(spec.target, logits, y))
    assert list(values) == ["loss", *measures.NAMES[spec.target]]
    assert all(map(math.isfinite, values.values()))


@pytest.mark.parametrize("name", [name for name in NAMES if "experiences" in registry.find("scenario", name).options])
@pytest.mark.parametrize("experiences", [1, 2])
def test_the_number_of_experiences_is_the_one_asked_for(name: str, experiences: int) -> None:
    scenario = build(name, experiences=experiences)
    assert len(scenario.train_stream) == experiences
    assert len(scenario.test_stream) == len(set(scenario.tested))


@EVERY
def test_a_small_network_trains_on_it_and_is_measured(name: str, setting: str | None) -> None:
    scenario = made(name, setting)
    results = two_steps(scenario)
    seen = min(len(scenario.train_stream), dryrun.WALKED)
    assert len(results["matrix"]) == seen
    for row in results["matrix"]:
        assert len(row) == len(set(scenario.tested[:seen]))
        assert all(value is None or math.isfinite(value) for value in row)
