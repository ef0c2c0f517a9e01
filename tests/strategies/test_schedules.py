"""Schedules of the learning rate: their curves, what the optimiser gets, and what comes back after annealing."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from clplat.build import Built, build_strategy
from clplat.errors import UsageError
from tests.cases import before, built, run


def _rates(one: Built) -> list[list[list[float]]]:
    """The learning rates of all groups at each step of each experience, as the optimiser has them when it steps."""
    found: list[list[list[float]]] = []

    def after(learner: Any, *_: Any) -> None:
        if learner.steps.position == 0:
            found.append([])
        found[-1].append([group["lr"] for group in learner.optimizers(use_pl_optimizer=False).param_groups])

    before(one.learner.strategy, "after_step", after)
    run(one)
    return found


@pytest.mark.parametrize("shape", ["cosine", "linear", "inverse-sqrt"])
def test_the_infinite_schedule_has_its_values_at_the_borders_and_no_jump(shape: str) -> None:
    schedule = build_strategy({"name": "infinite-lr", "shape": shape, "constant": 0.2, "minimum": 0.02})
    for u, value in {0: 0.0, 0.05: 1.0, 0.15: 0.2, 0.5: 0.2, 0.8: 0.2, 1: 0.02}.items():
        assert schedule.factor(u, first=True) == pytest.approx(value)
    for u, value in {0: 0.2, 0.05: 0.2, 0.8: 0.2, 0.9: (0.2 * 0.02) ** 0.5, 1: 0.02}.items():
        assert schedule.factor(u, first=False) == pytest.approx(value)
    for first in (True, False):
        curve = [schedule.factor(i / 10_000, first) for i in range(10_001)]
        assert max(abs(b - a) for a, b in pairwise(curve)) < 0.01
    cooling = [schedule.factor(0.05 + i / 1000, first=True) for i in range(101)]
    assert all(a > b for a, b in pairwise(cooling))


def test_the_shapes_differ_in_the_middle_as_their_formulas_say() -> None:
    middle = {}
    for shape in ("cosine", "linear", "inverse-sqrt"):
        schedule = build_strategy({"name": "infinite-lr", "shape": shape, "constant": 0.1})
        middle[shape] = (schedule.factor(0.075, first=True) - 0.1) / 0.9  # a quarter of the way down
    assert middle["cosine"] == pytest.approx(0.5 * (1 + 2**-0.5))
    assert middle["linear"] == pytest.approx(0.75)
    # eta_max + (eta_const - eta_max) * h(v)/h(1), h(v) = 1/sqrt(1 + 10 v) - 1
    assert middle["inverse-sqrt"] == pytest.approx(1 - (3.5**-0.5 - 1) / (11**-0.5 - 1))


def test_the_cosine_schedule_begins_anew_in_each_experience() -> None:
    schedule = build_strategy({"name": "cosine-lr", "warmup": 0.2, "minimum": 0.1})
    for u, value in {0: 0.0, 0.1: 0.5, 0.2: 1.0, 0.6: 0.55, 1: 0.1}.items():
        assert schedule.factor(u) == pytest.approx(value)
    rates = _rates(built("cosine-lr", "trainer.max_epochs=5"))
    assert len(rates) == 3
    assert rates[0] == rates[1] == rates[2]
    assert max(rates[0])[0] == pytest.approx(0.01, rel=0.05)
    assert rates[0][-1][0] == pytest.approx(1e-4)


def test_the_optimiser_gets_the_rates_of_the_schedule_and_warms_up_once() -> None:
    one = built("infinite-lr", "trainer.max_epochs=5")
    schedule = one.learner.strategy
    rates = _rates(one)
    for number, experience in enumerate(rates):
        total = len(experience)
        expected = [0.01 * schedule.factor((step + 1) / total, number == 0) for step in range(total)]
        assert [rate for (rate,) in experience] == pytest.approx(expected)
    assert max(rates[0])[0] > 5 * max(rates[1])[0]


def test_groups_with_a_rate_of_their_own_keep_the_ratio() -> None:
    rates = _rates(built("tests.probes:TwoPhase+cosine-lr", "optimizer.lr=0.02"))
    steps = [rate for experience in rates for rate in experience if len(rate) == 2]
    assert len(steps) > 10
    assert all(own == pytest.approx(network / 2) for network, own in steps)
    assert len({network for network, _ in steps}) > 3


def test_factors_of_a_combination_multiply() -> None:
    both = _rates(built("cosine-lr+infinite-lr", "trainer.max_epochs=3"))
    cosine = _rates(built("cosine-lr", "trainer.max_epochs=3"))
    infinite = _rates(built("infinite-lr", "trainer.max_epochs=3"))
    for two, a, b in zip(both, cosine, infinite, strict=True):
        assert [x for (x,) in two] == pytest.approx([x * y / 0.01 for (x,), (y,) in zip(a, b, strict=True)])


def _follow(one: Built) -> tuple[list[list[dict[str, Tensor]]], list[dict[str, Tensor]]]:
    """Weights after each step of each experience, and at its beginning."""
    after: list[list[dict[str, Tensor]]] = []
    starts: list[dict[str, Tensor]] = []

    def weights() -> dict[str, Tensor]:
        return {name: p.detach().clone() for name, p in one.learner.network().items()}

    def first(learner: Any) -> None:
        if learner.steps.position == 0:
            starts.append(weights())
            after.append([])

    before(one.learner.strategy, "edit_gradients", first)
    before(one.learner.strategy, "after_step", lambda *_: after[-1].append(weights()))
    run(one)
    return after, starts


@pytest.mark.parametrize("rewind", [True, False])
def test_the_next_experience_goes_on_from_before_the_annealing(rewind: bool) -> None:
    after, starts = _follow(built("infinite-lr", "trainer.max_epochs=5", f"strategy.rewind={str(rewind).lower()}"))
    for steps, start in zip(after[:-1], starts[1:], strict=True):
        at = steps[int(0.8 * len(steps)) - 1] if rewind else steps[-1]
        assert all(torch.equal(start[name], at[name]) for name in start)
    last = after[-1]
    assert not torch.equal(last[-1]["head.linear.bias"], last[int(0.8 * len(last)) - 1]["head.linear.bias"])


@pytest.mark.slow
def test_infinite_forgets_less_than_repeated_cosine() -> None:
    """The seed paper's point on a domain-incremental stream, at equal steps, over three seeds."""
    options = [
        "scenario=rotated-digits", "scenario.experiences=3", "trainer.max_epochs=10", "trainer.accumulate=1",
        "backbone.dropout=0", "backbone.hidden=64", "eval.every=0", "trainer.clip=null",
    ]  # fmt: skip
    forgetting = {
        strategy: sum(run(built(strategy, *options, f"seed={seed}"))["summary"]["forgetting"] for seed in range(3))
        for strategy in ("infinite-lr", "cosine-lr")
    }
    assert forgetting["infinite-lr"] < forgetting["cosine-lr"] - 0.05


@pytest.mark.parametrize(
    "section",
    [
        {"name": "infinite-lr", "warmup": 0.3, "cooldown": 0.2},
        {"name": "infinite-lr", "minimum": 0.5, "constant": 0.1},
        {"name": "infinite-lr", "timescale": 0.0},
        {"name": "cosine-lr", "warmup": 1.0},
        {"name": "cosine-lr", "minimum": -0.1},
    ],
)
def test_options_out_of_range_are_refused(section: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=section["name"]):
        build_strategy(section)
