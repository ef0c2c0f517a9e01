"""From Python: objects or names, the same run as from the command line, resumed by the same call."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import pytest

import clplat
from clplat import LearnerSettings, TrainerSettings, fit, optim
from clplat.backbones.rnn.gru import GRU
from clplat.build import build
from clplat.config import compose
from clplat.errors import UsageError
from clplat.loop import Run
from clplat.ranks import Ranks
from clplat.scenarios.digits import SplitDigits
from clplat.strategies.ewc import EWC

QUICK = TrainerSettings(max_epochs=1, batch_size=128, progress="none", accelerator="cpu")


def test_objects_and_names_and_the_command_line_give_the_same_run() -> None:
    common = {"trainer": QUICK, "seed": 3, "optimizer": functools.partial(optim.sgd, lr=0.05)}
    strategy = EWC(importance=7.0)
    strategy.name = "ewc"
    scenario = SplitDigits(3, setting="task", experiences=2)
    by_objects = fit(strategy, scenario, lambda D: GRU(D, hidden=16), **common)
    overrides = [
        "strategy=ewc", "strategy.importance=7", "scenario=split-digits", "scenario.setting=task", "backbone=gru",
        "scenario.experiences=2", "backbone.hidden=16", "optimizer=sgd", "optimizer.lr=0.05", "seed=3",
        "trainer.max_epochs=1", "trainer.batch_size=128", "trainer.accelerator=cpu",
    ]  # fmt: skip
    one = build(compose(overrides), Ranks())
    by_config = Run(one.learner, one.scenario, eval_settings=one.eval_settings).execute()
    assert by_objects["weights_sha256"] == by_config["weights_sha256"]
    assert by_objects["matrix"] == by_config["matrix"]
    other = fit("ewc", scenario, "gru", learner=LearnerSettings(head="shared"), **common)
    assert other["weights_sha256"] != by_objects["weights_sha256"]


def test_the_same_call_goes_on_and_then_returns_the_results(tmp_path: Path) -> None:
    class StopsOnce(EWC):
        stopped = False

        def finish(self, learner: object, experience: object) -> None:
            if experience.current_experience == 1 and not StopsOnce.stopped:  # type: ignore[attr-defined]
                StopsOnce.stopped = True
                raise KeyboardInterrupt
            super().finish(learner, experience)  # type: ignore[arg-type]

    def call(run_dir: Path | None) -> dict:
        return fit(StopsOnce(), "permuted-digits", "mlp", trainer=QUICK, run_dir=run_dir)

    with pytest.raises(KeyboardInterrupt):
        call(tmp_path)
    assert not (tmp_path / "results.json").exists()
    resumed = call(tmp_path)
    assert resumed["weights_sha256"] == call(None)["weights_sha256"]
    assert call(tmp_path) == json.loads((tmp_path / "results.json").read_text())


def test_several_devices_need_a_launcher() -> None:
    with pytest.raises(UsageError, match="torchrun"):
        fit("naive", trainer=TrainerSettings(devices=2, accelerator="cpu"))


def test_all_names_are_there_and_others_are_not() -> None:
    for name in clplat.__all__:
        assert getattr(clplat, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = clplat.nothing
