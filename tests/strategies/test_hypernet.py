"""Hypernetwork: it owns the backbone's weights, starts where a plain network starts, and keeps old tasks' weights."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch

from clplat.build import build
from clplat.config import compose
from clplat.errors import UsageError
from clplat.fisher import FisherBatch
from clplat.fisher.definition import naive_fisher
from clplat.fisher.experience import draws
from clplat.ranks import Ranks
from tests.cases import before, built, run
from tests.strategies.isolation import DRIFTS


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


@pytest.mark.parametrize("backbone", ["delta-net", "gru", "linear-transformer", "lstm", "rnn", "transformer"])
def test_sequence_backbones_run_on_generated_weights(backbone: str) -> None:
    other = [f"backbone={backbone}", "learner.encoder=rows", "trainer.precision=64"]
    one = built("hypernet", *other)
    plain = built("naive", *other, "scenario=split-digits", "scenario.setting=task").learner.backbone
    strategy, learner = one.learner.strategy, one.learner
    strategy.adapt(learner, one.scenario.train_stream[0])
    learner.double()
    weights, start = strategy.weights(0), 0
    with torch.no_grad():
        for p in plain.parameters():
            p.copy_(weights[start : start + p.numel()].view_as(p))
            start += p.numel()
    x_BTD, task = torch.randn(3, 6, 8, dtype=torch.float64), torch.zeros(3, dtype=torch.long)
    found, _ = strategy.forward(learner, x_BTD, task)
    torch.testing.assert_close(found, plain(x_BTD)[0], rtol=1e-9, atol=1e-12)
    found.square().sum().backward()
    assert all(bool((p.grad != 0).any()) for p in (*strategy.net.parameters(), strategy.chunks, strategy.tasks[0]))


def test_targets_are_made_once_and_only_for_tasks_that_were_learned() -> None:
    one = built("hypernet")
    strategy, seen = one.learner.strategy, []
    before(strategy, "after_step", lambda *_: seen.append(strategy.recall("target")))
    run(one)
    per_experience = len(seen) // 3
    assert [sorted(seen[i * per_experience]) for i in range(3)] == [[], ["0"], ["0", "1"]]
    for i in range(3):
        first, *later = seen[i * per_experience : (i + 1) * per_experience]
        assert all(torch.equal(first[k], other[k]) for other in later for k in first)


@pytest.mark.parametrize("drift", DRIFTS)
def test_heads_and_embeddings_of_other_tasks_keep_every_bit(drift: tuple[str, ...]) -> None:
    one = built("hypernet", *drift)
    strategy, head, seen = one.learner.strategy, one.learner.head.linear, []
    keep = lambda *_: seen.append([t.detach().clone() for t in (head.weight[0], head.bias[0], strategy.tasks[0])])  # noqa: E731
    before(strategy, "finish", keep)
    run(one)
    assert all(torch.equal(*pair) for pair in zip(seen[0], seen[2], strict=True))


def test_ewc_beside_it_protects_the_generator_with_its_true_fisher() -> None:
    one = built("ewc+hypernet", "trainer.precision=64", "strategy.ewc.samples=20")
    learner, fishers = one.learner, []
    ewc = learner.strategy.parts["ewc"]

    def naive(_: Any, experience: Any) -> None:
        chosen, _ = draws(learner, experience, "ewc/fisher", 20)
        rows = [t.double() if t.is_floating_point() else t for t in experience.dataset.rows(chosen)]
        network = learner.network()
        fishers.append(naive_fisher(learner, learner, network, [FisherBatch(*rows)], kind="exact", n_total=len(chosen)))

    before(ewc, "finish", naive)
    run(one)
    for name, total in ewc.quadratic.importance.items():
        torch.testing.assert_close(total, sum(fisher[name] for fisher in fishers), rtol=1e-8, atol=1e-14)
    of_generator = [total for name, total in ewc.quadratic.importance.items() if ".net." in name]
    assert len(of_generator) == 6
    assert all(bool((total > 0).any()) for total in of_generator)
    assert not any(".tasks." in name for name in ewc.quadratic.importance)


def test_batch_statistics_are_refused() -> None:
    with pytest.raises(UsageError, match="not generated"):
        built("hypernet", "backbone=resnet18")


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


@cache
def copied(strategy: str, *options: str) -> dict[str, Any]:
    """The summary of a run on two tasks of permuted copy."""
    shared = [
        "scenario=permuted-copy", "scenario.experiences=2", "scenario.length=3", "backbone=lstm", "backbone.hidden=64",
        "optimizer=adam", "optimizer.lr=0.01", "trainer.max_epochs=9", "trainer.accelerator=cpu",
    ]  # fmt: skip
    summary: dict[str, Any] = run(build(compose([f"strategy={strategy}", *shared, *options]), Ranks()))["summary"]
    return summary


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "sizes"),
    [
        ("hypernet", ("strategy.hidden=100", "strategy.chunk=4000")),
        ("dp-hypernet", ("strategy.hidden=100", "strategy.chunk=2000")),
    ],
)
def test_recurrent_weights_are_generated_and_kept_on_permuted_copy(strategy: str, sizes: tuple[str, ...]) -> None:
    """As in Ehret et al. 2021: the hypernetwork keeps what plain training of the same network forgets."""
    kept = copied(strategy, "strategy.embedding=32", "strategy.beta=1", *sizes)
    lost = copied("naive")
    assert kept["ACC"] > 0.98
    assert kept["forgetting"] < 0.01
    assert lost["learning_accuracy"] > 0.98
    assert lost["forgetting"] > 0.2
