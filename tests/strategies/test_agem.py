"""A-GEM: the projection is the paper's, and what it promises holds."""

from __future__ import annotations

import torch

from tests.cases import before, built, run


def _two_gradients(seed: int):
    one = built("agem", "trainer.precision=64", "strategy.memory=40")
    run(one)
    learner, strategy = one.learner, one.learner.strategy
    torch.manual_seed(seed)
    for p in learner.network().values():
        p.grad = torch.randn_like(p)
    before = torch.cat([p.grad.flatten() for p in learner.network().values()])
    reference = torch.cat(
        [g.flatten() for g in learner.auxiliary_gradients(strategy._batch(learner), list(learner.network().values()))]
    )
    strategy.edit_gradients(learner)
    after = torch.cat([p.grad.flatten() for p in learner.network().values()])
    return before, reference, after


def test_projects_exactly_where_the_memory_would_get_worse() -> None:
    seen = set()
    for seed in range(6):
        before, reference, after = _two_gradients(seed)
        along = before @ reference
        seen.add(bool(along < 0))
        expected = before - along / (reference @ reference) * reference if along < 0 else before
        torch.testing.assert_close(after, expected, rtol=1e-12, atol=1e-14)
        assert after @ reference > -1e-10
    assert seen == {True, False}


def test_the_reference_gradient_is_that_of_the_mean_loss_on_the_memory() -> None:
    one = built("agem", "trainer.precision=64", "backbone.dropout=0", "strategy.batch_size=20")
    run(one)
    learner, memory = one.learner, one.learner.strategy.memory
    parameters = list(learner.network().values())
    found = learner.auxiliary_gradients(learner.strategy._batch(learner), parameters)
    rows = memory.rows(torch.arange(20))  # the memory holds 20, so a batch of 20 is all of it
    loss = torch.nn.functional.cross_entropy(learner(rows["x"], rows["task"]), rows["y"])
    for a, b in zip(found, torch.autograd.grad(loss, parameters), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-14)


def test_the_memory_holds_past_experiences_only() -> None:
    one = built("agem", "scenario.experiences=1")
    strategy = one.learner.strategy
    sizes: list[int] = []
    before(strategy, "edit_gradients", lambda learner: sizes.append(len(strategy.memory)))
    run(one)
    assert set(sizes) == {0}
    assert strategy.memory.seen == len(one.scenario.train_stream[0].dataset)
