"""LwF: the teacher is the network before the experience, and the divergence is over what it knew."""

from __future__ import annotations

import torch

from clplat.batch import Batch, Part
from tests.cases import built, run


def _term(one, n: int = 6, experience: int = 1):
    x, y, task = one.scenario.train_stream[experience].dataset.rows(slice(0, n))
    x = x.to(torch.float64)
    batch = Batch([Part("stream", x, y, task, torch.arange(n), slice(0, n))], experience=experience, epoch=0, step=0)
    one.learner.eval()
    return batch, one.learner.strategy.loss(one.learner, batch, one.learner.output(x, task)).get("distillation")


def test_is_zero_for_the_teacher_itself_and_grows_as_the_network_leaves_it() -> None:
    one = built("lwf", "trainer.precision=64", "scenario.experiences=1")
    run(one)
    learner = one.learner
    assert _term(one, experience=0)[1] is None  # no teacher in the first experience
    learner.strategy.start(learner, one.scenario.train_stream[0])
    _, term = _term(one, experience=0)
    assert term is not None
    assert term.abs().max() < 1e-12
    with torch.no_grad():
        learner.head.linear.bias.add_(torch.randn_like(learner.head.linear.bias))
    assert (_term(one, experience=0)[1] > 1e-6).all()


def test_class_incremental_distils_old_classes_only() -> None:
    one = built(
        "lwf", "trainer.precision=64", "scenario=split-digits", "scenario.setting=class", "scenario.experiences=2",
        "strategy.temperature=3", "strategy.alpha=0.5",
    )  # fmt: skip
    run(one)
    learner, strategy = one.learner, one.learner.strategy
    teacher = {name: p.clone() for name, p in strategy.recall("teacher").items()}
    strategy.seen = {0: [0, 1, 2, 3, 4]}  # as during the second experience
    batch, term = _term(one)
    old = learner.output_with(teacher, batch.x, batch.task).logits[:, :5]
    new = learner(batch.x, batch.task)[:, :5]
    p, log_q = (old / 3).softmax(-1), (new / 3).log_softmax(-1)
    expected = 0.5 * torch.nn.functional.kl_div(log_q, p, reduction="none").sum(-1)
    torch.testing.assert_close(term, expected, rtol=1e-10, atol=1e-14)
    assert term.max() > 0


def test_task_incremental_distils_the_heads_of_old_tasks_on_new_data() -> None:
    one = built(
        "lwf", "trainer.precision=64", "scenario=split-digits", "scenario.setting=task", "scenario.experiences=5",
        "strategy.alpha=1",
    )  # fmt: skip
    run(one)
    learner, strategy = one.learner, one.learner.strategy
    teacher = strategy.recall("teacher")
    strategy.seen = {0: [0, 1], 1: [0, 1]}
    batch, term = _term(one, experience=2)
    expected = torch.zeros_like(term)
    for task in (0, 1):
        label = torch.full_like(batch.task, task)
        p = (learner.output_with(teacher, batch.x, label).logits / 2).softmax(-1)
        log_q = (learner(batch.x, label) / 2).log_softmax(-1)
        expected += torch.nn.functional.kl_div(log_q, p, reduction="none").sum(-1)
    torch.testing.assert_close(term, expected, rtol=1e-10, atol=1e-14)


def test_forgets_less_than_naive_where_the_task_is_told() -> None:
    options = [
        "scenario=split-digits", "scenario.setting=task", "scenario.experiences=5", "trainer.max_epochs=15",
        "backbone.hidden=64", "backbone.dropout=0", "trainer.accumulate=1", "scenario.test=0.5", "trainer.clip=null",
    ]  # fmt: skip
    naive = run(built("naive", *options))["summary"]
    lwf = run(built("lwf", *options, "strategy.alpha=1"))["summary"]
    assert lwf["forgetting"] < naive["forgetting"] - 0.02
    assert lwf["ACC"] > naive["ACC"]
