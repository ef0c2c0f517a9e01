"""GDumb: the memory is balanced, and the network knows nothing else."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from clplat.errors import UsageError
from tests.cases import before, built, run

SPLIT = ["scenario=split-digits", "scenario.experiences=3", "trainer.accumulate=1"]


def _network(learner: Any) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in learner.network().items()}


def test_every_experience_starts_from_the_initial_network() -> None:
    one = built("gdumb", *SPLIT)
    initial = _network(one.learner)
    starts: list[dict[str, Tensor]] = []
    before(one.learner.strategy, "phases", lambda learner, experience: starts.append(_network(learner)))
    run(one)
    assert len(starts) == 3
    for start in starts:
        assert all(torch.equal(start[name], initial[name]) for name in initial)
    assert any(not torch.equal(p, initial[name]) for name, p in _network(one.learner).items())


def test_outputs_that_grow_later_start_anew_too() -> None:
    one = built("gdumb", *SPLIT, "learner.head=growing")
    weights: list[Tensor] = []
    before(
        one.learner.strategy,
        "phases",
        lambda learner, experience: weights.append(_network(learner)["head.linear.weight"]),
    )
    run(one)
    assert [len(w) for w in weights] == [4, 7, 10]
    assert torch.equal(weights[2][:4], weights[0])
    assert torch.equal(weights[2][:7], weights[1])


def test_running_statistics_start_anew_too() -> None:
    one = built("gdumb", *SPLIT)
    one.learner.backbone.register_buffer("average", torch.zeros(3))
    one.learner.strategy.attach(one.learner)
    seen: list[Tensor] = []
    strategy = one.learner.strategy
    before(strategy, "phases", lambda learner, experience: seen.append(learner.backbone.average.clone()))
    before(strategy, "observe", lambda learner, batch, output: learner.backbone.average.add_(1))
    run(one)
    assert (one.learner.backbone.average > 0).all()
    assert [s.tolist() for s in seen] == [[0.0] * 3] * 3


def test_trains_on_the_memory_alone_for_its_own_number_of_passes() -> None:
    one = built("gdumb", *SPLIT, "strategy.epochs=4", "strategy.memory=25", "trainer.batch_size=10")
    strategy = one.learner.strategy
    used: dict[int, list[Tensor]] = {}
    before(
        strategy,
        "observe",
        lambda learner, batch, output: used.setdefault(batch.experience, []).append(batch["stream"].x),
    )
    run(one)
    held = strategy.memory.rows(torch.arange(25))["x"]
    for xs in used.values():
        assert sum(map(len, xs)) == 4 * 25
    rows = torch.cat(used[2]).flatten(1)
    for sample in held.flatten(1):
        assert int((rows == sample).all(1).sum()) >= 4


def test_the_memory_is_balanced_over_all_classes_so_far() -> None:
    one = built("gdumb", *SPLIT, "strategy.memory=21")
    strategy = one.learner.strategy
    sizes: list[list[int]] = []
    before(
        strategy,
        "phases",
        lambda learner, experience: sizes.append(sorted(len(slots) for slots in strategy.memory.groups.values())),
    )
    run(one)
    assert sizes == [[5, 5, 5, 6], [3] * 7, [2] * 9 + [3]]


def test_a_repeated_end_does_not_change_what_was_learned() -> None:
    one = built("gdumb", *SPLIT)
    run(one)
    kept = _network(one.learner)
    one.learner.strategy.finish(one.learner, one.scenario.train_stream[2])
    assert all(torch.equal(p, kept[name]) for name, p in _network(one.learner).items())


@pytest.mark.slow
def test_one_memory_is_enough_to_remember_all_classes() -> None:
    """The paper's point: no rehearsal during the stream is needed; and passes matter for a small memory."""
    options = ["scenario=split-digits", "scenario.experiences=5", "scenario.test=0.2", "backbone.hidden=64"]
    options += ["backbone.dropout=0", "trainer.accumulate=1", "trainer.batch_size=16"]
    naive, few, many = (
        run(built(name, *options, *own))["summary"]["ACC"]
        for name, own in (
            ("naive", []),
            ("gdumb", ["strategy.memory=100", "strategy.epochs=1"]),
            ("gdumb", ["strategy.memory=100", "strategy.epochs=30"]),
        )
    )
    assert many > naive + 0.3
    assert many > few + 0.1


def test_options_out_of_range_are_refused() -> None:
    with pytest.raises(UsageError, match="epochs"):
        built("gdumb", "strategy.epochs=0")
