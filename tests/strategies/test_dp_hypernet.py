"""The recurrent hypernetwork: later weights depend on earlier pieces; growth changes nothing; old weights are held."""

from __future__ import annotations

import pytest
import torch

from tests.cases import before, built, run


def _one(*overrides: str, name: str = "dp-hypernet"):  # type: ignore[no-untyped-def]
    one = built(name, "trainer.precision=64", *overrides)
    one.learner.strategy.adapt(one.learner, one.scenario.train_stream[0])
    one.learner.double()
    return one


def test_later_weights_depend_on_earlier_pieces_and_not_the_reverse() -> None:
    for name, option, depends in (("dp-hypernet", "places", True), ("hypernet", "chunks", False)):
        strategy = _one(name=name).learner.strategy
        weights, embeddings = strategy.weights(0), getattr(strategy, option)
        (of_last,) = torch.autograd.grad(weights[-1], embeddings, retain_graph=True)
        (of_first,) = torch.autograd.grad(weights[0], embeddings)
        assert bool((of_last[0] != 0).any()) == depends
        assert bool((of_last[-1] != 0).any())
        assert bool((of_first[1:] == 0).all())


def test_weights_are_made_by_a_plain_loop_over_the_pieces() -> None:
    strategy = _one("strategy.growth=0").learner.strategy
    (lstm,), (out,) = strategy.lstms, strategy.outs
    hidden = cell = torch.zeros(8, dtype=torch.float64)
    made = []
    for place in strategy.places:
        x = torch.cat([strategy.tasks[0], place])
        gates = lstm.ih[0].weight @ x + lstm.ih[0].bias + lstm.hh[0].weight @ hidden + lstm.hh[0].bias
        i, f, g, o = gates.chunk(4)
        cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
        hidden = o.sigmoid() * cell.tanh()
        made.append(out.weight @ hidden + out.bias)
    expected = strategy.offset + strategy.scale * torch.cat(made)[: len(strategy.offset)]
    torch.testing.assert_close(strategy.weights(0), expected, rtol=1e-10, atol=1e-12)


def test_growth_adds_units_for_each_new_task_and_changes_no_weight() -> None:
    one = _one("strategy.growth=3")
    strategy = one.learner.strategy
    for number in (1, 2):
        old = strategy.weights(0).detach()
        strategy.adapt(one.learner, one.scenario.train_stream[number])
        strategy.adapt(one.learner, one.scenario.train_stream[number])  # the task is not new any more
        assert [lstm.output_size for lstm in strategy.lstms] == [8, *[3] * number]
        assert torch.equal(strategy.weights(0), old)
    new = strategy.outs[2].weight
    (gradient,) = torch.autograd.grad(strategy.weights(2).sum(), new)
    assert bool((gradient != 0).any())


def test_generated_weights_are_initialised_like_the_backbones_own() -> None:
    big = ["backbone.hidden=64", "strategy.hidden=32", "strategy.embedding=8"]
    plain = built("naive", "backbone.hidden=64").learner.backbone
    strategy, start = _one(*big).learner.strategy, 0
    for name, p in plain.named_parameters():
        if name.endswith("weight"):
            assert 0.3 < strategy.weights(0)[start : start + p.numel()].std() / p.std() < 3
        start += p.numel()


@pytest.mark.parametrize("regularizer", ["weights", "states"])
def test_the_regulariser_is_the_mean_over_old_tasks_of_what_moved(regularizer: str) -> None:
    one = built(
        "dp-hypernet",
        "trainer.precision=64",
        "strategy.growth=0",
        f"strategy.regularizer={regularizer}",
        "strategy.beta=3",
    )
    run(one)
    strategy = one.learner.strategy
    strategy.start(one.learner, one.scenario.train_stream[2])

    def held() -> list[torch.Tensor]:
        states = [torch.cat(strategy.states(strategy.tasks[k]), 1) for k in (0, 1)]
        return [strategy.weights(0), strategy.weights(1), *(states if regularizer == "states" else [])]

    kept = [t.detach() for t in held()]
    with torch.no_grad():
        for p in strategy.stand_ins():
            p.add_(0.01 * torch.randn_like(p))
    expected = sum((new - old).square().sum() for new, old in zip(held(), kept, strict=True)) / 2
    found = strategy.loss(one.learner, None, None)["output_change"]
    torch.testing.assert_close(found, 3 * expected, rtol=1e-10, atol=0)


@pytest.mark.slow
def test_old_weights_move_less_than_a_tenth_of_what_they_would_and_nothing_is_forgotten() -> None:
    options = [
        "scenario.experiences=5", "trainer.max_epochs=20", "trainer.accumulate=1", "trainer.clip=null",
        "scenario.test=0.5", "backbone.dropout=0", "backbone.hidden=32", "eval.every=0", "optimizer.lr=0.002",
        "strategy.hidden=32", "strategy.embedding=8", "strategy.chunk=500", "strategy.growth=0",
    ]  # fmt: skip
    moved, found = {}, {}
    for beta in (0, 10):
        one = built("dp-hypernet", *options, f"strategy.beta={beta}")
        strategy, kept = one.learner.strategy, []
        before(strategy, "finish", lambda *_, s=strategy, k=kept: k.append(s.weights(0).detach()))
        found[beta] = run(one)["summary"]
        moved[beta] = float((kept[-1] - kept[0]).norm())
    assert moved[10] < 0.1 * moved[0]
    assert found[10]["forgetting"] < 0.03
    assert found[10]["learning_accuracy"] > 0.9
    assert found[0]["forgetting"] > found[10]["forgetting"]
