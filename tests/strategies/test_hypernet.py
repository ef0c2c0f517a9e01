"""Hypernetwork: it owns the backbone's weights, starts where a plain network starts, and keeps old tasks' weights."""

from __future__ import annotations

import torch

from tests.cases import before, built, run


def test_the_backbone_has_no_weights_of_its_own() -> None:
    learner = built("hypernet").learner
    assert not any(name.startswith("backbone") for name, _ in learner.named_parameters())
    assert not any(name.startswith("backbone") for name in learner.state_dict())
    assert all(p.is_meta for p in learner.backbone.parameters())


def test_generated_weights_are_initialised_like_the_backbones_own() -> None:
    plain = built("naive", "backbone.hidden=64").learner.backbone
    one = built("hypernet", "backbone.hidden=64", "strategy.hidden=32", "strategy.embedding=8")
    strategy = one.learner.strategy
    strategy.adapt(one.learner, one.scenario.train_stream[0])
    generated, start = strategy.weights(0), 0
    for name, p in plain.named_parameters():
        if name.endswith("weight"):
            own = generated[start : start + p.numel()]
            assert 0.5 < own.std() / p.std() < 2
        start += p.numel()
    assert start == len(generated)


def test_a_strong_regulariser_holds_the_weights_of_old_tasks() -> None:
    moved = {}
    for beta in (0.0, 1000.0):
        one = built("hypernet", f"strategy.beta={beta}")
        strategy = one.learner.strategy
        kept: list[torch.Tensor] = []
        before(strategy, "finish", lambda *_, s=strategy, k=kept: k.append(s.weights(0).detach()))
        run(one)
        moved[beta] = float((kept[-1] - kept[0]).norm())
    assert moved[1000.0] < 0.5 * moved[0.0]


def test_a_batch_of_several_tasks_is_each_task_by_itself() -> None:
    one = built("hypernet", "trainer.precision=64")
    run(one)
    learner = one.learner.eval()
    x = torch.randn(9, 1, 8, 8, dtype=torch.float64)
    task = torch.tensor([2, 0, 1, 1, 0, 2, 2, 0, 1])
    together = learner(x, task)
    for number in range(3):
        rows = task == number
        torch.testing.assert_close(together[rows], learner(x[rows], task[rows]), rtol=1e-12, atol=1e-14)


def test_keeps_tasks_that_naive_forgets() -> None:
    options = [
        "scenario=split-digits", "scenario.setting=task", "scenario.experiences=5", "trainer.max_epochs=20",
        "trainer.accumulate=1", "trainer.clip=null", "scenario.test=0.5", "backbone.dropout=0", "optimizer.lr=0.002",
        "backbone.hidden=32",
    ]  # fmt: skip
    hypernet = run(
        built(
            "hypernet", *options, "strategy.hidden=64", "strategy.embedding=16", "strategy.chunk=500", "strategy.beta=1"
        )
    )["summary"]
    naive = run(built("naive", *options))["summary"]
    assert hypernet["learning_accuracy"] > 0.9
    assert hypernet["forgetting"] < naive["forgetting"] - 0.02
    assert hypernet["ACC"] > naive["ACC"] + 0.02
