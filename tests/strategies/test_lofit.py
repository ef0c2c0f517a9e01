"""LoFiT: what is frozen, which heads are chosen, what the offsets do, and what they are worth."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from clplat.build import Built
from clplat.errors import UsageError
from tests.cases import before, built, run
from tests.strategies.isolation import DRIFTS, assert_answers_never_change


@pytest.mark.parametrize("drift", DRIFTS)
def test_old_answers_keep_every_bit(drift: tuple[str, ...]) -> None:
    assert_answers_never_change(built("lofit", *drift))


def test_after_the_first_task_the_network_keeps_every_bit_and_offsets_off_is_the_base() -> None:
    one = built("lofit", *DRIFTS[0])
    strategy, learner, seen = one.learner.strategy, one.learner, []
    data = one.scenario.test_stream[0].dataset

    def look(*_: object) -> None:
        with learner.evaluating():
            y, _ = learner.backbone(learner.encoder(data.x))
        seen.append([y, *(p.detach().clone() for p in learner.backbone.parameters())])

    before(strategy, "finish", look)
    run(one)
    for now in zip(*seen, strict=True):
        assert all(torch.equal(now[0], later) for later in now[1:])


def test_the_longest_scales_are_chosen_and_no_other_head_has_an_offset() -> None:
    one = built("lofit", "strategy.heads=2")
    strategy, chosen = one.learner.strategy, []
    choose = strategy._choose

    def compare(learner: Any) -> None:
        lengths = {(l, h): strategy.scales[l, h].norm().item() for l in range(2) for h in range(2)}  # noqa: E741
        choose(learner)
        best = sorted(lengths, key=lengths.__getitem__)[-2:]
        assert min(lengths[key] for key in best) > 0
        assert {tuple(key) for key in strategy.chosen.nonzero().tolist()} == set(best)
        chosen.append(strategy.chosen.clone())

    strategy._choose = compare
    run(one)
    assert sorted(strategy.offsets) == ["1", "2"]
    for task, mask in zip("12", chosen, strict=True):
        assert torch.equal(strategy.offsets[task].norm(dim=-1) > 0, mask)
        assert float(strategy.offsets[task].detach().abs().max()) > 5e-3  # it has moved from its start


def test_an_offset_is_a_change_of_the_output_projections_bias() -> None:
    one = built("lofit", "trainer.precision=64")
    run(one)
    learner, strategy = one.learner.eval(), one.learner.strategy
    data = one.scenario.test_stream[2].dataset
    x = data.x.double()
    found = learner(x, data.task)
    with torch.no_grad():
        for layer, mixer in enumerate(learner.backbone.mixers):
            mixer.out.bias += mixer.out.weight @ strategy.offsets["2"][layer].flatten()
        y, _ = learner.backbone(learner.encoder(x))
        merged = learner.head(learner.features(y), data.task)
    torch.testing.assert_close(found, merged, rtol=1e-9, atol=1e-12)


def test_the_selection_has_its_scales_and_its_penalty() -> None:
    one = built("lofit", "strategy.l1=0.7", "trainer.precision=64")
    run(one)
    learner, strategy = one.learner.eval(), one.learner.strategy
    strategy.selecting = True
    with torch.no_grad():
        strategy.scales.copy_(torch.randn_like(strategy.scales))
    found = strategy.loss(learner, None, None)["l1"].item()
    assert found == pytest.approx(0.7 * sum(abs(v) for v in strategy.scales.flatten().tolist()))
    data = one.scenario.test_stream[2].dataset
    x_BTD = learner.encoder(data.x.double())
    scaled, _ = strategy.forward(learner, x_BTD, data.task)
    with torch.no_grad():
        for layer, mixer in enumerate(learner.backbone.mixers):
            mixer.out.weight *= 1 + strategy.scales[layer].flatten()
    torch.testing.assert_close(scaled, learner.backbone(x_BTD)[0], rtol=1e-9, atol=1e-12)
    with torch.no_grad():
        strategy.scales.zero_()
    first, _ = strategy.forward(learner, x_BTD, torch.zeros_like(data.task))
    torch.testing.assert_close(first, learner.backbone(x_BTD)[0], rtol=0, atol=0)  # not the first task's


LEARNS = [
    "scenario.experiences=5", "trainer.max_epochs=15", "trainer.accumulate=1", "trainer.clip=null",
    "scenario.test=0.5", "backbone.dim=32", "backbone.heads=4", "backbone.layers=2", "backbone.dropout=0",
    "eval.every=0", "optimizer.lr=0.003", "strategy.heads=2", "strategy.offset_lr=0.05", "strategy.select_lr=0.01",
]  # fmt: skip


def _accuracy_with(one: Built, offsets: dict[str, Tensor]) -> float:
    with torch.no_grad():
        for task, value in offsets.items():
            one.learner.strategy.offsets[task].copy_(value)
    right, n = 0, 0
    for experience in one.scenario.test_stream[1:]:
        data = experience.dataset
        with one.learner.evaluating():
            right += int((one.learner(data.x, data.task).argmax(-1) == data.y).sum())
        n += len(data)
    return right / n


@pytest.mark.slow
def test_a_few_numbers_at_two_heads_carry_the_later_tasks() -> None:
    one = built("lofit", *LEARNS)
    found = run(one)["summary"]
    strategy = one.learner.strategy
    offsets = {task: v.detach().clone() for task, v in strategy.offsets.items()}
    assert found["forgetting"] == 0
    assert int((offsets["1"] != 0).sum()) <= 2 * 8 < 0.01 * sum(p.numel() for p in one.learner.backbone.parameters())
    own = _accuracy_with(one, offsets)
    assert own > 0.85
    order = sorted(offsets)
    another = _accuracy_with(one, {t: offsets[order[(i + 1) % len(order)]] for i, t in enumerate(order)})
    without = _accuracy_with(one, {t: torch.zeros_like(v) for t, v in offsets.items()})
    assert own > max(another, without) + 0.02


def test_a_backbone_without_heads_is_refused() -> None:
    with pytest.raises(UsageError, match="equally many heads"):
        built("lofit", "backbone=mlp")
    with pytest.raises(UsageError, match="the backbone has 4"):
        built("lofit", "strategy.heads=5")
