"""VCL: the divergence is the distributions' own, priors are posteriors of before, coresets do not count twice."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from clplat.batch import Batch
from clplat.errors import UsageError
from tests.cases import before, built, run

EXACT = ["trainer.precision=64", "eval.every=0"]
TASKS = ["scenario=split-digits", "scenario.setting=task", "scenario.experiences=3"]


def _snapshot(gaussian: Any) -> dict[str, tuple[Tensor, Tensor]]:
    each = zip(gaussian.names, gaussian.means, gaussian.log_variances, strict=True)
    return {name: (m.detach().clone(), v.detach().clone()) for name, m, v in each}


def _kl(q: dict[str, tuple[Tensor, Tensor]], p: dict[str, tuple[Tensor, Tensor]], rows: int | None = None) -> float:
    total = 0.0
    for name, (m, v) in q.items():
        m0, v0 = p[name]
        one = kl_divergence(Normal(m, v.exp().sqrt()), Normal(m0, v0.exp().sqrt()))
        total += float((one[rows] if rows is not None and name.startswith("head.") else one).sum())
    return total


@pytest.mark.parametrize("multi_head", [False, True])
def test_the_term_is_the_divergence_from_the_last_posterior_by_the_number_of_samples(multi_head: bool) -> None:
    one = built("vcl", *EXACT, "strategy.coreset=0", *(TASKS if multi_head else []))
    strategy = one.learner.strategy
    first = _snapshot(strategy.prior())
    assert all(float(m.abs().max()) == 0 and float(v.abs().max()) == 0 for m, v in first.values())  # N(0, 1)
    priors = {0: first}
    checked: set[int] = set()

    def end(learner: Any, experience: Any) -> None:
        e = experience.current_experience
        now = _snapshot(strategy.posterior(learner))
        kept = priors[e]
        priors[e + 1] = {}
        for name, values in now.items():
            if multi_head and name.startswith("head."):  # only the task's own head goes along
                values = tuple(
                    old.clone().index_copy_(0, torch.tensor([e]), new[e : e + 1])
                    for old, new in zip(kept[name], values, strict=True)
                )
            priors[e + 1][name] = values

    def check(learner: Any, batch: Batch, output: Any) -> None:
        e = batch.experience
        if e not in checked:
            checked.add(e)
            with torch.no_grad():
                found = float(strategy.loss(learner, batch, output)["kl"])
            n = len(one.scenario.train_stream[e].dataset)
            expected = _kl(_snapshot(strategy.posterior(learner)), priors[e], e if multi_head else None) / n
            assert found == pytest.approx(expected, rel=1e-9)

    before(strategy, "finish", end)
    before(strategy, "observe", check)
    run(one)
    assert checked == {0, 1, 2}


def test_heads_of_other_tasks_stay_as_they_are() -> None:
    one = built("vcl", *EXACT, *TASKS, "strategy.coreset=0")
    ends: list[dict[str, tuple[Tensor, Tensor]]] = []
    before(
        one.learner.strategy, "finish", lambda learner, _: ends.append(_snapshot(learner.strategy.posterior(learner)))
    )
    run(one)
    for e in (1, 2):
        for name in ("head.linear.weight", "head.linear.bias"):
            for old, new in zip(ends[e - 1][name], ends[e][name], strict=True):
                for head in range(3):
                    assert torch.equal(old[head], new[head]) == (head != e)


def test_the_coreset_is_left_out_and_tunes_a_copy_that_does_not_go_on() -> None:
    one = built("vcl", *EXACT, "strategy.coreset=12")
    learner, strategy = one.learner, one.learner.strategy
    trained: dict[int, set[int]] = {}
    ends: list[tuple[Any, Any]] = []

    def seen(_: Any, batch: Batch, output: Any) -> None:
        trained.setdefault(batch.experience, set()).update(batch["stream"].index.tolist())

    def end(_: Any, experience: Any) -> None:
        ends.append((_snapshot(strategy.posterior(learner)), _snapshot(strategy.copy())))

    before(strategy, "observe", seen)
    before(strategy, "finish", end)
    run(one)
    for e, experience in enumerate(one.scenario.train_stream):
        coreset, rest = strategy._split(learner, experience)
        assert len(coreset) == 12
        assert sorted([*coreset.tolist(), *rest.tolist()]) == list(range(len(experience.dataset)))
        assert trained[e] == set(range(len(rest)))  # positions in what is left
        assert torch.equal(
            strategy.recall("coreset")["x"][12 * e : 12 * e + 12], experience.dataset.x[coreset].double()
        )
    posterior, tuned = ends[-1]
    prior = _snapshot(strategy.prior())
    for name in posterior:
        assert torch.equal(prior[name][0], posterior[name][0])  # what goes on
        assert not torch.equal(tuned[name][0], posterior[name][0])
        assert torch.equal(_snapshot(strategy.answering(learner))[name][0], tuned[name][0])  # what answers


def test_evaluation_averages_the_softmax_over_the_same_weights_each_time() -> None:
    one = built("vcl", *EXACT, "strategy.coreset=0", "strategy.test_samples=3", "strategy.log_variance=-2")
    run(one)
    learner, strategy = one.learner, one.learner.strategy
    x, task = one.scenario.test_stream[0].dataset.x[:5].double(), torch.zeros(5, dtype=torch.long)
    with learner.evaluating():
        found, again = learner.answer(x, task), learner.answer(x, task)
    assert torch.equal(found, again)
    total = torch.zeros(5, 10, dtype=torch.float64)
    for number in range(3):
        source = learner.generator("vcl/test", number)
        weights = {}
        for name, (m, v) in _snapshot(strategy.posterior(learner)).items():
            weights[name] = m + (0.5 * v).exp() * torch.randn(m.shape, generator=source).double()
        h = x.flatten(1)
        for layer in range(2):
            h = (h @ weights[f"backbone.layers.{layer}.weight"].T + weights[f"backbone.layers.{layer}.bias"]).relu()
        total += (h @ weights["head.linear.weight"].T + weights["head.linear.bias"]).softmax(1) / 3
    torch.testing.assert_close(found.exp(), total, rtol=1e-6, atol=1e-9)


def test_each_step_and_micro_batch_draws_its_own_weights() -> None:
    one = built("vcl", *EXACT, "strategy.coreset=0")
    drawn: list[tuple[int, int, Tensor]] = []
    strategy = one.learner.strategy

    def keep(learner: Any, batch: Batch, output: Any) -> None:
        noise = strategy._weights["head.linear.bias"].detach() - learner.head.linear.bias.detach()
        drawn.append((batch.step, batch.micro, noise.clone()))

    before(strategy, "observe", keep)
    run(one)
    assert {micro for _, micro, _ in drawn} == {0, 1}
    assert len({tuple(noise.tolist()) for _, _, noise in drawn}) == len(drawn)


@pytest.mark.slow
def test_forgets_less_than_naive_on_permuted_digits() -> None:
    options = ["backbone.hidden=32", "backbone.dropout=0", "trainer.accumulate=1", "trainer.max_epochs=15"]
    options += ["scenario.test=0.4", "eval.every=0"]
    naive = run(built("naive", *options))["summary"]
    vcl = run(built("vcl", *options, "strategy.likelihood_epochs=5", "strategy.coreset=40"))["summary"]
    assert vcl["forgetting"] < naive["forgetting"] - 0.1


@pytest.mark.parametrize(
    "option", ["samples=0", "test_samples=0", "prior_variance=0", "coreset=-1", "coreset_epochs=0"]
)
def test_options_out_of_range_are_refused(option: str) -> None:
    with pytest.raises(UsageError, match=option.split("=")[0]):
        built("vcl", f"strategy.{option}")


def test_a_growing_head_is_refused() -> None:
    with pytest.raises(UsageError, match=r"vcl needs learner\.head=auto"):
        built("vcl", "learner.head=growing")
