"""Frequency replay: which classes are replayed, what is stored of them, and that it keeps what no longer comes."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch

import clplat
from clplat import optim
from clplat.build import build as build_run
from clplat.config import compose
from clplat.errors import UsageError
from clplat.loop import Run
from clplat.ranks import Ranks
from clplat.scenarios.scole import SCoLe
from clplat.strategies.frequency_replay import FrequencyReplay


def scole(*overrides: str) -> tuple[SCoLe, FrequencyReplay, dict[str, Any]]:
    """A run over SCoLe with next to no network."""
    one = build_run(
        compose(
            [
                "scenario=scole",
                "strategy=frequency-replay",
                "backbone=mlp",
                "backbone.hidden=4",
                "trainer.max_epochs=1",
                "trainer.accelerator=cpu",
                "trainer.progress=none",
                *overrides,
            ]
        ),
        Ranks(),
    )
    results = Run(one.learner, one.scenario, eval_settings=one.eval_settings).execute()
    assert isinstance(one.scenario, SCoLe)
    assert isinstance(one.learner.strategy, FrequencyReplay)
    return one.scenario, one.learner.strategy, results


def test_the_rarest_classes_within_the_limits_are_replayed() -> None:
    options = ("scenario.experiences=40", "scenario.occurrence=zipf", "scenario.exponent=1.5")
    scenario, _, results = scole(*options, "strategy.low=0.09", "strategy.high=0.4")
    visits: dict[int, int] = {}
    seen_rare = seen_frequent = False
    for e, task in enumerate(scenario.classes_of_tasks.tolist()):
        least = sorted((visits[c], c) for c in visits if c not in task and visits[c] >= 3)
        seen_rare |= any(v / e <= 0.09 for v, _ in least)
        seen_frequent |= any(v / e > 0.4 for v, _ in least)
        wanted = [c for v, c in least if 0.09 < v / e <= 0.4][:2]
        assert results["strategy"]["replayed"][e] == wanted, e
        for c in (*task, *wanted):
            visits[c] = visits.get(c, 0) + 1
    assert any(results["strategy"]["replayed"])
    assert seen_rare
    assert seen_frequent


def test_random_replay_takes_others_of_those_seen() -> None:
    scenario, _, results = scole("scenario.experiences=30", "strategy.choose=random", "strategy.budget=0.5")
    seen: set[int] = set()
    counts = []
    for task, chosen in zip(scenario.classes_of_tasks.tolist(), results["strategy"]["replayed"], strict=True):
        assert set(chosen) <= seen - set(task)
        counts.append(len(chosen))
        seen |= set(task)
    assert set(counts[2:]) == {0, 1, 2}


def test_a_visit_renews_a_share_of_what_is_stored() -> None:
    """Both classes are in every task, with samples drawn anew: what is held afterwards tells how many came."""
    learned = ["scenario.classes=10", "scenario.samples=300", "strategy.size=24"]
    held = {}
    for n in (1, 2, 3):
        scenario, strategy, _ = scole(*learned, f"scenario.experiences={n}")
        held[n] = strategy.recall("group/0/7")["x"].flatten(1)
        assert len(held[n]) == 24
        shown = {
            row.numpy().tobytes() for e in scenario.train_stream for row in e.dataset.x[e.dataset.y == 7].flatten(1)
        }
        assert {row.numpy().tobytes() for row in held[n]} <= shown
    changed = [(held[n] != held[n + 1]).any(1).sum().item() for n in (1, 2)]
    # 24 / 2 and 24 / 3; one that is drawn to replace itself does not show.
    assert 10 <= changed[0] <= 12
    assert 6 <= changed[1] <= 8


def test_replayed_samples_are_trained_on() -> None:
    one = build_run(compose(["scenario=scole", "scenario.experiences=9", "strategy=frequency-replay"]), Ranks())
    strategy, stream = one.learner.strategy, one.scenario.train_stream
    assert isinstance(strategy, FrequencyReplay)
    strategy.choose, strategy.name = "random", "frequency-replay"
    assert strategy.phases(one.learner, stream[0])[0].data is None
    for experience in stream[:4]:
        strategy.finish(one.learner, experience)
    chosen = strategy.chosen(one.learner, stream[4])
    data = strategy.phases(one.learner, stream[4])[0].data
    assert data is not None
    assert chosen
    own = len(stream[4].dataset)
    assert torch.equal(data.x[:own], stream[4].dataset.x)
    assert data.y[own:].tolist() == [c for _, c in chosen for _ in range(len(strategy.recall(f"group/0/{c}")["y"]))]


@pytest.mark.slow
def test_classes_that_come_no_more_are_kept_by_replay() -> None:
    """SCoLe's forgetting test: after half of the tasks only five of the ten classes come. With 60 tasks of two classes
    the last ten came to 0.79 with replay and to 0.41 without; here a task has five, so that fewer are needed."""
    plateau = {}
    for name, strategy in (("naive", "naive"), ("replay", FrequencyReplay(high=1.0))):
        results = clplat.fit(
            strategy,
            SCoLe(0, experiences=20, classes=5, periods="forgetting"),
            "mlp",
            optimizer=functools.partial(optim.sgd, lr=0.05),
            keep_optimizer_state=True,
            trainer=clplat.TrainerSettings(max_epochs=1, batch_size=16, clip=10.0, progress="none", accelerator="cpu"),
        )
        plateau[name] = sum(row[0] for row in results["matrix"][-5:]) / 5
    assert plateau["naive"] < 0.55
    assert plateau["replay"] > plateau["naive"] + 0.1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"size": 0, "budget": 0.0}, ["size=0", "budget=0.0"]),
        ({"low": 0.2, "high": 0.1}, ["low=0.2 < high=0.1"]),
    ],
)
def test_nonsense_is_refused(options: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(UsageError) as error:
        FrequencyReplay(**options)
    assert all(word in str(error.value) for word in words)
