"""The strategy contract: combinations, remembered state, and the checks of the strategies themselves."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from torch import Tensor

from clplat.batch import Batch, Part
from clplat.build import build_strategy
from clplat.errors import UsageError
from clplat.learner import Learner, Output
from clplat.strategy import Combined, Strategy
from tests import cases
from tests.cases import built, run


class Owner(Strategy):
    def base_loss(self, learner: Learner, batch: Batch, output: Output) -> Tensor:
        return output.logits.sum(-1)


class Caller(Strategy):
    def forward(self, learner: Learner, x_BTD: Tensor, task: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        return x_BTD, state


class Chooser(Strategy):
    def __init__(self, *names: str) -> None:
        super().__init__()
        self.names = names

    def trainable(self, learner: Learner) -> Any:
        return [p for name, p in learner.network().items() if name in self.names]


def test_two_owners_of_one_thing_are_refused_by_name() -> None:
    with pytest.raises(UsageError, match="a and b cannot be combined: each of them decides the base loss"):
        Combined({"a": Owner(), "b": Owner()})
    with pytest.raises(UsageError, match="how the backbone is called"):
        Combined({"a": Caller(), "b": Caller()})
    Combined({"a": Owner(), "b": Caller()})


class Answerer(Strategy):
    def classify(self, learner: Learner, output: Output, task: Tensor) -> Tensor:
        return -output.logits

    def report(self) -> dict[str, Any]:
        return {"answers": "upside down"}


def test_an_answer_by_other_means_is_what_evaluation_judges_and_nothing_else() -> None:
    with pytest.raises(UsageError, match="each of them decides the answer in evaluation"):
        Combined({"a": Answerer(), "b": Answerer()})
    for strategy in (Answerer(), Combined({"a": Strategy(), "b": Answerer()})):
        one = built("naive", "scenario.experiences=1")
        one.learner.strategy = strategy
        results = run(one)
        plain = run(built("naive", "scenario.experiences=1"))
        assert results["weights_sha256"] == plain["weights_sha256"]
        assert results["matrix"][0][0] < plain["matrix"][0][0]
        x, _, task = one.scenario.test_stream[0].dataset.rows(slice(0, 4))
        with one.learner.evaluating():
            assert torch.equal(one.learner.answer(x, task), -one.learner(x, task))
        expected = {"answers": "upside down"}
        assert results["strategy"] == (expected if isinstance(strategy, Answerer) else {"b": expected})
        assert "strategy" not in plain


def test_trainable_intersects() -> None:
    learner = built("naive").learner
    names = list(learner.network())
    both = Combined({"a": Chooser(*names[:3]), "b": Chooser(*names[1:]), "c": Strategy()})
    chosen = list(both.trainable(learner) or [])
    assert [id(p) for p in chosen] == [id(learner.network()[n]) for n in names[1:3]]
    assert Combined({"a": Strategy(), "b": Strategy()}).trainable(learner) is None


def test_what_may_not_learn_does_not(tmp_path: Any) -> None:
    one = built("naive")
    one.learner.strategy = Chooser("head.linear.bias")
    before = {name: p.clone() for name, p in one.learner.network().items()}
    run(one)
    for name, p in one.learner.network().items():
        assert torch.equal(p, before[name]) == (name != "head.linear.bias")


def test_terms_of_a_combination_carry_names_and_add() -> None:
    one = built("ewc+er")
    run(one)
    x, y, task = one.scenario.train_stream[0].dataset.rows(slice(0, 5))
    batch = Batch([Part("stream", x, y, task, torch.arange(5), slice(0, 5))], experience=2, epoch=0, step=0)
    terms = one.learner.strategy.loss(one.learner, batch, one.learner.output(x, task))
    assert list(terms) == ["ewc/penalty"]
    assert "er" in one.learner.strategy.rehearse(one.learner, batch)


@pytest.mark.parametrize("strategy", cases.each_strategy())
def test_state_survives_a_safe_load_whatever_its_shape(strategy: str) -> None:
    one, other = built(strategy, brief=True), built(strategy, brief=True)
    run(one)
    buffer = io.BytesIO()
    torch.save(one.learner.state_dict(), buffer)
    buffer.seek(0)
    state = torch.load(buffer, weights_only=True)
    for experience in other.scenario.train_stream:
        other.learner.strategy.adapt(other.learner, experience)
    other.learner.load_state_dict(state)
    loaded = other.learner.state_dict()
    assert loaded.keys() == one.learner.state_dict().keys()
    for name, value in one.learner.state_dict().items():
        assert torch.equal(loaded[name], value) if isinstance(value, Tensor) else loaded[name] == value


@pytest.mark.parametrize("strategy", cases.each_strategy())
def test_the_seed_alone_decides_the_end_and_dispatch_does_not_matter(strategy: str) -> None:
    ends = [run(built(strategy, *more, brief=True))["weights_sha256"] for more in (
        ("seed=5",), ("seed=5", "trainer.dispatch=1"), ("seed=5", "trainer.dispatch=64"), ("seed=6",)
    )]  # fmt: skip
    assert ends[0] == ends[1] == ends[2] != ends[3]


@pytest.mark.parametrize(
    ("section", "word"),
    [
        ({"name": "ewc", "importance": -1.0}, "importance"),
        ({"name": "ewc", "decay": 2.0}, "decay"),
        ({"name": "er", "weight": 0.0}, "weight"),
        ({"name": "er", "memory": 0}, "memory of 0"),
    ],
)
def test_options_out_of_range_are_refused(section: dict[str, Any], word: str) -> None:
    with pytest.raises(UsageError, match=word):
        build_strategy(section)
