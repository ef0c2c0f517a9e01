"""The homeostatic learning rate against a naive loop, and its control."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as nnf

from clplat.build import Built, build_strategy
from clplat.errors import UsageError
from tests.cases import before, built, run

PLAIN = [
    "trainer.precision=64", "backbone.dropout=0", "trainer.accumulate=1", "trainer.batch_size=10", "optimizer=sgd",
    "optimizer.lr=0.05", "scenario.experiences=2", "eval.every=0", "strategy.memory=20", "strategy.step=0.1",
]  # fmt: skip


def _trace(one: Built) -> tuple[list[float], list[dict[str, Any]]]:
    """eta / eta_0 after each step, and at each step what the decision is made from."""
    factors: list[float] = []
    asked: list[dict[str, Any]] = []
    past: list[tuple[torch.Tensor, torch.Tensor]] = []

    def ask(learner: Any, batch: Any, _: Any) -> None:
        network = torch.nn.Sequential(*_layers(learner))
        asked.append({"network": network, "x": batch.x.flatten(1), "y": batch.y.clone(), "past": past[-20:]})
        past.extend(zip(batch.x.flatten(1), batch.y, strict=True))

    before(one.learner.strategy, "observe", ask)
    before(one.learner.strategy, "after_step", lambda learner, _: factors.append(_rate(learner) / 0.05))
    run(one)
    return factors, asked


def _rate(learner: Any) -> float:
    return float(learner.optimizers(use_pl_optimizer=False).param_groups[0]["lr"])


def _layers(learner: Any) -> list[torch.nn.Module]:
    found: list[torch.nn.Module] = []
    for layer in learner.backbone.layers:
        found += [copy.deepcopy(layer), torch.nn.ReLU()]
    return [*found, copy.deepcopy(learner.head.linear)]


def _right(network: torch.nn.Module, x: torch.Tensor, y: torch.Tensor, rate: float, past: list[Any]) -> int:
    """How many of the past samples are right after one step of plain descent on one sample of ten."""
    moved = copy.deepcopy(network)
    (nnf.cross_entropy(moved(x[None]), y[None]) / 10).backward()
    with torch.no_grad():
        for p in moved.parameters():
            p -= rate * p.grad
        return sum(int(moved(a).argmax() == b) for a, b in past)


def test_the_rate_follows_a_naive_loop() -> None:
    factors, asked = _trace(built("homeostatic-lr", *PLAIN, "strategy.step=0.3"))
    factor, taken = 1.0, 0
    for found, step in zip(factors, asked, strict=True):
        if len(step["past"]) == 20 and len(step["y"]) == 10:
            x, y = step["x"][0], step["y"][0]
            recognised = int(step["network"](x).argmax())
            other = max(factor + 0.3 * (1 if recognised >= 5 else -1), 1e-5)
            stay, go = (_right(step["network"], x, y, 0.05 * f, step["past"]) for f in (factor, other))
            if go > stay:
                taken += 1
                factor = max(factor + 0.3 * (1 if int(y) >= 5 else -1), 1e-5)
        elif len(step["past"]) == 20:
            factor = found  # an odd last batch divides by its own size
        assert found == pytest.approx(factor, rel=1e-9)
    assert taken >= 1


def test_nothing_is_decided_before_the_memory_is_full() -> None:
    factors, _ = _trace(built("homeostatic-lr", *PLAIN, "strategy.mode=random", "strategy.memory=25"))
    assert factors[:3] == pytest.approx([1.0] * 3)
    assert len(set(factors)) > 5


def test_the_control_moves_half_of_the_time_by_the_true_class() -> None:
    one = built("homeostatic-lr", *PLAIN, "strategy.mode=random", "strategy.step=0.01", "trainer.max_epochs=10")
    factors, asked = _trace(one)
    moved = 0
    for before_it, after, step in zip([1.0, *factors], factors, asked, strict=False):
        if after != pytest.approx(before_it, abs=1e-9):
            moved += 1
            assert after - before_it == pytest.approx(0.01 if step["y"][0] >= 5 else -0.01)
    assert 0.4 < moved / len(factors) < 0.6


def test_the_rate_stays_above_its_floor() -> None:
    options = ["strategy.mode=random", "strategy.step=2", "strategy.floor=0.125", "trainer.max_epochs=4"]
    factors, _ = _trace(built("homeostatic-lr", *PLAIN, *options))
    assert min(factors) == pytest.approx(0.125)


def test_a_right_guess_that_helps_raises_the_rate_by_exactly_one_step() -> None:
    """One sample of class 7, known as such; the memory is right only under the larger rate."""
    one = built("homeostatic-lr", *PLAIN)
    strategy, learner = one.learner.strategy, one.learner
    answers = iter([False, True, False])
    strategy._takes = lambda *_: next(answers)  # type: ignore[method-assign]
    seen: list[float] = []
    data = one.scenario.train_stream[0].dataset
    learner.data = data
    from clplat.batch import Batch, Part

    sevens, twos = (torch.nonzero(data.y == label).squeeze(1)[:20] for label in (7, 2))
    for index in (sevens, sevens, sevens, twos):
        x, y, task = data.rows(index)
        batch = Batch([Part("stream", x, y, task, index, slice(0, 20))], experience=0, epoch=0, step=0)
        with torch.no_grad():
            output = learner.output(x.double(), task)
        strategy.observe(learner, batch, output)
        seen.append(strategy.lr_factor(learner))
    assert seen == pytest.approx([1.0, 1.0, 1.1, 1.1])


@pytest.mark.parametrize("option", [{"step": -0.1}, {"memory": 0}, {"floor": 0.0}])
def test_options_out_of_range_are_refused(option: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="homeostatic-lr"):
        build_strategy({"name": "homeostatic-lr", **option})
