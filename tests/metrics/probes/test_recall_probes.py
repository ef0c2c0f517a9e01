"""Probes of recall streams: retrieval heads and serial positions."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from clplat import registry
from clplat.backbones.attention.transformer import Transformer
from clplat.errors import UsageError
from clplat.metrics.probes import base
from clplat.metrics.probes.retrieval_heads import RetrievalHeads, copied, retrieval_scores
from clplat.metrics.probes.sampling import sources
from clplat.metrics.probes.serial_position import SerialPosition, half_life, indices, places
from clplat.probing import make
from clplat.scenario import Scenario
from tests.cases import built
from tests.metrics.probes.streams import made, source


def recall(pairs: int = 4, samples: int = 64, vocabulary: int = 32) -> Scenario:
    entry = registry.find("scenario", "mqar")
    options = {"experiences": 1, "stream": "same", "length": 4 * pairs, "vocabulary": vocabulary, "power": 1.0}
    scenario = entry.build(0, pairs=pairs, samples=samples, test_samples=256, **options)
    assert isinstance(scenario, Scenario)
    return scenario


def slow_sources(x: list[int], y: list[int]) -> list[int]:
    return [max((s for s in range(t + 1) if x[s] == a and a != -100), default=-1) for t, a in enumerate(y)]


def test_sources_and_places_are_what_one_finds_by_hand() -> None:
    x = torch.randint(0, 6, (50, 11), generator=source(0))
    y = torch.randint(0, 8, (50, 11), generator=source(1)).where(torch.rand(50, 11, generator=source(2)) < 0.4, -100)
    found = sources(x, y)
    place, length = places(found)
    for b in range(50):
        expected = slow_sources(x[b].tolist(), y[b].tolist())
        assert found[b].tolist() == expected
        listed = sorted({s for s in expected if s >= 0})
        assert int(length[b]) == len(listed)
        assert place[b].tolist() == [listed.index(s) if s >= 0 else -1 for s in expected]


def test_a_copying_head_scores_one_and_a_uniform_one_nothing() -> None:
    scenario = recall()
    x, y, _ = scenario.test_stream[0].dataset.rows(slice(None))
    where = sources(x, y)
    asked, (B, T) = where >= 0, x.shape
    assert bool(asked.any())
    perfect = torch.zeros(B, 1, T, T).scatter_(3, where.clamp(min=0)[:, None, :, None], 1.0)
    uniform = torch.ones(B, 1, T, T).tril()  # of which the first step, a key, is the largest
    weights = torch.cat([perfect, uniform], 1)
    scores = retrieval_scores(copied(weights, x, y), y, y, asked)
    assert scores.mean(0).tolist() == [1.0, 0.0]
    wrong = (y + 1).where(y >= 0, y)  # a network that says something else copies nothing
    assert float(retrieval_scores(copied(weights, x, wrong), wrong, y, asked)[:, 0].max()) < 1
    half = y.clone()
    for b in range(B):  # every second answer is wrong
        half[b, asked[b].nonzero()[::2, 0]] = 0
    assert retrieval_scores(copied(weights, x, half), half, y, asked)[:, 0].mean().item() == pytest.approx(0.5)


@pytest.mark.slow
def test_without_the_retrieval_head_nothing_is_found_and_without_another_all() -> None:
    scenario = recall(samples=4096)
    learner = made(
        scenario,
        lambda D: Transformer(D, dim=32, layers=2, heads=1, mlp="none", conv=2),
        epochs=8,
        lr=5e-3,
    )
    probe = make("retrieval-heads", top=1)
    found = base.take(probe, learner, scenario)
    assert found["accuracy"] > 0.95
    assert found["best"] > 0.8
    assert found["accuracy_without_top"] < 0.3  # one of the four values that were shown would be 0.25
    assert found["accuracy_without_others"] > found["accuracy"] - 0.05
    assert probe.figure(found)["data"][0]["z"] == found["scores"]


def oracle(x: Tensor, y: Tensor, right: Tensor) -> Tensor:
    """Logits that are right where they are to be, and else say token 0."""
    said = torch.where(right, y.clamp(min=0), 0)
    return 20.0 * torch.nn.functional.one_hot(said, 32)


@pytest.mark.parametrize("rule", ["window", "uniform"])
def test_a_window_gives_recency_and_a_lookup_gives_a_flat_curve(monkeypatch: pytest.MonkeyPatch, rule: str) -> None:
    scenario = recall(pairs=6, samples=8)
    learner = made(scenario, lambda D: Transformer(D, dim=8, layers=1, heads=1))
    known = scenario.test_stream[0].dataset
    answers = {tuple(x.tolist()): y for x, y in zip(known.x, known.y, strict=True)}

    def answer(x: Tensor, task: Tensor) -> Tensor:
        y = torch.stack([answers[tuple(row.tolist())] for row in x])
        place, length = places(sources(x, y))
        coin = torch.rand(y.shape, generator=source(int(x.sum()))) < 0.6
        return oracle(x, y, (place >= length[:, None] - 2) if rule == "window" else coin)

    monkeypatch.setattr(learner, "answer", answer)
    probe = make("serial-position")
    found = base.take(probe, learner, scenario)
    assert found["length"] == 6
    if rule == "window":
        assert [right for _, right in found["positions"]] == [0, 0, 0, 0, 1, 1]
        assert found["recency"] == pytest.approx(1 - 1 / 4)
        assert found["primacy"] == pytest.approx(-1 / 4)
        assert [right for _, right in found["items_between"]] == [1, 1, 0, 0, 0, 0]
    else:
        assert found["accuracy"] == pytest.approx(0.6, abs=0.05)
        assert abs(found["primacy"]) < 0.1
        assert abs(found["recency"]) < 0.1
        assert found["half_life"] is None
    assert found["times_shown"][0][0] == 1
    assert len(probe.figure(found)["data"]) == 2


def test_indices_and_half_life() -> None:
    assert indices([1.0, 0.2, 0.2, 0.2, 0.6]) == pytest.approx((0.8, 0.4))
    assert all(map(math.isnan, indices([0.5, 0.5])))
    assert half_life([(1, 1.0), (3, 0.8), (5, 0.4)], chance=0.2) == pytest.approx(4)
    assert half_life([(1, 1.0), (9, 0.9)], chance=0.0) == math.inf


def test_what_they_refuse() -> None:
    one = built("naive", "backbone=transformer")
    for name in ("serial-position", "retrieval-heads"):
        with pytest.raises(UsageError, match="needs tokens"):
            base.take(make(name), one.learner, one.scenario)
    by_heart = registry.find("scenario", "mqar-memorize").build(0)
    learner = made(by_heart, lambda D: Transformer(D, dim=8, layers=1, heads=1))
    for name in ("serial-position", "retrieval-heads"):
        with pytest.raises(UsageError, match=r"shown in the input.*--scenario mqar"):
            base.take(make(name), learner, by_heart)
    for options in ({"samples": 0}, {"top": -1}, {"threshold": 0.0}, {"controls": 0}):
        with pytest.raises(UsageError, match="retrieval-heads"):
            RetrievalHeads(**options)
    with pytest.raises(UsageError, match="bins=0"):
        SerialPosition(bins=0)
