"""Multifidelity continual learning: the levels, what stands still, and regression over intervals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from clplat import optim, registry
from clplat.build import Built, assemble, backbone_maker, build_strategy
from clplat.errors import UsageError
from clplat.loop import Run
from clplat.scenario import Scenario, Spec, TensorData, stream
from clplat.settings import EvalSettings, LearnerSettings, TrainerSettings
from tests.cases import before, built, run


def _intervals(strategy: Any, function: Any, *, seed: int = 0, epochs: int = 100) -> tuple[Built, dict[str, Any]]:
    """Regression of one function, a quarter of its domain in each experience."""
    parts: dict[str, list[TensorData]] = {"train": [], "test": []}
    for i in range(4):
        for name, n in (("train", 64), ("test", 33)):
            x = torch.linspace(i / 4, (i + 1) / 4, n)[:, None]
            parts[name].append(TensorData(x, function(x)))
    spec = Spec((1,), 1, "domain", encoder="vectors", target="value", metric="mse", direction="min")
    entry = registry.find("backbone", "mlp")
    one = assemble(
        Scenario(spec, stream("train", parts["train"]), stream("test", parts["test"])), lambda: strategy,
        backbone_maker(entry, {"hidden": 32}),
        trainer=TrainerSettings(accelerator="cpu", max_epochs=epochs, batch_size=16, progress="none"),
        learner_settings=LearnerSettings(), eval_settings=EvalSettings(), hints=entry.info, seed=seed,
        make_optimizer=lambda groups: optim.adam(groups, lr=1e-3),
    )  # fmt: skip
    return one, run(one)


def _law(x: Tensor) -> Tensor:
    return torch.sin(3 * x) + x


@pytest.mark.slow
def test_regression_over_intervals_forgets_less_than_fine_tuning_and_with_replay_hardly_at_all() -> None:
    errors = {}
    sections = {
        "naive": {"name": "naive"},
        "mfcl": {"name": "mfcl", "importance": 1e-3},
        "mfcl+er": {"name": "mfcl+er", "mfcl": {}, "er": {"memory": 20}},
    }
    for name, section in sections.items():
        _, results = _intervals(build_strategy(section), _law)
        errors[name] = (sum(results["matrix"][-1]) / 4) ** 0.5  # over all intervals, which are equally large
    assert errors["mfcl"] < 0.9 * errors["naive"]
    assert errors["mfcl+er"] < 0.5 * errors["mfcl"]


@pytest.mark.slow
def test_what_is_known_already_needs_no_correction() -> None:
    """A target that equals the level below: F_l stays near the identity and F_nl near nothing."""
    one, results = _intervals(build_strategy({"name": "mfcl"}), lambda x: torch.full_like(x, 0.5))
    x = torch.linspace(0, 1, 50)[:, None]
    for level in one.learner.head.above:
        assert abs(level.linear.weight.item() - 1) < 0.2
        low = torch.full_like(x, 0.5)
        assert level.nonlinear(torch.cat([x, low], 1)).abs().max() < 0.1
    assert max(results["matrix"][-1]) < 0.01


def test_a_new_level_begins_as_the_model_before() -> None:
    one = built("mfcl", "trainer.precision=64")
    answers: list[tuple[Tensor, Tensor]] = []
    x, _, task = one.scenario.test_stream[0].dataset.rows(slice(0, 20))
    adapt = one.learner.strategy.adapt

    def grown(learner: Any, experience: Any) -> None:
        with learner.evaluating():
            old = learner(x.double(), task)
            adapt(learner, experience)
            learner.double()
            answers.append((old, learner(x.double(), task)))

    one.learner.strategy.adapt = grown  # type: ignore[method-assign]
    run(one)
    assert len(answers) == 3
    for old, new in answers:
        torch.testing.assert_close(new, old, rtol=0, atol=1e-12)
    assert not torch.allclose(answers[1][0], answers[2][0])


def test_the_answer_is_the_chain_of_all_levels() -> None:
    one = built("mfcl", "trainer.precision=64", "backbone.dropout=0")
    run(one)
    head = one.learner.head
    x, _, task = one.scenario.test_stream[0].dataset.rows(slice(0, 9))
    x = x.double()
    flat = x.flatten(1)
    h = flat
    for layer in one.learner.backbone.layers:
        h = layer(h).relu()
    y = h @ head.base.linear.weight.T + head.base.linear.bias
    assert len(head.above) == 2
    for level in head.above:
        inner = torch.cat([flat, y], 1)
        for part in level.nonlinear:
            inner = inner @ part.weight.T + part.bias if isinstance(part, torch.nn.Linear) else inner * inner.sigmoid()
        y = y @ level.linear.weight.T + level.linear.bias + inner
    one.learner.eval()
    torch.testing.assert_close(one.learner(x, task), y)


@pytest.mark.parametrize("optimizer", ["adam", "adamw"])
def test_levels_below_stand_still_to_the_bit(optimizer: str) -> None:
    decay = ["optimizer.weight_decay=0.1", "optimizer.keep_state=true"]
    one = built("mfcl", f"optimizer={optimizer}", *decay)
    ends: list[dict[str, Tensor]] = []

    def keep(learner: Any, _: Any) -> None:
        ends.append({name: p.detach().clone() for name, p in learner.network().items()})

    before(one.learner.strategy, "finish", keep)
    Run(one.learner, one.scenario, eval_settings=one.eval_settings, keep_optimizer_state=True).execute()
    for old, new in ((ends[0], ends[1]), (ends[1], ends[2])):
        assert all(torch.equal(new[name], w) for name, w in old.items())
        assert len(new) > len(old)


def test_the_penalty_is_on_the_newest_nonlinear_part_alone() -> None:
    one = built("mfcl", "strategy.importance=0.5", "trainer.precision=64")
    run(one)
    newest = one.learner.head.above[-1]
    expected = 0.5 * sum(p.square().sum() for p in newest.nonlinear.parameters())
    torch.testing.assert_close(one.learner.strategy.loss(one.learner, None, None)["nonlinear"], expected)


def test_frozen_levels_drop_nothing_while_the_newest_learns() -> None:
    one = built("mfcl", "backbone.dropout=0.5")
    run(one)
    x, _, task = one.scenario.train_stream[0].dataset.rows(slice(0, 9))
    one.learner.train()
    torch.testing.assert_close(one.learner.output(x, task).logits, one.learner.output(x, task).logits)
    assert one.learner.backbone.training


def test_heads_of_single_tasks_are_refused() -> None:
    with pytest.raises(UsageError, match=r"learner\.head=shared"):
        built("mfcl", "scenario=split-digits", "scenario.setting=task", "scenario.experiences=2")


@pytest.mark.parametrize("option", [{"importance": -1.0}, {"hidden": 0}, {"layers": 0}])
def test_options_out_of_range_are_refused(option: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="mfcl"):
        build_strategy({"name": "mfcl", **option})
