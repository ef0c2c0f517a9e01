"""GSS: scores are cosines of gradients, and the memory keeps what is diverse by the authors' rule."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from clplat.batch import Batch
from clplat.errors import UsageError
from clplat.randomness import generator
from clplat.strategies.gss import ScoredMemory
from tests.cases import built, run

PLAIN = ["trainer.precision=64", "backbone.dropout=0.3", "strategy.memory=60", "strategy.batches=3"]


def _gradient(learner: Any, x: Tensor, y: Tensor) -> Tensor:
    """Of the mean loss, without dropout."""
    learner.eval()
    loss = torch.nn.functional.cross_entropy(learner(x, torch.zeros(len(x), dtype=torch.long)), y)
    learner.train()
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(learner.parameters()))])


def _cosine(a: Tensor, b: Tensor) -> float:
    return float(a @ b / (a.norm() * b.norm()))


def test_scores_are_the_largest_cosines_and_only_a_diverse_batch_competes() -> None:
    one = built("gss", *PLAIN)
    strategy, memory = one.learner.strategy, one.learner.strategy.memory
    observe, competed, refused, first = strategy.observe, 0, 0, 0

    def watch(learner: Any, batch: Batch, output: Any) -> None:
        nonlocal competed, refused, first
        held = {name: t.clone() for name, t in memory.rows(memory.slots()).items()}
        n_held = len(memory)
        kept = [None if p.grad is None else p.grad.clone() for p in learner.parameters()]
        rows: list[dict[str, Tensor]] = []
        competes = memory.compete
        memory.compete = lambda offered, draws: (rows.append(offered), competes(offered, draws))
        observe(learner, batch, output)
        memory.compete = competes
        for p, g in zip(learner.parameters(), kept, strict=True):
            assert (p.grad is None) if g is None else torch.equal(p.grad, g)
        assert learner.training
        if batch.epoch:
            assert not rows
            assert all(torch.equal(t, held[name]) for name, t in memory.rows(torch.arange(n_held)).items())
            return
        stream = batch["stream"]
        if not n_held:
            assert (memory.rows(memory.slots())["score"] == 0.1).all()
            first += 1
            return
        references = []
        for b in range(3):
            draws = learner.generator("gss/reference", batch.step, batch.micro, b)
            index = torch.randperm(n_held, generator=draws)[:7]
            references.append(_gradient(learner, held["x"][index], held["y"][index]))
        scores = [
            max(_cosine(_gradient(learner, x[None], y[None]), g) for g in references)
            for x, y in zip(stream.x, stream.y, strict=True)
        ]
        whole = max(_cosine(_gradient(learner, stream.x, stream.y), g) for g in references)
        if n_held < memory.size:
            found = memory.rows(torch.arange(n_held, len(memory)))["score"].tolist()
            assert found == pytest.approx(scores[: len(found)], rel=1e-9, abs=1e-12)
            first += 1
        elif whole < 0:
            assert rows[0]["score"].tolist() == pytest.approx(scores, rel=1e-9, abs=1e-12)
            competed += 1
        else:
            assert not rows
            refused += 1

    strategy.observe = watch
    run(one)
    assert first >= 2
    assert refused
    assert competed


def test_victims_and_winners_are_drawn_by_their_scores() -> None:
    """Shares over many trials against the rule, with raw cosines moved to [0, 1]."""
    stored, new = torch.tensor([-0.8, 0.0, 0.9]), torch.tensor([-0.5])
    chances = (stored.double() + 0.8) / 1.7 + 0.01
    expected = chances / chances.sum() * ((stored + 1) / 2) / ((stored + 1) / 2 + 0.25)
    counts, trials = torch.zeros(3), 4000
    for trial in range(trials):
        memory = ScoredMemory(3)
        memory.fill({"x": torch.arange(3), "score": stored})
        memory.compete({"x": torch.tensor([9]), "score": new}, generator(trial, "compete"))
        counts += memory.rows(torch.arange(3))["x"] == 9
    assert ((counts / trials - expected).abs() < 0.04).all()  # five standard deviations


def test_equal_scores_give_equal_chances() -> None:
    counts = torch.zeros(4)
    for trial in range(1000):
        memory = ScoredMemory(4)
        memory.fill({"x": torch.arange(4), "score": torch.full((4,), 0.3)})
        memory.compete({"x": torch.tensor([9]), "score": torch.tensor([-1.0])}, generator(trial, "equal"))
        counts += memory.rows(torch.arange(4))["x"] == 9
    assert counts.sum() == 1000  # a score of -1 always wins
    assert (counts - 250).abs().max() < 70


def test_a_memory_that_is_nearly_full_takes_what_fits() -> None:
    memory = ScoredMemory(5)
    memory.fill({"x": torch.arange(3), "score": torch.zeros(3)})
    memory.fill({"x": torch.arange(10, 14), "score": torch.ones(4)})
    assert memory.rows(memory.slots())["x"].tolist() == [0, 1, 2, 10, 11]


def test_keeps_rare_samples_that_a_uniform_memory_would_lose() -> None:
    """The paper's claim on an uneven stream: the memory of GSS holds more of the rare classes than a reservoir's."""
    shares = {}
    for name in ("gss", "er"):
        rare = 0
        for seed in range(2):
            options = ["strategy.memory=20", "strategy.batch_size=10", "trainer.batch_size=10", "trainer.accumulate=1"]
            options += ["trainer.max_epochs=1", "backbone.dropout=0", "backbone.hidden=64", "optimizer=sgd"]
            one = built(
                name, "scenario=split-digits", "scenario.test=0.5", "optimizer.lr=0.1", *options, f"seed={seed}"
            )
            _make_uneven(one)
            run(one)
            memory = one.learner.strategy.memory
            rare += int((memory.rows(memory.slots())["y"] >= 4).sum())
        shares[name] = rare
    assert shares["gss"] > shares["er"] + 3


def _make_uneven(one: Any) -> None:
    """Later experiences have a tenth of their samples."""
    from dataclasses import replace

    one.scenario.train_stream = tuple(
        e if not i else replace(e, dataset=e.dataset.subset(torch.arange(0, len(e.dataset), 10)))
        for i, e in enumerate(one.scenario.train_stream)
    )


def test_forgets_less_than_naive() -> None:
    options = ["scenario.experiences=3", "scenario.test=0.2", "backbone.hidden=32", "backbone.dropout=0"]
    options += ["trainer.accumulate=1", "trainer.batch_size=20", "trainer.max_epochs=1", "trainer.clip=null"]
    naive, gss = (
        run(built(name, *options, *own))["summary"]["ACC"]
        for name, own in (("naive", []), ("gss", ["strategy.memory=200", "strategy.batch_size=20"]))
    )
    assert gss > naive + 0.08


def test_options_out_of_range_are_refused() -> None:
    with pytest.raises(UsageError, match="batches"):
        built("gss", "strategy.batches=0")
