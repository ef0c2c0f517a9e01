"""The pairwise layer against plain loops; omega; what it keeps where a dense head forgets."""

from __future__ import annotations

from itertools import combinations, pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from clplat.errors import UsageError
from clplat.heads.pairwise import PairwiseHead, strongest
from tests.cases import built, run


def test_the_head_is_a_loop_over_its_pairs() -> None:
    head = PairwiseHead(12, 4, pairs=100, active=0.5, generator=torch.Generator().manual_seed(0)).double()
    assert head.weight.shape == (25, 4)
    h = torch.randn(7, 12, dtype=torch.float64)
    found = head(h, torch.zeros(7, dtype=torch.long))
    for n in range(7):
        threshold = sorted(h[n].tolist(), reverse=True)[5]
        x = [max(0.0, v - threshold) for v in h[n].tolist()]
        assert sum(v > 0 for v in x) == 5
        for c in range(4):
            expected = sum(head.weight[r, c].item() * x[head.first[r, c]] * x[head.second[r, c]] for r in range(25))
            assert found[n, c].item() == pytest.approx(expected, abs=1e-12)


def test_each_pair_belongs_to_one_class_and_few_products_are_not_zero() -> None:
    head = PairwiseHead(20, 5, pairs=None, active=0.4, generator=torch.Generator().manual_seed(0))
    pairs = list(zip(head.first.flatten().tolist(), head.second.flatten().tolist(), strict=True))
    assert sorted(pairs) == sorted((i, j) for j, i in combinations(range(20), 2))
    more = PairwiseHead(20, 5, pairs=500, active=0.4, generator=torch.Generator().manual_seed(0))
    counts = torch.bincount((more.first * 20 + more.second).flatten())
    assert more.first.numel() == 500
    assert int(counts.max()) <= 3  # 190 pairs, each at most three times in 500
    x = strongest(torch.randn(50, 20), 8)
    products = x[:, head.first] * x[:, head.second]
    assert int((products != 0).flatten(1).sum(1).max()) <= 8 * 7 // 2


@pytest.mark.parametrize("importance", ["s-mas", "adagrad"])
def test_steps_are_the_optimisers_of_the_code(importance: str) -> None:
    options = [
        "trainer.precision=64",
        "trainer.accumulate=1",
        "trainer.clip=null",
        "backbone.dropout=0",
        "eval.every=0",
    ]
    one = built("pairwise-layer", *options, f"strategy.importance={importance}", "strategy.strength=0.3")
    strategy, learner = one.learner.strategy, one.learner
    omega = {name: torch.zeros_like(p) for name, p in learner.network().items()}
    expected: list[dict[str, Tensor]] = []
    observe, after = strategy.observe, strategy.after_step

    def predict(given: Any, batch: Any, output: Any) -> None:
        network = given.network()
        logits = given.output(batch.x, batch.task).logits
        loss = torch.nn.functional.cross_entropy(logits, batch.y)
        gradients = torch.autograd.grad(loss, list(network.values()), retain_graph=True)
        of_squares = torch.autograd.grad(logits.square().mean(), list(network.values()))
        for (name, _), g, i in zip(network.items(), gradients, of_squares, strict=True):
            omega[name] = omega[name] + 0.3 * (i.abs() if importance == "s-mas" else g**2)
        expected.append(
            {
                name: (p - 0.01 * g / (omega[name] + 1e-6).sqrt()).detach()
                for (name, p), g in zip(network.items(), gradients, strict=True)
            }
        )
        observe(given, batch, output)

    def compare(given: Any, batch: Any) -> None:
        for name, p in given.network().items():
            torch.testing.assert_close(p.detach(), expected[-1][name], rtol=1e-8, atol=1e-10)
        after(given, batch)

    strategy.observe, strategy.after_step = predict, compare
    run(one)
    assert len(expected) > 20
    for name, kept in strategy.recall("omega").items():
        torch.testing.assert_close(kept, omega[name], rtol=1e-8, atol=1e-12)


def test_omega_never_falls() -> None:
    one = built("pairwise-layer")
    strategy, seen = one.learner.strategy, []
    after = strategy.after_step
    strategy.after_step = lambda *given: (
        after(*given), seen.append({n: o.clone() for n, o in strategy.recall("omega").items()})
    )  # fmt: skip
    run(one)
    for old, new in pairwise(seen):
        assert all(bool((new[name] >= old[name]).all()) for name in old)


def test_other_optimisers_and_other_heads_are_refused() -> None:
    with pytest.raises(UsageError, match="--optimizer sgd"):
        built("pairwise-layer", "optimizer=adam")
    with pytest.raises(UsageError, match="without momentum"):
        built("pairwise-layer", "optimizer.momentum=0.9")
    with pytest.raises(UsageError, match=r"learner\.head=shared"):
        built("pairwise-layer", "scenario=split-digits", "scenario.setting=task")
    with pytest.raises(UsageError, match="at least 2 active ones"):
        built("pairwise-layer", "strategy.active=0.1")


@pytest.mark.slow
def test_one_pass_class_by_class_beats_a_dense_head_with_and_without_importance() -> None:
    options = [
        "scenario=split-digits", "scenario.setting=class", "scenario.experiences=5", "trainer.max_epochs=1",
        "trainer.batch_size=10", "trainer.accumulate=1", "trainer.clip=null", "scenario.test=0.3",
        "backbone.hidden=256", "backbone.layers=1", "backbone.dropout=0", "eval.every=0", "optimizer=sgd",
    ]  # fmt: skip

    def accuracy(strategy: str, *own: str) -> float:
        return sum(run(built(strategy, *options, *own, f"seed={seed}"))["summary"]["ACC"] for seed in (0, 1)) / 2

    plain = accuracy("naive", "optimizer.lr=0.1")
    dense = [accuracy("pairwise-layer", "strategy.head=dense", f"optimizer.lr={lr}") for lr in (0.005, 0.05)]
    found = accuracy("pairwise-layer", "strategy.active=0.1", "optimizer.lr=0.1")
    assert plain < 0.25
    assert found > max(plain, *dense) + 0.05, (plain, dense, found)
