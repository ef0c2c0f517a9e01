"""Ebbinghaus replay: retention is the curve, recall strengthens, and the memory stays within its slots."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from clplat.errors import UsageError
from clplat.randomness import generator
from clplat.strategies.ebbinghaus_replay import FadingMemory
from tests.cases import before, built, run


def _filled(n: int, tau: float, trial: int = 0) -> FadingMemory:
    memory = FadingMemory(n)
    memory.store({"x": torch.arange(n)}, 0, tau, generator(trial, "store"))
    return memory


@pytest.mark.parametrize("strength", [1, 3])
def test_survival_without_recall_follows_the_curve(strength: int) -> None:
    """The seed's check: Kolmogorov and Smirnov against exp(-t / (tau S))."""
    n, tau = 4000, 50.0
    memory = _filled(n, tau)
    for number in range(strength - 1):
        memory.recall_rows(torch.arange(n), 0, tau, generator(number, "recall"))
    largest = 0.0
    for now in range(1, 400):
        memory.fade(now)
        largest = max(largest, abs(len(memory) / n - math.exp(-now / (tau * strength))))
    assert largest < 1.63 / math.sqrt(n)  # p = 0.01
    assert largest > 0


def test_what_is_recalled_in_every_step_survives() -> None:
    memory = _filled(100, 2.0)
    recalled = torch.arange(10)
    for now in range(1, 200):
        memory.recall_rows(recalled, now, 2.0, generator(now, "recall"))
        memory.fade(now)
    assert memory.slots().tolist() == recalled.tolist()
    assert memory.strength[recalled].tolist() == [200] * 10


def test_recall_begins_the_time_anew() -> None:
    n, tau = 4000, 10.0
    memory = _filled(n, tau)
    memory.recall_rows(torch.arange(n), 30, tau, generator(0, "recall"))
    memory.fade(50)  # 20 steps after the recall, with strength 2
    assert abs(len(memory) / n - math.exp(-1)) < 1.63 / math.sqrt(n)


def test_a_free_slot_is_taken_by_something_new_of_strength_one() -> None:
    memory = _filled(50, 5.0)
    memory.recall_rows(torch.arange(50), 0, 5.0, generator(0, "recall"))
    memory.fade(10)
    kept = memory.slots()
    free = 50 - len(kept)
    assert 0 < free < 50
    memory.store({"x": torch.arange(1000, 1000 + free)}, 10, 5.0, generator(1, "store"))
    assert len(memory) == 50
    x = memory.rows(torch.arange(50))["x"]
    assert torch.equal(x[kept], kept)
    assert sorted(memory.strength[x >= 1000].tolist()) == [1] * free
    assert (memory.strength[kept] == 2).all()


def test_rehearsal_recalls_what_it_draws_and_nothing_else() -> None:
    one = built("ebbinghaus-replay", "strategy.tau=1000")
    strategy = one.learner.strategy
    observe, seen = strategy.observe, 0

    def watch(learner: Any, batch: Any, output: Any) -> None:
        nonlocal seen
        old = strategy.memory.strength.clone()
        observe(learner, batch, output)
        if "ebbinghaus-replay" in batch:
            drawn = torch.zeros(len(old), dtype=torch.bool)
            drawn[batch["ebbinghaus-replay"].index] = True
            alive = (old > 0) & (strategy.memory.strength > 1)
            assert torch.equal(strategy.memory.strength[alive & drawn], old[alive & drawn] + 1)
            assert torch.equal(strategy.memory.strength[alive & ~drawn], old[alive & ~drawn])
            seen += int(drawn.sum())

    strategy.observe = watch
    run(one)
    assert seen > 50
    assert len(strategy.memory) <= 20


def test_samples_of_every_experience_get_in_and_old_ones_stay_when_recalled() -> None:
    one = built("ebbinghaus-replay", "strategy.memory=60", "strategy.tau=20", "trainer.max_epochs=4")
    strategy = one.learner.strategy
    shares: dict[int, torch.Tensor] = {}
    before(
        strategy,
        "finish",
        lambda learner, experience: shares.update(
            {
                experience.current_experience: torch.bincount(
                    strategy.memory.rows(strategy.memory.slots())["experience"], minlength=3
                )
            }
        ),
    )
    run(one)
    assert (shares[2][:2] > 0).all()
    assert shares[2][2] > 0


def test_forgets_less_than_naive() -> None:
    options = ["scenario.experiences=4", "scenario.test=0.2", "backbone.hidden=64", "backbone.dropout=0"]
    options += ["trainer.accumulate=1", "trainer.batch_size=10", "trainer.max_epochs=1", "trainer.clip=null"]
    naive, ours = (
        run(built(name, *options, *own))["summary"]["ACC"]
        for name, own in (
            ("naive", []),
            ("ebbinghaus-replay", ["strategy.memory=100", "strategy.batch_size=10", "strategy.tau=100"]),
        )
    )
    assert ours > naive + 0.15


@pytest.mark.parametrize("option", ["tau=0", "weight=0", "batch_size=0", "memory=0"])
def test_options_out_of_range_are_refused(option: str) -> None:
    with pytest.raises(UsageError, match=option.split("=")[0]):
        built("ebbinghaus-replay", f"strategy.{option}")
