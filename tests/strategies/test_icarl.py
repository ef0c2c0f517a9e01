"""iCaRL: the loss, the exemplars and the nearest mean are the paper's, and what is reported is the nearest mean's."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from clplat.batch import Batch
from clplat.errors import UsageError
from clplat.evaluate import evaluate
from clplat.memory import herding
from tests.cases import before, built, run

SPLIT = ["scenario.experiences=5", "scenario.test=0.3", "trainer.precision=64", "trainer.accumulate=1"]


def _sigmoid(z: float) -> float:
    return 1 / (1 + math.exp(-z))


def test_the_loss_is_binary_over_all_classes_with_the_old_networks_answers() -> None:
    one = built("icarl", *SPLIT, "backbone.dropout=0")
    strategy = one.learner.strategy
    checked: list[int] = []

    def check(learner: Any, batch: Batch, output: Any) -> None:
        e = batch.experience
        if e in checked:
            return
        checked.append(e)
        with torch.no_grad():
            found = strategy.base_loss(learner, batch, output)
            held = strategy.recall("teacher")
            old = learner.output_with(held, batch.x, batch.task).logits if held else None
        for n in range(len(batch.x)):
            total = 0.0
            for c in range(10):
                target = float(batch.y[n] == c)
                if c < 2 * e:  # classes come two by two, in order
                    assert old is not None
                    target = _sigmoid(float(old[n, c]))
                p = _sigmoid(float(output.logits[n, c]))
                total -= target * math.log(p) + (1 - target) * math.log(1 - p)
            assert float(found[n]) == pytest.approx(total / 10, rel=1e-9)

    before(strategy, "observe", check)
    run(one)
    assert checked == [0, 1, 2, 3, 4]


def test_the_teacher_is_the_network_before_and_stands_still() -> None:
    one = built("icarl", *SPLIT)
    strategy = one.learner.strategy
    ends: dict[int, dict[str, Tensor]] = {}

    def end(learner: Any, experience: Any) -> None:
        ends[experience.current_experience] = copy.deepcopy(dict(learner.network()))
        teacher = strategy.recall("teacher")
        if experience.current_experience:
            last = ends[experience.current_experience - 1]
            assert all(torch.equal(teacher[name], last[name]) for name in last)
        else:
            assert not teacher

    before(strategy, "finish", end)
    run(one)
    assert len(ends) == 5


def test_exemplars_of_old_classes_are_trained_on() -> None:
    one = built("icarl", *SPLIT)
    strategy = one.learner.strategy
    seen: dict[int, set[int]] = {}
    before(
        strategy, "observe", lambda _, batch, output: seen.setdefault(batch.experience, set()).update(batch.y.tolist())
    )
    run(one)
    assert seen == {e: set(range(2 * e + 2)) for e in range(5)}


def test_exemplars_are_herded_without_dropout_and_none_is_lost() -> None:
    one = built("icarl", *SPLIT, "backbone.dropout=0.5", "strategy.memory=23")
    strategy = one.learner.strategy
    expected: dict[int, Tensor] = {}
    finish = strategy.finish

    def follow(learner: Any, experience: Any) -> None:
        data = experience.dataset
        learner.eval()
        with torch.no_grad():
            features = learner.output(data.x.double(), data.task).features
        learner.train()
        for y in experience.classes_in_this_experience:
            rows = torch.nonzero(data.y == y).squeeze(1)
            expected[y] = data.x[rows[herding(features[rows], 23)]].double()
        finish(learner, experience)
        sizes = [len(group) for group in strategy.memory.groups.values()]
        share, more = divmod(23, len(sizes))
        assert sizes == [share + 1] * more + [share] * (len(sizes) - more)
        for (_, y), slots in strategy.memory.groups.items():
            held = strategy.memory.rows(torch.tensor(slots))["x"]
            assert torch.equal(held, expected[y][: len(held)])  # the beginning of the first list, for ever

    strategy.finish = follow
    run(one)
    assert len(expected) == 10


def _nearest_by_hand(one: Any, x: Tensor) -> list[int]:
    learner, memory = one.learner, one.learner.strategy.memory

    def feature(sample: Tensor) -> Tensor:
        f = learner.output_with({}, sample[None], torch.zeros(1, dtype=torch.long)).features[0].detach()
        return f / f.norm()

    means = {}
    for (_, y), slots in memory.groups.items():
        mean = sum(feature(row) for row in memory.rows(torch.tensor(slots))["x"]) / len(slots)
        means[y] = mean / mean.norm()
    return [min(means, key=lambda y: float((feature(sample) - means[y]).norm())) for sample in x]


def test_answers_are_the_nearest_mean_by_the_network_as_it_is() -> None:
    one = built("icarl", *SPLIT)
    run(one)
    learner = one.learner
    x = torch.cat([e.dataset.x[:6] for e in one.scenario.test_stream]).double()
    task = torch.zeros(len(x), dtype=torch.long)
    with learner.evaluating():
        assert learner.answer(x, task).argmax(1).tolist() == _nearest_by_hand(one, x)
    # The network moves on, and the means with it.
    with torch.no_grad():
        for p in learner.backbone.parameters():
            p.add_(0.5 * torch.randn(p.shape, generator=torch.Generator().manual_seed(3), dtype=p.dtype))
    learner.step += 1
    with learner.evaluating():
        moved = learner.answer(x, task).argmax(1).tolist()
    assert moved == _nearest_by_hand(one, x)


def test_the_matrix_is_the_nearest_means_and_not_the_heads() -> None:
    one = built("icarl", *SPLIT)
    matrix = run(one)["matrix"]
    learner, stream = one.learner, one.scenario.test_stream
    found = evaluate(learner, stream, range(5), 64)
    assert [found[j]["accuracy"] for j in range(5)] == matrix[-1]
    with learner.evaluating():
        answers = [learner(e.dataset.x.double(), e.dataset.task).argmax(1) for e in stream]
    heads = [float((found == e.dataset.y).double().mean()) for found, e in zip(answers, stream, strict=True)]
    assert heads != matrix[-1]
    torch.nn.init.zeros_(learner.head.linear.weight)
    assert [evaluate(learner, stream, [j], 64)[j]["accuracy"] for j in range(5)] == matrix[-1]


def test_a_class_without_exemplars_is_never_the_answer() -> None:
    one = built("icarl", *SPLIT)
    matrix = run(one)["matrix"]
    for i, row in enumerate(matrix):
        assert row[i + 1 :] == [0.0] * (4 - i)


def test_a_growing_head_trains() -> None:
    one = built("icarl", *SPLIT, "learner.head=growing")
    assert run(one)["summary"]["ACC"] > 0.3
    assert all(p.isfinite().all() for p in one.learner.parameters())


@pytest.mark.slow
def test_forgets_less_than_er_with_the_same_memory() -> None:
    options = ["scenario=split-digits", "scenario.experiences=5", "scenario.test=0.2", "backbone.hidden=64"]
    options += ["backbone.dropout=0", "trainer.accumulate=1", "trainer.batch_size=32", "trainer.max_epochs=10"]
    naive, er, icarl = (
        run(built(name, *options, *own))["summary"]["ACC"]
        for name, own in (("naive", []), ("er", ["strategy.memory=50"]), ("icarl", ["strategy.memory=50"]))
    )
    assert icarl > naive + 0.3
    assert icarl > er


def test_other_settings_and_too_small_memories_are_refused() -> None:
    with pytest.raises(UsageError, match=r"icarl needs new-classes.*setting=class"):
        built("icarl", "scenario.setting=task")
    one = built("icarl", "scenario.experiences=5", "strategy.memory=3")
    with pytest.raises(UsageError, match="one of each of 4 classes"):
        run(one)
