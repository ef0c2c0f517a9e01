"""SI: the importances are those of the paper's path integral, computed here by a loop of its own."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from clplat.build import build_strategy
from clplat.errors import UsageError
from tests.cases import before, built, run


def _path_integral(one: Any, damping: float, with_penalty: bool) -> dict[str, torch.Tensor]:
    """Omega after the run by the definition, from one more backward pass of the task's loss at each step."""
    learner, strategy = one.learner, one.learner.strategy
    network = learner.network()
    zeros = {name: torch.zeros_like(p) for name, p in network.items()}
    omega, importance = {}, dict(zeros)
    kept: dict[str, Any] = {}

    def begin(learner: Any, experience: Any) -> None:
        kept["start"] = {name: p.detach().clone() for name, p in network.items()}
        omega.update({name: torch.zeros_like(p) for name, p in network.items()})

    def task_gradient(learner: Any, batch: Any, output: Any) -> None:
        loss = batch.reduce(learner.base_loss(output.logits, batch.y))
        kept["g"] = torch.autograd.grad(loss, list(network.values()), retain_graph=True)

    def weights(learner: Any) -> None:
        kept["before"] = [p.detach().clone() for p in network.values()]
        if with_penalty:
            kept["g"] = [p.grad.clone() for p in network.values()]

    def stepped(learner: Any, batch: Any) -> None:
        for (name, p), g, old in zip(network.items(), kept["g"], kept["before"], strict=True):
            omega[name] -= g * (p.detach() - old)

    def end(learner: Any, experience: Any) -> None:
        for name, p in network.items():
            share = omega[name] / ((p.detach() - kept["start"][name]) ** 2 + damping)
            importance[name] = torch.clamp(importance[name] + share, min=0)

    hooks = {"start": begin, "loss": task_gradient, "edit_gradients": weights, "after_step": stepped, "finish": end}
    for hook, call in hooks.items():
        before(strategy, hook, call)
    run(one)
    return importance


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_importance_is_the_path_integral_of_the_task_loss_alone(optimizer: str) -> None:
    options = ["trainer.precision=64", "trainer.accumulate=1", "trainer.clip=0.05", f"optimizer={optimizer}"]
    momentum = ["optimizer.momentum=0.9"] if optimizer == "sgd" else []
    found = {}
    for with_penalty in (False, True):
        one = built("si", *options, *momentum, "strategy.strength=20", "strategy.damping=0.01")
        expected = _path_integral(one, 0.01, with_penalty)
        found[with_penalty] = one.learner.strategy.penalty.importance
        close = [torch.allclose(found[with_penalty][n], e, rtol=1e-7, atol=1e-9) for n, e in expected.items()]
        assert all(close) != with_penalty  # the gradient of task and penalty together gives something else
    assert any((importance > 1e-3).any() for importance in found[False].values())


def test_the_penalty_is_without_a_half_and_pulls_to_where_the_experience_began() -> None:
    one = built("si", "trainer.precision=64", "strategy.strength=3")
    run(one)
    learner, strategy = one.learner, one.learner.strategy
    strategy.start(learner, one.scenario.train_stream[0])
    anchor = {name: p.detach().clone() for name, p in learner.network().items()}
    importance = strategy.penalty.importance
    with torch.no_grad():
        for p in learner.network().values():
            p.add_(torch.randn_like(p))
    network = learner.network()
    expected = 3 * sum((importance[n] * (network[n] - anchor[n]) ** 2).sum() for n in network)
    found = strategy.loss(learner, None, None)["penalty"]
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=0)
    by_autograd = torch.autograd.grad(found, list(network.values()))
    for g, closed in zip(by_autograd, strategy.penalty.gradient(network).values(), strict=True):
        torch.testing.assert_close(g, 3 * closed, rtol=1e-10, atol=1e-14)


def test_path_restarts_with_each_experience_and_importances_do_not() -> None:
    one = built("si")
    totals: list[float] = []
    strategy = one.learner.strategy

    def begun(learner: Any, batch: Any, output: Any) -> None:
        if (
            batch.epoch == 0
            and batch.micro == 0
            and float(sum(o.abs().sum() for o in strategy.recall("omega").values())) == 0
        ):
            totals.append(float(sum(i.sum() for i in strategy.penalty.importance.values())))

    before(strategy, "loss", begun)
    run(one)
    assert len(totals) == 3
    assert totals[0] == 0 < totals[1] < totals[2]


def test_a_weight_that_never_moved_has_no_importance() -> None:
    """Pixels that are always 0 move no weight; without damping their importance would be 0/0."""
    one = built("si", "scenario=split-digits", "scenario.experiences=2")
    run(one)
    importance = one.learner.strategy.penalty.importance
    assert all(i.isfinite().all() for i in importance.values())
    corner = importance["backbone.layers.0.weight"][:, 0]  # the first pixel of the digits is blank
    assert torch.equal(corner, torch.zeros_like(corner))


@pytest.mark.slow
def test_with_no_strength_is_naive_and_with_strength_forgets_less() -> None:
    options = ["trainer.max_epochs=12", "trainer.accumulate=1", "backbone.dropout=0", "backbone.hidden=64"]
    naive = run(built("naive", *options))
    assert run(built("si", *options, "strategy.strength=0"))["matrix"] == naive["matrix"]
    si = run(built("si", *options, "strategy.strength=3", "strategy.damping=0.001"))
    assert si["summary"]["forgetting"] < naive["summary"]["forgetting"] - 0.05
    assert si["summary"]["ACC"] > naive["summary"]["ACC"] + 0.02


def test_options_out_of_range_are_refused() -> None:
    for options in ({"strength": -1.0}, {"damping": 0.0}):
        with pytest.raises(UsageError, match=next(iter(options))):
            build_strategy({"name": "si", **options})
