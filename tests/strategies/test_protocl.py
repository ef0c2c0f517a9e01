"""ProtoCL: conjugate updates, the posterior predictive without the sample itself, and prototypes by the network as it
is."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from clplat.batch import Batch
from clplat.errors import UsageError
from tests.cases import before, built, run

SPLIT = ["scenario.experiences=5", "scenario.test=0.3", "trainer.precision=64", "trainer.accumulate=1"]


def _log_joint(z: Tensor, features: list[Tensor], mu: Tensor, precision: float, alpha: float, noise: float) -> float:
    """log of alpha' N(z; mu', s + 1 / Lambda') after conjugate updates one by one, as the paper writes them."""
    for one in features:
        after = precision + 1 / noise
        mu, precision, alpha = (precision * mu + one / noise) / after, after, alpha + 1
    normal = torch.distributions.Normal(mu, math.sqrt(noise + 1 / precision))
    return math.log(alpha) + float(normal.log_prob(z).sum())


def test_the_loss_is_the_posterior_predictive_given_the_other_samples() -> None:
    one = built("protocl", *SPLIT, "strategy.noise=0.3", "backbone.dropout=0")
    strategy = one.learner.strategy
    checked: list[int] = []

    def check(learner: Any, batch: Batch, output: Any) -> None:
        if batch.experience in checked or len(batch.parts) < 2:
            return
        checked.append(batch.experience)
        found = strategy.base_loss(learner, batch, output)
        mu = strategy.prior_pull / strategy.prior_precision[:, None]
        for n in range(0, len(batch.x), 9):
            joint = []
            for c in range(10):
                others = [output.features[m] for m in range(len(batch.x)) if m != n and int(batch.y[m]) == c]
                prior = (mu[c], float(strategy.prior_precision[c]), 2.18)
                joint.append(_log_joint(output.features[n], others, *prior, 0.3))
            expected = float(torch.tensor(joint).logsumexp(0)) - joint[int(batch.y[n])]
            assert float(found[n]) == pytest.approx(expected, rel=1e-5, abs=1e-6)

    before(strategy, "observe", check)
    run(one)
    assert checked == [0, 1, 2, 3, 4]


def test_halves_come_to_the_same_as_all_at_once() -> None:
    strategy = built("protocl", *SPLIT).learner.strategy
    g = torch.Generator().manual_seed(0)
    z, y = torch.randn(40, 12, generator=g), torch.randint(10, (40,), generator=g)
    sums, counts = strategy._sums(z, y)
    pull, precision = strategy.prior_pull + sums / 0.05, strategy.prior_precision + counts / 0.05
    for half in (slice(0, 20), slice(20, 40)):
        mu = strategy.prior_pull / strategy.prior_precision[:, None]
        of_it, n = strategy._sums(z[half], y[half])
        after = strategy.prior_precision + n / 0.05
        mu = (strategy.prior_precision[:, None] * mu + of_it / 0.05) / after[:, None]
        strategy.prior_precision, strategy.prior_pull = after, mu * after[:, None]
    torch.testing.assert_close(strategy.prior_precision, precision, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(strategy.prior_pull, pull, rtol=1e-6, atol=1e-4)


def test_prototypes_carry_no_gradient() -> None:
    one = built("protocl", *SPLIT)
    run(one)
    learner, strategy = one.learner, one.learner.strategy
    z = torch.randn(6, 12, dtype=torch.float64, requires_grad=True)
    y = torch.tensor([0, 0, 1, 1, 2, 2])
    batch = type("Rows", (), {"y": y})()
    strategy.base_loss(learner, batch, type("Out", (), {"features": z})())[0].backward()
    assert float(z.grad[0].abs().sum()) > 0
    assert float(z.grad[1:].abs().sum()) == 0


def test_answers_are_the_posterior_of_the_memory_by_the_network_as_it_is() -> None:
    one = built("protocl", *SPLIT)
    run(one)
    learner, strategy = one.learner, one.learner.strategy
    x = torch.cat([e.dataset.x[:4] for e in one.scenario.test_stream]).double()
    task = torch.zeros(len(x), dtype=torch.long)
    seen = torch.bincount(torch.cat([e.dataset.y for e in one.scenario.train_stream]), minlength=10)
    for _ in range(2):
        learner.eval()
        rows = strategy.memory.rows(strategy.memory.slots())
        with torch.no_grad():
            held, z = (learner.output(a, torch.zeros(len(a), dtype=torch.long)).features for a in (rows["x"], x))
        mu = strategy.prior_pull / strategy.prior_precision[:, None]
        expected = torch.zeros(len(x), 10, dtype=torch.float64)
        for n in range(len(x)):
            for c in range(10):
                own = list(held[rows["y"] == c])
                joint = _log_joint(z[n], own, mu[c], float(strategy.prior_precision[c]), 1.0, 0.05)
                expected[n, c] = joint - math.log(1 + len(own)) + math.log(2.18 + int(seen[c]))
        with learner.evaluating():
            found = learner.answer(x, task)
        torch.testing.assert_close(found.log_softmax(1), expected.log_softmax(1), rtol=1e-6, atol=1e-5)
        with torch.no_grad():  # the network moves on, and the prototypes with it
            for p in learner.backbone.parameters():
                p.add_(0.3 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1), dtype=p.dtype))
        learner.step += 1


@pytest.mark.slow
def test_far_above_naive_and_above_plain_replay_of_the_same_memory_for_one_epoch() -> None:
    options = [*SPLIT[:2], "scenario=split-digits", "backbone.hidden=64", "backbone.dropout=0", "trainer.batch_size=16"]
    options += ["trainer.accumulate=1"]
    naive = run(built("naive", *options, "trainer.max_epochs=5"))["summary"]["ACC"]
    replay = run(built("er", *options, "strategy.memory=200", "strategy.batch_size=16", "trainer.max_epochs=1"))
    protocl = run(built("protocl", *options, "strategy.memory=200", "strategy.batch_size=16", "trainer.max_epochs=5"))
    assert protocl["summary"]["ACC"] > naive + 0.3
    assert protocl["summary"]["ACC"] > replay["summary"]["ACC"]


@pytest.mark.parametrize("option", ["noise=0", "concentration=0", "memory=0", "batch_size=0"])
def test_options_out_of_range_are_refused(option: str) -> None:
    with pytest.raises(UsageError, match=option.split("=")[0]):
        built("protocl", f"strategy.{option}")
