"""RWalk: Fisher, path score and their normalisation, by a loop of its own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from clplat.build import build_strategy
from clplat.errors import UsageError
from clplat.strategies.rwalk import scaled
from tests.cases import before, built, run


def _by_definition(one: Any, alpha: float, interval: int, damping: float) -> dict[str, Tensor]:
    """F^ + S^ after the run, everything flat, from one more backward pass of the task's loss at each step."""
    learner, strategy = one.learner, one.learner.strategy
    network = learner.network()
    flat = lambda tensors: torch.cat([t.detach().flatten() for t in tensors])  # noqa: E731
    state: dict[str, Any] = {"F": torch.zeros_like(flat(network.values())), "S": None}
    falls: list[Tensor] = []
    squares: list[Tensor] = []

    def close() -> None:
        if falls:
            F = alpha * torch.stack(squares).mean(0) + (1 - alpha) * state["F"]
            moved = flat(network.values()) - state["from"]
            state["s"] = state["s"] + torch.clamp(sum(falls) / (0.5 * F * moved**2 + damping), min=0)
            state["F"] = F
        falls.clear(), squares.clear()
        state["from"] = flat(network.values()).clone()

    def begin(learner: Any, experience: Any) -> None:
        state["s"] = torch.zeros_like(state["F"])
        state["from"] = flat(network.values()).clone()

    def task_gradient(learner: Any, batch: Any, output: Any) -> None:
        loss = batch.reduce(learner.base_loss(output.logits, batch.y))
        state["g"] = flat(torch.autograd.grad(loss, list(network.values()), retain_graph=True))

    def weights(learner: Any) -> None:
        state["before"] = flat(network.values()).clone()

    def stepped(learner: Any, batch: Any) -> None:
        falls.append(-state["g"] * (flat(network.values()) - state["before"]))
        squares.append(state["g"] ** 2)
        if len(falls) == interval:
            close()

    def end(learner: Any, experience: Any) -> None:
        close()
        state["S"] = state["s"] if state["S"] is None else (state["S"] + state["s"]) / 2

    hooks = {"start": begin, "loss": task_gradient, "edit_gradients": weights, "after_step": stepped, "finish": end}
    for hook, call in hooks.items():
        before(strategy, hook, call)
    run(one)
    unit = [(v - v.min()) / (v.max() - v.min()) for v in (state["F"], state["S"])]
    pieces = sum(unit).split([p.numel() for p in network.values()])
    return {name: piece.view_as(p) for (name, p), piece in zip(network.items(), pieces, strict=True)}


@pytest.mark.parametrize("interval", [1, 3, 1000])
def test_importance_is_the_papers(interval: int) -> None:
    one = built(
        "rwalk", "trainer.precision=64", "trainer.accumulate=1", "strategy.strength=5", f"strategy.interval={interval}",
        "strategy.alpha=0.8", "strategy.damping=0.002",
    )  # fmt: skip
    expected = _by_definition(one, 0.8, interval, 0.002)
    found = one.learner.strategy.penalty.importance
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-7, atol=1e-9)


def test_scaling_is_over_all_parameters_together() -> None:
    found = scaled({"a": torch.tensor([1.0, 3.0]), "b": torch.tensor([[5.0], [2.0]])})
    torch.testing.assert_close(found["a"], torch.tensor([0.0, 0.5]))
    torch.testing.assert_close(found["b"], torch.tensor([[1.0], [0.25]]))
    assert float(scaled({"a": torch.full((3,), 2.0)})["a"].abs().max()) == 0


def test_with_no_strength_is_naive_and_with_strength_forgets_less() -> None:
    options = ["trainer.max_epochs=12", "trainer.accumulate=1", "backbone.dropout=0", "backbone.hidden=64"]
    naive = run(built("naive", *options))
    assert run(built("rwalk", *options, "strategy.strength=0"))["matrix"] == naive["matrix"]
    rwalk = run(built("rwalk", *options, "strategy.strength=1", "strategy.interval=10"))
    assert rwalk["summary"]["forgetting"] < naive["summary"]["forgetting"] - 0.03
    assert rwalk["summary"]["ACC"] > naive["summary"]["ACC"]


def test_options_out_of_range_are_refused() -> None:
    for options in ({"strength": -1.0}, {"alpha": 0.0}, {"interval": 0}, {"damping": 0.0}):
        with pytest.raises(UsageError, match=next(iter(options))):
            build_strategy({"name": "rwalk", **options})
