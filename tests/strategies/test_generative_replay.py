"""Generative replay: the generator learns the data, the old scholar stands still, and it is what makes samples up."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from clplat import randomness
from clplat.errors import UsageError
from clplat.vae import VAE
from tests.cases import before, built, run


def test_the_lower_bound_is_the_gaussians_own() -> None:
    """Against torch's distributions, with the noise of a training step."""
    torch.manual_seed(0)
    vae = VAE((2, 3), hidden=5, latent=4, noise=0.7).double()
    vae.grow(2)
    vae.double()
    x, task = torch.randn(6, 2, 3, dtype=torch.float64), torch.tensor([0, 1, 1, 0, 1, 0])
    noise = randomness.Noise(3, randomness.Rows([(6, 0, 6)]), 1)
    with randomness.noise(noise):
        found = vae.loss(x, task)
    mean, log_variance = vae.encode(x, task)
    u = randomness.Noise(3, randomness.Rows([(6, 0, 6)]), 1).uniform((6, 4), x.device).double()
    q = torch.distributions.Normal(mean, (log_variance / 2).exp())
    z = q.icdf(u)
    p = torch.distributions.Normal(vae.decode(z, task), 0.7)
    constant = 6 * torch.log(torch.tensor(0.7 * (2 * torch.pi) ** 0.5, dtype=torch.float64))
    kl = torch.distributions.kl_divergence(q, torch.distributions.Normal(0.0, 1.0)).sum(1)
    expected = -p.log_prob(x).flatten(1).sum(1) - constant + kl
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_tokens_have_a_softmax_at_each_step() -> None:
    torch.manual_seed(0)
    vae = VAE((4,), vocabulary=5, hidden=32, latent=8)
    vae.grow(1)
    x, task = torch.tensor([[0, 1, 2, 3], [4, 4, 4, 4]]).repeat(20, 1), torch.zeros(40, dtype=torch.long)
    optimizer = torch.optim.Adam(vae.parameters(), lr=0.01)
    first = vae.loss(x, task).mean().item()
    for _ in range(200):
        optimizer.zero_grad()
        vae.loss(x, task).mean().backward()
        optimizer.step()
    assert vae.loss(x, task).mean() < 0.5 * first
    made = vae(torch.randn(200, 8), torch.zeros(200, dtype=torch.long))
    known = (made[:, None] == x[:2]).all(-1).any(1).double().mean()
    assert known > 0.9  # of 625 sequences, it makes up the two that there are


@pytest.mark.slow
def test_it_makes_up_samples_like_those_it_has_seen() -> None:
    one = built("generative-replay", "scenario.experiences=1", "scenario.test=0.2", *_sizes(30))
    run(one)
    data = one.scenario.test_stream[0].dataset.x.flatten(1)
    draws = torch.Generator().manual_seed(0)
    with torch.no_grad():
        made = one.learner.strategy.vae(torch.randn(300, 16, generator=draws), torch.zeros(300, dtype=torch.long))
    noise = torch.rand(300, 64, generator=draws)
    near = torch.cdist(made.flatten(1), data).amin(1).mean()
    assert near < 0.75 * torch.cdist(noise, data).amin(1).mean()
    assert made.flatten(1).var(0).sum() > 0.3 * data.var(0).sum()  # and they differ from each other


def _sizes(epochs: int) -> list[str]:
    return ["strategy.hidden=128", "strategy.latent=16", f"strategy.epochs={epochs}", "trainer.batch_size=32"]


def test_the_old_scholar_stands_still_and_answers_for_what_it_makes_up() -> None:
    one = built("generative-replay", "trainer.precision=64")
    strategy = one.learner.strategy
    held: dict[int, dict[str, Tensor]] = {}
    checked = 0

    def check(learner: Any, batch: Any, output: Any) -> None:
        nonlocal checked
        e = batch.experience
        if not e:
            assert [part.source for part in batch.parts] == ["stream"]
            return
        stream, made = batch.parts
        assert stream.weight == pytest.approx(1 / (e + 1))
        assert made.weight == pytest.approx(e / (e + 1))
        assert made.n_global == stream.n_global
        solver = strategy.recall("solver")
        y = learner.output_with(solver, made.x, made.task).logits.argmax(-1)
        assert torch.equal(made.y, y)
        now = {**solver, **{f"vae.{name}": t for name, t in strategy.recall("generator").items()}}
        first = held.setdefault(e, {name: t.clone() for name, t in now.items()})
        assert all(torch.equal(now[name], first[name]) for name in first)
        checked += 1

    before(strategy, "observe", check)
    run(one)
    assert checked > 4
    assert set(held) == {1, 2}
    assert any(not torch.equal(held[1][name], held[2][name]) for name in held[1])


def test_generator_and_solver_learn_in_their_own_phases() -> None:
    one = built("generative-replay", "scenario.experiences=1", "trainer.accumulate=1")
    strategy, learner = one.learner.strategy, one.learner
    solver = {name: p.detach().clone() for name, p in learner.network().items()}
    ends: list[dict[str, Tensor]] = []

    def watch(learner: Any, batch: Any) -> None:
        if not ends:
            assert all(torch.equal(p, solver[name]) for name, p in learner.network().items())
            ends.append({name: p.detach().clone() for name, p in strategy.vae.named_parameters()})

    before(strategy, "rehearse", watch)
    run(one)
    assert all(torch.equal(p, ends[0][name]) for name, p in strategy.vae.named_parameters())
    assert any(not torch.equal(p, solver[name]) for name, p in learner.network().items())


def test_with_task_labels_every_old_task_is_made_up() -> None:
    one = built("generative-replay", "scenario=split-digits", "scenario.setting=task", "scenario.experiences=3")
    seen: dict[int, set[int]] = {}

    def watch(learner: Any, batch: Any, output: Any) -> None:
        if "generative-replay" in batch:
            seen.setdefault(batch.experience, set()).update(batch["generative-replay"].task.tolist())

    before(one.learner.strategy, "observe", watch)
    run(one)
    assert seen == {1: {0}, 2: {0, 1}}


@pytest.mark.slow
def test_forgets_less_than_naive_without_storing_a_sample() -> None:
    options = ["scenario=split-digits", "scenario.experiences=5", "scenario.test=0.2", "backbone.hidden=64"]
    options += ["backbone.dropout=0", "trainer.accumulate=1", "trainer.max_epochs=10", "trainer.clip=null"]
    naive, ours = (
        run(built(name, *options, *own))["summary"]["ACC"]
        for name, own in (("naive", ["trainer.batch_size=32"]), ("generative-replay", _sizes(40)))
    )
    assert ours > naive + 0.3


@pytest.mark.parametrize("option", ["hidden=0", "latent=0", "noise=0", "epochs=0"])
def test_options_out_of_range_are_refused(option: str) -> None:
    with pytest.raises(UsageError, match=option.split("=")[0]):
        built("generative-replay", f"strategy.{option}")
