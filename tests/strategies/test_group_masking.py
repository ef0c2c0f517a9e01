"""Group masking: outputs of absent classes get no gradient, and the loss is that over the classes of the batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.cases import before, built, run


def test_the_softmax_runs_over_the_classes_of_the_batch() -> None:
    one = built("group-masking", "scenario=split-digits", "trainer.accumulate=1")
    learner, strategy = one.learner, one.learner.strategy
    seen: list[set[int]] = []

    def watch(learner: Any, batch: Any, output: Any) -> None:
        loss = strategy.base_loss(learner, batch, output)
        classes = sorted(set(batch.y.tolist()))
        seen.append(set(classes))
        for row, y, value in zip(output.logits.tolist(), batch.y.tolist(), loss.tolist(), strict=True):
            chances = torch.tensor([row[c] for c in classes], dtype=torch.float64).softmax(0)
            assert value == pytest.approx(float(-chances[classes.index(y)].log()), abs=1e-5)

    before(strategy, "observe", watch)
    start = learner.head.linear.bias.detach().clone()
    results = run(one)
    assert seen
    assert len(set().union(*seen)) == 10
    assert all(len(classes) < 10 for classes in seen)
    assert results["status"] == "done"
    assert not torch.equal(learner.head.linear.bias, start)


def test_an_absent_class_is_not_pushed_down() -> None:
    one = built(
        "group-masking", "scenario=split-digits", "trainer.accumulate=1", "optimizer=sgd", "scenario.order=natural"
    )
    start = one.learner.head.linear.weight.detach().clone()
    one.learner.strategy.finish = lambda learner, experience: bias.append(learner.head.linear.weight.detach().clone())
    bias: list[torch.Tensor] = []
    run(one)
    classes = one.scenario.train_stream[0].classes_in_this_experience
    others = [c for c in range(10) if c not in classes]
    assert torch.equal(bias[0][others], start[others])
    assert not torch.equal(bias[0][list(classes)], start[list(classes)])


def test_it_goes_together_with_rehearsal() -> None:
    together = run(built("group-masking+er", "scenario=split-digits", "trainer.accumulate=1"))
    assert together["status"] == "done"
