"""DER and DER++: answers are those of the time, both draws are independent, the terms are the paper's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from clplat.batch import Batch, Part
from clplat.errors import UsageError
from clplat.learner import Output
from clplat.strategies.der import mean_square
from tests.cases import before, built, run


def _step_batch(one: Any, step: int = 9, rows: int = 6) -> Batch:
    x, y, task = one.scenario.train_stream[0].dataset.rows(slice(0, rows))
    dtype = next(one.learner.parameters()).dtype
    plain = Batch(
        [Part("stream", x.to(dtype), y, task, torch.arange(rows), slice(0, rows))], experience=1, epoch=1, step=step
    )
    return one.learner.strategy.rehearse(one.learner, plain)


@torch.no_grad()
def _by_hand(one: Any, batch: Batch, alpha: float, beta: float) -> float:
    """The paper's loss, one sample after another."""
    learner, stream = one.learner, batch["stream"]
    dark, labelled = batch["derpp"], batch["derpp/labels"]
    stored = learner.strategy.memory.rows(dark.index)
    total = 0.0
    for part, weight in ((stream, 1.0), (labelled, beta)):
        for x, y in zip(part.x, part.y, strict=True):
            loss = torch.nn.functional.cross_entropy(learner(x[None], stream.task[:1]), y[None])
            total += weight * float(loss) / len(part.x)
    for x, z in zip(stored["x"], stored["logits"], strict=True):
        apart = learner(x[None], stream.task[:1])[0] - z
        total += alpha * float((apart * apart).sum()) / len(z) / len(dark.index)
    return total


def test_the_whole_loss_is_the_papers() -> None:
    one = built("derpp", "trainer.precision=64", "backbone.dropout=0", "strategy.alpha=0.3", "strategy.beta=0.7")
    run(one)
    learner, strategy = one.learner, one.learner.strategy
    batch = _step_batch(one)
    with torch.no_grad():
        output = learner.output(batch.x, batch.task)
    found = batch.reduce(strategy.base_loss(learner, batch, output))
    for term in strategy.loss(learner, batch, output).values():
        found = found + batch.reduce(term)
    assert float(found) == pytest.approx(_by_hand(one, batch, 0.3, 0.7), rel=1e-10)


def test_stored_logits_are_those_of_the_pass_that_stored_them() -> None:
    """Not those of the trained network, and not recomputed: what each pass gave is kept aside here and looked up."""
    one = built("der", "trainer.precision=64")
    strategy = one.learner.strategy
    given: list[tuple[Tensor, Tensor]] = []

    def keep(learner: Any, batch: Batch, output: Output) -> None:
        given.append((batch["stream"].x.clone(), batch.of("stream", output.logits).clone()))

    before(strategy, "observe", keep)
    run(one)
    held = strategy.memory.rows(strategy.memory.slots())
    x, z = (torch.cat(column).flatten(1) for column in zip(*given, strict=True))
    assert strategy.memory.seen == len(x)  # every pass of every epoch
    for row, logits in zip(held["x"].flatten(1), held["logits"], strict=True):
        of_it = (x == row).all(1)
        assert ((z[of_it] - logits).abs().amax(1) < 1e-12).any()
    final = one.learner(held["x"], held["task"])
    assert (final - held["logits"]).abs().max() > 0.1


def test_two_draws_are_independent() -> None:
    one = built("derpp", "strategy.memory=200", "strategy.batch_size=20")
    run(one)
    shared = []
    for step in range(200):
        batch = _step_batch(one, step)
        a, b = (set(batch[name].index.tolist()) for name in ("derpp", "derpp/labels"))
        assert len(a) == len(b) == 20
        shared.append(len(a & b))
    # Two independent draws of 20 of 200 share 2 in the mean, standard deviation 1.3: of 200 means 0.09.
    assert abs(sum(shared) / 200 - 2) < 0.5


def test_without_weight_labels_are_not_drawn() -> None:
    one = built("derpp", "strategy.beta=0")
    run(one)
    assert [part.source for part in _step_batch(one).parts] == ["stream", "derpp"]


def test_classes_that_did_not_exist_yet_are_left_out() -> None:
    now = torch.tensor([[1.0, 2.0, 3.0, -torch.inf]], requires_grad=True)
    stored = torch.tensor([[0.0, 4.0, -torch.inf, -torch.inf]])
    found = mean_square(now, stored)
    assert found.item() == (1 + 4) / 2
    (gradient,) = torch.autograd.grad(found.sum(), now)
    assert gradient.tolist() == [[1.0, -2.0, 0.0, 0.0]]


def test_a_growing_head_trains() -> None:
    one = built("derpp", "scenario=split-digits", "learner.head=growing")
    found = run(one)
    assert all(p.isfinite().all() for p in one.learner.parameters())
    assert found["summary"]["ACC"] > 0.1


@pytest.mark.parametrize("scenario", ["permuted-copy", "mqar-memorize"])
def test_targets_at_each_step_are_held_too(scenario: str) -> None:
    from clplat.build import build
    from clplat.config import compose
    from clplat.ranks import Ranks

    sizes = ["scenario.experiences=2", "scenario.samples=64", "scenario.test_samples=16", "trainer.max_epochs=1"]
    one = build(
        compose(["strategy=derpp", f"scenario={scenario}", "backbone=gru", "backbone.hidden=8", *sizes]), Ranks()
    )
    run(one)
    rows = one.learner.strategy.memory.rows(torch.arange(4))
    assert rows["logits"].shape[:2] == rows["y"].shape[:2]
    assert (rows["logits"] != 0).any()


@pytest.mark.slow
def test_forgets_less_than_er_with_as_small_a_memory() -> None:
    """The paper's ranking on a class-incremental stream with several epochs: DER++ above ER above naive."""
    options = ["scenario=split-digits", "scenario.experiences=5", "scenario.test=0.2", "backbone.hidden=64"]
    options += ["backbone.dropout=0", "trainer.accumulate=1", "trainer.batch_size=32", "trainer.max_epochs=10"]
    memory = ["strategy.memory=50", "strategy.batch_size=32"]
    naive, er, derpp = (
        run(built(name, *options, *own))["summary"]["ACC"]
        for name, own in (("naive", []), ("er", memory), ("derpp", memory))
    )
    assert derpp > naive + 0.2
    assert derpp > er + 0.02


@pytest.mark.parametrize("option", ["alpha=0", "beta=-1", "memory=0", "batch_size=0"])
def test_options_out_of_range_are_refused(option: str) -> None:
    with pytest.raises(UsageError, match=option.split("=")[0]):
        built("derpp", f"strategy.{option}")
