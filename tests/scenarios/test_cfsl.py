"""Continual few-shot learning: support sets, blocks of classes, instances; glyphs against plain geometry."""

from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

import clplat
from clplat.errors import UsageError
from clplat.scenario import Experience, Scenario
from clplat.scenarios.cfsl import CFSL, glyphs, spoilt
from tests.scenarios.streams import build


def rows(experience: Experience) -> set[bytes]:
    return {row.numpy().tobytes() for row in experience.dataset.x}


def distance(point: tuple[float, float], a: list[float], b: list[float]) -> float:
    """From a point to a stroke, along a hundred points of it."""
    on = [(a[0] + s / 500 * (b[0] - a[0]), a[1] + s / 500 * (b[1] - a[1])) for s in range(501)]
    return min(math.dist(point, at) for at in on)


def test_a_glyph_is_dark_where_its_strokes_are() -> None:
    corners = torch.rand(3, 5, 2, generator=torch.Generator().manual_seed(0))
    images = glyphs(corners, 1, 0.0, 8, torch.Generator())
    for image, points in zip(images[:, 0].tolist(), corners.tolist(), strict=True):
        for i in range(8):
            for j in range(8):
                at = ((i + 0.5) / 8, (j + 0.5) / 8)
                nearest = min(distance(at, a, b) for a, b in pairwise(points))
                assert image[i][j] == pytest.approx(math.exp(-((8 * nearest) ** 2)), abs=0.02)


def test_samples_of_a_class_are_like_each_other() -> None:
    corners = torch.rand(6, 5, 2, generator=torch.Generator().manual_seed(1))
    x = glyphs(corners, 4, 0.03, 16, torch.Generator().manual_seed(2)).flatten(1)
    apart = torch.cdist(x, x)
    same = torch.arange(24)[:, None] // 4 == torch.arange(24) // 4
    assert apart[same & (apart > 0)].mean() < 0.6 * apart[~same].mean()
    assert (apart[same].reshape(24, 4) == 0).sum() == 24  # and no two are equal


