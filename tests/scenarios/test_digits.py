"""The digit streams: nothing lost, nothing shared between train and test, the same for the same seed."""

from __future__ import annotations

import pytest
import torch

from clplat.errors import UsageError
from clplat.scenario import LazyData, TensorData, class_groups, stream
from clplat.scenarios.digits import RotatedDigits, rotated
from tests.scenarios.streams import build, two_steps


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


def test_rotated_digits_are_the_digits_turned() -> None:
    scenario = RotatedDigits(2, experiences=3)
    upright = build("permuted-digits", 2, experiences=1)
    assert scenario.angles == (0, 90, 180)
    for ours, plain in ((scenario.train_stream, upright.train_stream), (scenario.test_stream, upright.test_stream)):
        x, y = plain[0].dataset.x, plain[0].dataset.y
        assert torch.equal(ours[0].dataset.x, x)
        for quarters, experience in enumerate(ours):
            assert torch.equal(experience.dataset.y, y)
            assert torch.allclose(experience.dataset.x, torch.rot90(x, quarters, (2, 3)), atol=1e-5)


def test_rotation_is_bilinear_and_counter_clockwise() -> None:
    images = torch.zeros(1, 1, 9, 9)
    images[0, 0, 4, 8] = 1  # right of the centre: 45 degrees on it is up right, between pixels
    turned = rotated(images, 45)[0, 0]
    place = 4 + torch.tensor([-1.0, 1.0]) * 4 * 0.5**0.5
    weights = turned / turned.sum()
    grid = torch.arange(9.0)
    assert torch.allclose(torch.stack([(weights.sum(1) * grid).sum(), (weights.sum(0) * grid).sum()]), place, atol=0.2)
    assert torch.equal(rotated(images, 360), images)


def test_random_angles_come_from_the_seed() -> None:
    first, again, other = (RotatedDigits(seed, angles="random", max_angle=90).angles for seed in (1, 1, 2))
    assert first == again != other
    assert first[0] == 0
    assert all(0 < angle < 90 for angle in first[1:])
    assert RotatedDigits(0, experiences=1).angles == (0,)


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
        ("rotated-digits", {"experiences": 0}, "experiences=0"),
        ("rotated-digits", {"max_angle": 0.0}, "between 0 and 360"),
        ("rotated-digits", {"max_angle": 360.0}, "between 0 and 360"),
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


def test_lazy_data_is_the_same_data() -> None:
    x = torch.arange(12).reshape(6, 2)
    y, task = torch.arange(6) % 3, torch.full((6,), 2)
    asked: list[int] = []

    def load(index: int) -> torch.Tensor:
        asked.append(index)
        return x[index].float()

    held, lazy = TensorData(x.float(), y, task), LazyData(load, y, 2)
    for index in (slice(1, 3), slice(None), torch.tensor([5, 0, 0]), slice(2, 2)):
        for a, b in zip(held.rows(index), lazy.rows(index), strict=True):
            assert torch.equal(a, b)
    assert all(torch.equal(a, b) for a, b in zip(held[4], lazy[4], strict=True))
    some = torch.tensor([4, 1])
    assert isinstance(lazy.subset(some), LazyData)
    for a, b in zip(held.subset(some).rows(slice(None)), lazy.subset(some).rows(slice(None)), strict=True):
        assert torch.equal(a, b)
    assert len(lazy) == 6
    assert torch.equal(lazy.x, held.x)
    moved = lazy.to(torch.device("cpu"), torch.float64)
    assert moved.rows(slice(0, 2))[0].dtype == torch.float64
    asked.clear()
    moved.rows(torch.tensor([3]))
    assert asked == [3]  # nothing but what was asked for
    with pytest.raises(ValueError, match="6 targets and 2 task labels"):
        LazyData(load, y, task[:2])


@pytest.mark.parametrize("encoder", ["rows", "pixels", "patches", "image", "vectors"])
@pytest.mark.parametrize("name", ["split-digits", "permuted-digits", "rotated-digits"])
def test_images_are_read_in_each_way(name: str, encoder: str) -> None:
    results = two_steps(build(name, experiences=1), encoder)
    assert 0 <= results["matrix"][0][0] <= 1
