"""MIR: the look-ahead is a plain step on a copy, and what it harms most is rehearsed."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from clplat.batch import Batch
from clplat.errors import UsageError
from tests.cases import before, built, run

PLAIN = ["trainer.precision=64", "backbone.dropout=0", "strategy.policy=reservoir", "strategy.memory=60"]


def _scores_by_hand(learner: Any, batch: Batch, rows: dict[str, Tensor], lr: float) -> list[float]:
    """A copy of the network, one step of SGD on the stream, and each candidate's loss before and after."""
    was = {name: p.detach().clone() for name, p in learner.network().items()}
    network = list(learner.network().values())
    stream = batch["stream"]
    loss = torch.nn.functional.cross_entropy(learner(stream.x, stream.task), stream.y)
    gradients = torch.autograd.grad(loss, network)

    def losses() -> list[float]:
        with torch.no_grad():
            return [
                float(torch.nn.functional.cross_entropy(learner(x[None], stream.task[:1]), y[None]))
                for x, y in zip(rows["x"], rows["y"], strict=True)
            ]

    old = losses()
    with torch.no_grad():
        for p, g in zip(network, gradients, strict=True):
            p.sub_(lr * g)
    new = losses()
    with torch.no_grad():
        for name, p in learner.network().items():
            p.copy_(was[name])
    return [b - a for a, b in zip(old, new, strict=True)]


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_the_most_harmed_candidates_are_chosen(optimizer: str) -> None:
    one = built(
        "mir", *PLAIN, f"optimizer={optimizer}", "optimizer.lr=0.02", "strategy.candidates=40", "trainer.clip=null"
    )
    strategy = one.learner.strategy
    choose = strategy.choose
    checked = 0

    def check(learner: Any, batch: Batch, n: int) -> Tensor:
        nonlocal checked
        index = choose(learner, batch, n)
        if batch.experience and batch.step % 4 == 0:
            slots = strategy.memory.slots()
            slots = slots[strategy.memory.rows(slots)["experience"] != batch.experience]
            draws = learner.generator("mir/candidates", batch.step, batch.micro)
            slots = slots[torch.randperm(len(slots), generator=draws)[:40]]
            if len(slots) > n:
                scores = _scores_by_hand(learner, batch, strategy.memory.rows(slots), 0.02)
                best = sorted(range(len(slots)), key=lambda i: -scores[i])[:n]
                assert index.tolist() == slots[best].tolist()
                checked += 1
        return index

    strategy.choose = check
    run(one)
    assert checked >= 4


def test_the_look_ahead_leaves_everything_as_it_was() -> None:
    one = built("mir", *PLAIN)
    strategy, learner = one.learner.strategy, one.learner
    choose, looked = strategy.choose, 0

    def watch(learner: Any, batch: Batch, n: int) -> Tensor:
        nonlocal looked
        weights = copy.deepcopy(dict(learner.network()))
        gradients = [None if p.grad is None else p.grad.clone() for p in learner.parameters()]
        moments = copy.deepcopy(learner.optimizer_state())
        index = choose(learner, batch, n)
        assert learner.training
        assert all(torch.equal(p, weights[name]) for name, p in learner.network().items())
        for p, g in zip(learner.parameters(), gradients, strict=True):
            assert (p.grad is None) if g is None else torch.equal(p.grad, g)
        after = learner.optimizer_state()
        for number, state in moments["state"].items():
            assert all(torch.equal(value, after["state"][number][key]) for key, value in state.items())
        looked += len(index)
        return index

    strategy.choose = watch
    run(one)
    assert looked
    assert learner.step


@pytest.mark.parametrize("current", [False, True])
def test_the_current_experience_is_no_candidate_unless_wanted(current: bool) -> None:
    one = built("mir", *PLAIN, f"strategy.current={current}")
    strategy = one.learner.strategy
    rehearsed: dict[int, set[int]] = {}

    def watch(learner: Any, batch: Batch, output: Any) -> None:
        if "mir" in batch:
            experiences = strategy.memory.rows(batch["mir"].index)["experience"]
            rehearsed.setdefault(batch.experience, set()).update(experiences.tolist())

    before(strategy, "observe", watch)
    run(one)
    if current:
        assert rehearsed == {0: {0}, 1: {0, 1}, 2: {0, 1, 2}}
        assert strategy.needs == ()
    else:
        assert rehearsed == {1: {0}, 2: {0, 1}}


def test_with_no_more_candidates_than_places_all_are_rehearsed() -> None:
    one = built("mir", *PLAIN, "strategy.memory=6", "strategy.batch_size=7")
    sizes: set[int] = set()
    before(
        one.learner.strategy,
        "observe",
        lambda learner, batch, output: sizes.add(batch["mir"].n_global) if "mir" in batch else None,
    )
    run(one)
    assert max(sizes) <= 6


@pytest.mark.slow
def test_forgets_less_than_naive() -> None:
    options = ["scenario.experiences=4", "scenario.test=0.2", "backbone.hidden=64", "backbone.dropout=0"]
    options += ["trainer.accumulate=1", "trainer.batch_size=10", "trainer.max_epochs=1", "trainer.clip=null"]
    naive, mir = (
        run(built(name, *options, *own))["summary"]["ACC"]
        for name, own in (
            ("naive", []),
            (
                "mir",
                [
                    "strategy.memory=100",
                    "strategy.candidates=50",
                    "strategy.batch_size=10",
                    "strategy.policy=reservoir",
                ],
            ),
        )
    )
    assert mir > naive + 0.1


def test_fewer_candidates_than_places_are_refused() -> None:
    with pytest.raises(UsageError, match="candidates"):
        built("mir", "strategy.candidates=5")
