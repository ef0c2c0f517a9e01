"""What fits together, what does not and why, what is warned of."""

from __future__ import annotations

import pytest
import torch

from clplat.build import Built, build
from clplat.config import compose
from clplat.errors import UsageError
from clplat.heads.head import GrowingHead, PerTaskHead, SharedHead
from clplat.loop import Run
from clplat.ranks import Ranks
from tests.cases import run


def made(*overrides: str, ranks: Ranks | None = None) -> Built:
    quick = ["backbone=mlp", "trainer.accelerator=cpu", "trainer.max_epochs=1", "trainer.batch_size=256"]
    return build(compose([*quick, *overrides]), ranks or Ranks())


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["strategy=hypernet"], ["hypernet needs task-labels", "scenario.setting=task"]),
        (["strategy=lwf", "scenario=mqar-memorize", "backbone=gru"], ["lwf needs classes", "classification"]),
        (["learner.head=per-task"], ["per-task needs task labels", "scenario.setting=task"]),
        (["learner.head=growing", "scenario=mqar-memorize", "backbone=gru"], ["growing needs a classification"]),
        (["learner.encoder=tokens"], ["encoder 'tokens'", "fitting encoders"]),
        (["learner.encoder=rows", "scenario=mqar-memorize"], ["encoder 'rows'", "tokens"]),
        (["trainer.max_epochs=0", "trainer.keep_last=0"], ["trainer.max_epochs=0", "trainer.keep_last=0"]),
        (["trainer.clip=-1"], ["trainer.clip=-1.0"]),
        (["trainer.checkpoint_every=-1"], ["checkpoint_every=-1"]),
    ],
)
def test_what_does_not_fit_is_refused_with_the_reason(overrides: list[str], words: list[str]) -> None:
    with pytest.raises(UsageError) as error:
        made(*overrides)
    for word in words:
        assert word in str(error.value)


def test_batch_norm_is_refused_on_several_ranks_only() -> None:
    small = ["backbone=resnet18", "backbone.width=4"]
    made(*small)
    made(*small, "backbone.norm=group", ranks=Ranks(0, 2))
    with pytest.raises(UsageError, match="batch norm"):
        made(*small, ranks=Ranks(0, 2))


def test_more_gpus_than_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    with pytest.raises(UsageError, match="4 GPUs wanted, 1 found"):
        Ranks.from_environment("gpu")


def test_a_known_hopeless_pairing_is_warned_of_unless_it_is_helped() -> None:
    (warning,) = made("strategy=ewc", "scenario=split-digits").warnings
    assert "--strategy er, or ewc+er" in warning
    assert made("strategy=ewc+er", "scenario=split-digits").warnings == []
    assert made("strategy=ewc", "scenario=split-digits", "scenario.setting=task").warnings == []


@pytest.mark.parametrize(
    ("overrides", "head", "width"),
    [
        (["scenario=split-digits"], SharedHead, 10),
        (["scenario=split-digits", "scenario.setting=domain"], SharedHead, 2),
        (["scenario=split-digits", "scenario.setting=task", "scenario.experiences=3"], PerTaskHead, 4),
        (["scenario=split-digits", "scenario.setting=task", "learner.head=shared"], SharedHead, 2),
        (["scenario=split-digits", "learner.head=growing"], GrowingHead, 10),
    ],
)
def test_heads(overrides: list[str], head: type, width: int) -> None:
    one = made(*overrides)
    assert type(one.learner.head) is head
    Run(one.learner, one.scenario, eval_settings=one.eval_settings).execute()
    data = one.scenario.test_stream[-1].dataset
    assert one.learner(data.x[:5], data.task[:5]).shape == (5, width)


def test_classes_a_task_does_not_have_get_no_probability() -> None:
    one = made("scenario=split-digits", "scenario.setting=task", "scenario.experiences=3")
    data = one.scenario.test_stream[2].dataset
    probability = one.learner(data.x, data.task).softmax(-1)
    assert probability.shape[1] == 4
    assert (probability[:, 3] == 0).all()


@pytest.mark.parametrize("strategy", ["ewc", "er", "lwf", "agem"])
@pytest.mark.parametrize("keep_state", [False, True])
def test_a_growing_head_keeps_what_it_knew(strategy: str, keep_state: bool) -> None:
    one = made(
        f"strategy={strategy}", "scenario=split-digits", "learner.head=growing", f"optimizer.keep_state={keep_state}"
    )
    results = run(one)
    assert one.learner.head.linear.out_features == 10
    # A class that has not come yet cannot be answered.
    assert all(results["matrix"][i][j] == 0 for i in range(5) for j in range(i + 1, 5))


@pytest.mark.parametrize(
    ("scenario", "metric"),
    [("mqar-memorize", "accuracy"), ("permuted-copy", "accuracy"), ("rotated-digits", "accuracy")],
)
@pytest.mark.parametrize("backbone", ["gru", "linear-transformer"])
def test_every_kind_of_stream_runs(scenario: str, metric: str, backbone: str) -> None:
    small = {
        "mqar-memorize": ["scenario.experiences=2", "scenario.samples=64", "scenario.test_samples=32"],
        "permuted-copy": ["scenario.experiences=2", "scenario.samples=64", "scenario.test_samples=32"],
        "rotated-digits": ["scenario.experiences=2"],
    }[scenario]
    results = run(made("strategy=er", f"scenario={scenario}", f"backbone={backbone}", *small))
    assert len(results["matrix"]) == 2
    assert all(0 <= value <= 1 for row in results["matrix"] for value in row)