@pytest.mark.parametrize("setting", ["class", "domain"])
@pytest.mark.parametrize("change", [1, 2, 3])
def test_classes_change_after_as_many_support_sets_as_asked(setting: Any, change: int) -> None:
    scenario = CFSL(3, setting=setting, experiences=7, ways=4, shots=2, change=change, queries=3)
    blocks = -(-7 // change)
    assert scenario.tested == tuple(e // change for e in range(7))
    assert len(scenario.test_stream) == blocks
    for e, experience in enumerate(scenario.train_stream):
        first = 4 * (e // change) if setting == "class" else 0
        assert Counter(experience.dataset.y.tolist()) == {first + c: 2 for c in range(4)}
        test = scenario.test_stream[scenario.tested[e]]
        assert Counter(test.dataset.y.tolist()) == {first + c: 3 for c in range(4)}
    shown = [row for stream in (scenario.train_stream, scenario.test_stream) for e in stream for row in rows(e)]
    assert len(set(shown)) == len(shown) == 7 * 8 + blocks * 12  # no sample twice
    assert scenario.spec.classes == (4 * blocks if setting == "class" else 4)


def test_more_support_sets_leave_the_first_as_they_are() -> None:
    short, long = CFSL(1, experiences=2), CFSL(1, experiences=5)
    for a, b in zip(short.train_stream, long.train_stream, strict=False):
        assert torch.equal(a.dataset.x, b.dataset.x)


def test_instances_are_tested_with_the_very_images() -> None:
    scenario = CFSL(0, test="instances", experiences=4, ways=5)
    assert scenario.spec.classes == 20
    for train, test in zip(scenario.train_stream, scenario.test_stream, strict=True):
        assert torch.equal(train.dataset.x, test.dataset.x)
        assert torch.equal(train.dataset.y, test.dataset.y)
    assert [e.dataset.y.tolist() for e in scenario.train_stream] == [list(range(5 * e, 5 * e + 5)) for e in range(4)]
    spoiled = CFSL(0, test="instances", experiences=4, ways=5, noise=0.2, occlusion=0.3)
    assert all(
        torch.equal(a.dataset.x, b.dataset.x) for a, b in zip(scenario.train_stream, spoiled.train_stream, strict=True)
    )
    assert not torch.equal(scenario.test_stream[0].dataset.x, spoiled.test_stream[0].dataset.x)


def test_a_square_of_the_asked_size_is_covered() -> None:
    x = torch.ones(200, 1, 16, 16)
    hidden = spoilt(x, 0.0, 0.5, torch.Generator().manual_seed(0)) == 0
    side = round(math.sqrt(0.5) * 16)
    assert (hidden.flatten(1).sum(1) == side**2).all()
    places = {(int(h[0].any(1).nonzero()[0]), int(h[0].any(0).nonzero()[0])) for h in hidden}
    assert len(places) == (16 - side + 1) ** 2
    assert all(bool((h[0].any(1)[:, None] & h[0].any(0) == h[0]).all()) for h in hidden)
    noisy = spoilt(x / 2, 0.1, 0.0, torch.Generator().manual_seed(0))
    assert 0.09 < float((noisy - 0.5).std()) < 0.11
    assert torch.equal(spoilt(x, 0.0, 0.0, torch.Generator()), x)


# --- the seed's check


def nearest_prototype(scenario: Scenario) -> float:
    """Accuracy over all classes of the class whose mean image is nearest."""

    def all_of(stream: Any) -> tuple[Tensor, Tensor]:
        return torch.cat([e.dataset.x for e in stream]).flatten(1), torch.cat([e.dataset.y for e in stream])

    (x, y), (asked, label) = all_of(scenario.train_stream), all_of(scenario.test_stream)
    means = torch.stack([x[y == c].mean(0) for c in range(scenario.spec.classes)])
    return float((torch.cdist(asked, means).argmin(1) == label).float().mean())


def test_prototypes_fall_with_the_number_of_support_sets() -> None:
    means = [sum(nearest_prototype(CFSL(s, experiences=n)) for s in range(20)) / 20 for n in (1, 2, 5, 10)]
    assert means == sorted(means, reverse=True)
    assert means[0] > means[-1] + 0.1


def test_instances_are_known_by_their_pixels_until_they_are_covered() -> None:
    def mean(**options: Any) -> float:
        return sum(nearest_prototype(CFSL(s, test="instances", experiences=4, **options)) for s in range(10)) / 10

    assert mean() == 1.0
    assert mean(occlusion=0.5) < 0.6
    assert mean(noise=0.3) > 0.9
    assert mean(noise=1.0) < 0.8


@pytest.mark.slow
@pytest.mark.parametrize("test", ["classes", "instances"])
def test_replay_beats_no_replay(test: Any) -> None:
    def accuracy(strategy: str) -> float:
        scenario = CFSL(0, test=test, experiences=4)
        trainer = clplat.TrainerSettings(max_epochs=30, batch_size=5, progress="none")
        return clplat.fit(strategy, scenario, "mlp", trainer=trainer)["summary"]["ACC"]

    assert accuracy("er") > accuracy("naive") + 0.15


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"experiences": 0, "ways": 0}, "experiences=0.*\n.*ways=0"),
        ({"shots": 0}, "shots=0"),
        ({"change": 0}, "change=0"),
        ({"queries": 0}, "queries=0"),
        ({"noise": -0.1}, "noise=-0.1"),
        ({"jitter": -0.1}, "jitter=-0.1"),
        ({"size": 4}, "size=4"),
        ({"occlusion": 1.0}, "occlusion=1.0"),
        ({"test": "instances", "shots": 2}, "shows each instance once"),
        ({"test": "instances", "setting": "domain"}, "shows each instance once"),
    ],
)
def test_nonsense_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build("cfsl", **options)
