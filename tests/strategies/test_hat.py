"""HAT: the mask, what it protects under any optimiser, and the formulas against plain loops."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from clplat import registry
from clplat.errors import UsageError
from tests.cases import before, built, run
from tests.strategies.isolation import DRIFTS, assert_answers_never_change

SMALL = {
    "mlp": ("hidden=12", "dropout=0.2"),
    "gru": ("hidden=9", "layers=2"),
    "lstm": ("hidden=9", "layers=2"),
    "rnn": ("hidden=9", "layers=2"),
    "transformer": ("dim=12", "heads=2", "layers=1"),
}


@pytest.mark.parametrize("backbone", SMALL)
@pytest.mark.parametrize("drift", DRIFTS)
def test_with_masks_of_0_and_1_old_answers_keep_every_bit(backbone: str, drift: tuple[str, ...]) -> None:
    sizes = [f"backbone.{size}" for size in SMALL[backbone]]
    one = built("hat", f"backbone={backbone}", *sizes, *drift, "trainer.max_epochs=1", "eval.every=0")
    strategy = one.learner.strategy

    def choose(learner: Any, experience: Any) -> None:
        """Some units for all tasks, some for this one, some for none; the embeddings do not learn."""
        e = strategy.embeddings[experience.task_label]
        kind = torch.arange(len(e)) % 5
        with torch.no_grad():
            e.copy_(torch.where((kind == 0) | (kind == 1 + experience.task_label), 6.0, -6.0))
        e.requires_grad_(False)

    before(strategy, "start", choose)
    assert_answers_never_change(one)
    assert set(strategy.used.tolist()) == {0.0, 1.0}


def test_shares_of_the_step_are_those_of_the_equation() -> None:
    one = built("hat", "optimizer=sgd", "trainer.clip=null", "trainer.precision=64")
    strategy, learner = one.learner.strategy, one.learner
    run(one)
    strategy.used = torch.rand(24, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    strategy.used[[0, 13]] = 1.0
    weights = {n: p.detach().clone() for n, p in learner.backbone.named_parameters()}
    gradients = {n: torch.randn_like(p) for n, p in weights.items()}
    for name, p in learner.backbone.named_parameters():
        p.grad = gradients[name].clone()
    strategy.held.before_step(strategy.shares(learner))
    torch.optim.SGD(learner.backbone.parameters(), lr=0.3).step()
    strategy.held.after_step()
    a = strategy.used.tolist()
    for layer in (0, 1):
        now = dict(learner.backbone.named_parameters())
        for i in range(12):
            own = a[12 * layer + i]
            name = f"layers.{layer}.bias"
            expected = weights[name][i] - 0.3 * gradients[name][i] * (1 - own)
            assert now[name][i].item() == pytest.approx(expected.item(), abs=1e-12)
            name = f"layers.{layer}.weight"
            for j in range(weights[name].shape[1]):
                share = 1 - (min(own, a[j]) if layer else own)
                expected = weights[name][i, j] - 0.3 * gradients[name][i, j] * share
                assert now[name][i, j].item() == pytest.approx(expected.item(), abs=1e-12)


def test_compensation_annealing_and_regulariser_are_the_equations() -> None:
    one = built("hat", "trainer.clip=null", "trainer.precision=64", "strategy.smax=50")
    strategy, learner = one.learner.strategy, one.learner
    edit, scales = strategy.edit_gradients, []

    def compare(given: Any) -> None:
        steps, task = given.steps, given.experience.task_label
        b, B = 1 + steps.position % steps.steps_per_epoch, steps.steps_per_epoch
        s = 1 / 50 + (50 - 1 / 50) * (b - 1) / (B - 1)
        scales.append(s)
        e, g = strategy.embeddings[task].detach().clone(), strategy.embeddings[task].grad.clone()
        found = strategy.loss(given, None, None)["attention"].item()  # type: ignore[arg-type]
        a = [1 / (1 + math.exp(-s * v)) for v in e.tolist()]
        free = [1 - u for u in strategy.used.tolist()]
        assert found == pytest.approx(0.75 * sum(x * f for x, f in zip(a, free, strict=True)) / sum(free))
        edit(given)
        for before_, after, v in zip(g.tolist(), strategy.embeddings[task].grad.tolist(), e.tolist(), strict=True):
            clipped = max(-50.0, min(50.0, s * v))
            assert after == pytest.approx(before_ * 50 / s * (math.cosh(clipped) + 1) / (math.cosh(v) + 1))

    strategy.edit_gradients = compare
    run(one)
    B = 2 * 1  # 140 samples in batches of 51, two to a step
    assert len(scales) == 3 * 2 * B
    assert scales[:4] == [0.02, 50.0, 0.02, 50.0]  # from soft to hard inside each epoch
    assert all(float(e.detach().abs().max()) <= 6 for e in strategy.embeddings)
    assert learner.strategy.used.max() > 0


def test_answers_take_the_largest_scale_and_used_the_mask_of_the_end() -> None:
    one = built("hat")
    run(one)
    strategy = one.learner.strategy
    masks = [torch.sigmoid(400 * e.detach()) for e in strategy.embeddings]
    torch.testing.assert_close(strategy.used, torch.stack(masks).amax(0))
    learner, data = one.learner.eval(), one.scenario.test_stream[1].dataset
    h = data.x.flatten(1)
    for i, layer in enumerate(learner.backbone.layers):
        h = layer(h).relu() * masks[1][12 * i : 12 * (i + 1)]  # the paper's form: the output is masked
    expected = h @ learner.head.linear.weight[1].T + learner.head.linear.bias[1]
    torch.testing.assert_close(learner(data.x, data.task), expected.masked_fill(~learner.head.valid[1], -torch.inf))


def test_embeddings_of_other_tasks_do_not_move() -> None:
    one = built("hat", *DRIFTS[0])
    seen: list[torch.Tensor] = []
    before(one.learner.strategy, "finish", lambda *_: seen.append(one.learner.strategy.embeddings[0].detach().clone()))
    run(one)
    assert torch.equal(seen[0], seen[2])


@pytest.mark.parametrize("backbone", ["gru", "lstm", "rnn"])
def test_a_recurrent_unit_whose_rows_are_zero_puts_out_zero(backbone: str) -> None:
    network = registry.find("backbone", backbone).build(4, hidden=5, layers=2)
    weights = dict(network.named_parameters())
    layer, _ = network.units()
    with torch.no_grad():
        for name in layer.makes:
            weights[name].view(-1, layer.size, *weights[name].shape[1:])[:, 3] = 0
    _, state = network(torch.randn(2, 5, 4))
    assert torch.equal(state["hidden"][:, 0, 3], torch.zeros(2))
    assert bool((state["hidden"][:, 0, [0, 1, 2, 4]] != 0).all())


def test_forgets_next_to_nothing_and_learns() -> None:
    options = ["scenario.experiences=5", "trainer.max_epochs=30", "trainer.accumulate=1", "trainer.clip=null",
               "scenario.test=0.5", "backbone.dropout=0", "backbone.hidden=64", "eval.every=0"]  # fmt: skip
    found = run(built("hat", *options))["summary"]
    assert found["forgetting"] < 0.01
    assert found["ACC"] > 0.9


def test_options_out_of_range_are_refused() -> None:
    with pytest.raises(UsageError, match=r"smax=0\.5"):
        built("hat", "strategy.smax=0.5")
