"""LFL: the distance is that to the features of the network before, and its classifier does not move."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from clplat.batch import Batch, Part
from clplat.build import build_strategy
from clplat.errors import UsageError
from tests.cases import before, built, run


def _term(one: Any, n: int = 6) -> tuple[Batch, Any]:
    x, y, task = one.scenario.train_stream[1].dataset.rows(slice(0, n))
    x = x.double()
    batch = Batch([Part("stream", x, y, task, torch.arange(n), slice(0, n))], experience=1, epoch=0, step=0)
    return batch, one.learner.strategy.loss(one.learner, batch, one.learner.output(x, task)).get("features")


def test_the_term_is_half_the_squared_distance_of_features_summed_over_them() -> None:
    one = built("lfl", "trainer.precision=64", "strategy.strength=0.7")
    run(one)
    learner = one.learner
    teacher = {name: t.clone() for name, t in learner.strategy.recall("teacher").items()}
    learner.eval()
    batch, term = _term(one)
    old = learner.output_with(teacher, batch.x, batch.task).features
    new = learner.output(batch.x, batch.task).features
    torch.testing.assert_close(term, 0.35 * ((old - new) ** 2).sum(1), rtol=1e-10, atol=1e-14)
    assert term.min() > 0
    assert {name for name, t in teacher.items() if t.requires_grad} == set()


def test_the_network_stays_in_training_mode_and_the_teacher_is_in_evaluation_mode() -> None:
    """Dropout of the teacher would make its features random."""
    one = built("lfl", "trainer.precision=64", "backbone.dropout=0.5")
    run(one)
    learner = one.learner.train()
    _, first = _term(one)
    assert learner.training
    assert learner.backbone.dropout.training
    teacher = learner.strategy.recall("teacher")
    x, _, task = one.scenario.train_stream[1].dataset.rows(slice(0, 4))
    answers = [learner.output_with(teacher, x.double(), task).features for _ in range(2)]
    assert torch.equal(*answers)
    assert not torch.equal(first, _term(one)[1])


@pytest.mark.parametrize(
    ("setting", "head"), [("domain", "shared"), ("class", "shared"), ("class", "growing"), ("task", "per-task")]
)
@pytest.mark.parametrize("slug", ["lfl", "center-loss"])
def test_what_answers_for_old_classes_stays_and_new_classes_learn(slug: str, setting: str, head: str) -> None:
    one = built(
        slug, "scenario=split-digits", f"scenario.setting={setting}", "scenario.experiences=2", f"learner.head={head}",
        "optimizer=adamw", "optimizer.weight_decay=0.1",
    )  # fmt: skip
    held: dict[str, Tensor] = {}

    def begin(learner: Any, experience: Any) -> None:
        if experience.current_experience == 1:
            held.update({name: p.detach().clone() for name, p in learner.head.named_parameters()})

    before(one.learner.strategy, "start", begin)
    run(one)
    for name, p in one.learner.head.named_parameters():
        old, new = (held[name][0], p[0]) if setting == "task" else (held[name][:5], p[:5])
        assert torch.equal(old, new)
        rest_old, rest_new = (held[name][1], p[1]) if setting == "task" else (held[name][5:], p[5:])
        if setting != "domain":
            assert not torch.equal(rest_old, rest_new)


def test_with_no_strength_only_the_classifier_is_kept() -> None:
    one = built("lfl", "strategy.strength=0", "trainer.max_epochs=1")
    naive = run(built("naive", "trainer.max_epochs=1"))["matrix"]
    found = run(one)["matrix"]
    assert found[0] == naive[0]
    assert found[1] != naive[1]


@pytest.mark.slow
def test_forgets_less_than_naive_where_classes_stay_the_same() -> None:
    options = [
        "scenario=rotated-digits", "scenario.experiences=3", "scenario.max_angle=60", "trainer.max_epochs=10",
        "trainer.accumulate=1", "trainer.clip=null", "backbone.dropout=0", "scenario.test=0.5", "optimizer.lr=0.001",
        "backbone.hidden=256",
    ]  # fmt: skip
    naive = run(built("naive", *options))["summary"]
    lfl = run(built("lfl", *options, "strategy.strength=0.1"))["summary"]
    assert lfl["forgetting"] < naive["forgetting"] - 0.15
    assert lfl["ACC"] > naive["ACC"] + 0.05


def test_a_negative_strength_is_refused() -> None:
    with pytest.raises(UsageError, match="strength=-1"):
        build_strategy({"name": "lfl", "strength": -1.0})
