"""The strategy contract: combinations, remembered state, and the checks of the strategies themselves."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from torch import Tensor

from clplat.batch import Batch, Part
from clplat.build import Built, build, build_strategy
from clplat.config import compose
from clplat.errors import UsageError
from clplat.fisher import FisherBatch, naive_fisher
from clplat.learner import Learner, Output
from clplat.loop import Run
from clplat.ranks import Ranks
from clplat.strategy import Combined, Strategy
from tests import cases


def built(strategy: str, *overrides: str) -> Built:
    return build(compose([*cases.small(strategy), "trainer.accelerator=cpu", *overrides]), Ranks())


def run(one: Built) -> dict[str, Any]:
    return Run(one.learner, one.scenario, eval_settings=one.eval_settings).execute()


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


def test_trainable_intersects() -> None:
    learner = built("naive").learner
    names = list(learner.network())
    both = Combined({"a": Chooser(*names[:3]), "b": Chooser(*names[1:]), "c": Strategy()})
    chosen = list(both.trainable(learner) or [])
    assert [id(p) for p in chosen] == [id(learner.network()[n]) for n in names[1:3]]
    assert Combined({"a": Strategy(), "b": Strategy()}).trainable(learner) is None


def test_what_may_not_learn_does_not(tmp_path: Any) -> None:
    one = built("naive")
    one.learner.strategy = Chooser("head.bias")
    before = {name: p.clone() for name, p in one.learner.network().items()}
    run(one)
    for name, p in one.learner.network().items():
        assert torch.equal(p, before[name]) == (name != "head.bias")


def test_terms_of_a_combination_carry_names_and_add() -> None:
    one = built("ewc+er")
    run(one)
    x, y, task = one.scenario.train_stream[0].dataset.rows(slice(0, 5))
    batch = Batch([Part("stream", x, y, task, torch.arange(5), slice(0, 5))], experience=2, epoch=0, step=0)
    terms = one.learner.strategy.loss(one.learner, batch, one.learner.output(x, task))
    assert list(terms) == ["ewc/penalty"]
    assert "er" in one.learner.strategy.rehearse(one.learner, batch)


@pytest.mark.parametrize("strategy", cases.strategies())
def test_state_survives_a_safe_load_whatever_its_shape(strategy: str) -> None:
    one, other = built(strategy), built(strategy)
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


@pytest.mark.parametrize("strategy", cases.strategies())
def test_same_seed_same_end_and_another_seed_another(strategy: str) -> None:
    digests = [run(built(strategy, f"seed={seed}"))["weights_sha256"] for seed in (5, 5, 6)]
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize("strategy", cases.strategies())
def test_dispatch_does_not_matter(strategy: str) -> None:
    digests = {run(built(strategy, f"trainer.dispatch={n}"))["weights_sha256"] for n in (1, 3, 64)}
    assert len(digests) == 1


# --- ewc


def _explicit(one: Built, online: bool) -> tuple[list[dict[str, Tensor]], list[dict[str, Tensor]]]:
    """Run, and keep each experience's Fisher (by the one-by-one loop) and weights as the penalty's definition says."""
    fishers: list[dict[str, Tensor]] = []
    anchors: list[dict[str, Tensor]] = []
    strategy = one.learner.strategy
    finish = strategy.finish

    def keep(learner: Learner, experience: Any) -> None:
        data = experience.dataset.to(torch.device("cpu"), torch.float64)
        learner.eval()
        everything = [FisherBatch(data.x, data.y, data.task)]
        fishers.append(naive_fisher(learner, learner, learner.network(), everything, kind="exact", n_total=len(data)))
        anchors.append({name: p.detach().clone() for name, p in learner.network().items()})
        finish(learner, experience)

    strategy.finish = keep  # type: ignore[method-assign]
    run(one)
    return fishers, anchors


@pytest.mark.parametrize("online", [False, True])
def test_ewc_penalty_is_the_papers(online: bool) -> None:
    decay = 0.7 if online else 1.0
    one = built("ewc", "trainer.precision=64", f"strategy.online={online}", f"strategy.decay={decay}")
    fishers, anchors = _explicit(one, online)
    learner = one.learner
    with torch.no_grad():
        for p in learner.network().values():
            p.add_(torch.randn_like(p) * 0.1)
    if online:
        running: dict[str, Tensor] = {}
        for fisher in fishers:
            running = {name: decay * running.get(name, 0.0) + f for name, f in fisher.items()}
        pairs = [(running, anchors[-1])]
    else:
        pairs = list(zip(fishers, anchors, strict=True))
    network = learner.network()
    expected = sum((f[n] * (network[n] - a[n]).square()).sum() for f, a in pairs for n in network)
    expected_grads = torch.autograd.grad(5.0 * expected, list(network.values()))  # importance 10, halved
    batch = Batch([], experience=3, epoch=0, step=0)
    found = learner.strategy.loss(learner, batch, None)["penalty"]  # type: ignore[arg-type]
    torch.testing.assert_close(found, 5.0 * torch.as_tensor(expected), rtol=1e-10, atol=0)
    found_grads = torch.autograd.grad(found, list(network.values()))
    torch.testing.assert_close(found_grads, expected_grads, rtol=1e-8, atol=1e-12)


def test_ewc_kinds_differ_and_are_recorded_in_the_config() -> None:
    digests = {
        run(built("ewc", f"strategy.fisher={kind}"))["weights_sha256"]
        for kind in ("exact", "sampled", "empirical", "batched")
    }
    assert len(digests) == 4


def test_ewc_with_no_importance_is_naive() -> None:
    matrix = run(built("ewc", "strategy.importance=0"))["matrix"]
    assert matrix == run(built("naive"))["matrix"]


# --- er


def test_er_with_a_memory_of_everything_forgets_less_than_naive() -> None:
    options = ["trainer.max_epochs=12", "trainer.accumulate=1", "backbone.dropout=0", "backbone.hidden=64"]
    naive = run(built("naive", *options))["summary"]
    er = run(built("er", *options, "strategy.memory=2000", "strategy.batch_size=51"))["summary"]
    assert er["ACC"] > naive["ACC"] + 0.1
    assert er["forgetting"] < naive["forgetting"] - 0.1


def test_er_weights_its_sources_as_documented() -> None:
    one = built("er", "strategy.weight=3")
    run(one)
    x, y, task = one.scenario.train_stream[0].dataset.rows(slice(0, 4))
    plain = Batch([Part("stream", x, y, task, torch.arange(4), slice(0, 4))], experience=1, epoch=1, step=9)
    batch = one.learner.strategy.rehearse(one.learner, plain)
    assert [(p.source, p.weight, p.n_global) for p in batch.parts] == [("stream", 0.25, 4), ("er", 0.75, 7)]
    values = torch.arange(11.0)
    expected = 0.25 * values[:4].mean() + 0.75 * values[4:].mean()
    torch.testing.assert_close(batch.reduce(values), expected)
    torch.testing.assert_close(batch.reduce(batch.on("er", values[4:])), values[4:].mean())


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
