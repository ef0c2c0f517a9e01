"""What Optuna proposes, and that a second call goes on. Runs that end at once stand for those that train."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from clplat.cli import main
from clplat.errors import UsageError
from clplat.sweep import optuna as proposing
from clplat.sweep.grid import Planned, spaces
from tests.report.conftest import CONFIG, RESULTS

Value = Callable[[float], float | None]


@pytest.fixture
def plan(tmp_path: Path):
    pytest.importorskip("optuna", reason="Optuna is not installed")

    def plan(values: Mapping[str, str], flags: Mapping[str, str]) -> Planned:
        name = "-".join([*flags.values(), *values.values()])
        config = {**CONFIG, "trainer": {"devices": 1}, "optimizer": {"name": "adam", **values}}
        return Planned({**config, "run": {"root": "r", "dir": str(tmp_path / "select" / name), "stop_after": 1}}, {})

    return plan


def end(run: Planned, acc: float | None, direction: str = "max") -> None:
    """The run's directory, as if it had been trained."""
    run.path.mkdir(parents=True, exist_ok=True)
    (run.path / "config.yaml").write_text(json.dumps(run.config), encoding="utf-8")
    (run.path / "status.json").write_text('{"status": "stopped"}', encoding="utf-8")
    results = {**RESULTS, "direction": direction, "summary": {"ACC": acc}}
    (run.path / "results.json").write_text(json.dumps(results), encoding="utf-8")


def search(plan, trials: int, **axes: list[str]) -> proposing.Search:
    return proposing.Search({"strategy": "ewc"}, axes, plan, trials, seed=0)


def work(found: proposing.Search, acc: Value, batch: int = 2, direction: str = "max") -> list[float]:
    tried = []
    while proposed := found.proposals(batch):
        assert len(proposed) <= batch
        for trial, run in proposed:
            tried.append(float(run.chosen["lr"]))
            end(run, acc(tried[-1]), direction)
            found.tell(trial, run)
    return tried


def test_proposals_come_near_to_what_is_best_and_end_at_their_number(plan, tmp_path):
    tried = work(search(plan, 30, lr=["uniform(0,1)"]), lambda lr: 1 - abs(lr - 0.3))
    assert len(tried) == 30
    assert all(0 <= lr <= 1 for lr in tried)
    assert sum(abs(lr - 0.3) for lr in tried[20:]) < sum(abs(lr - 0.3) for lr in tried[:10])


def test_less_is_better_where_the_metric_says_so(plan, tmp_path):
    found = search(plan, 5, lr=["0.1", "0.2", "0.3"])
    tried = work(found, lambda lr: lr, direction="min")
    assert min(tried) < max(tried)
    assert float(found.study.best_params["lr"]) == min(tried)


def test_a_second_call_goes_on_with_what_was_begun(plan, tmp_path):
    first = search(plan, 4, lr=["log(1e-4,1)"])
    ((done, run), (_, begun)) = first.proposals(2)
    end(run, 0.5)
    first.tell(done, run)
    again = search(plan, 4, lr=["log(1e-4,1)"])
    first_again, _ = (planned for _, planned in again.proposals(2))
    assert first_again.path == begun.path
    assert len(work(again, lambda lr: lr)) == 3
    assert len(again.candidates()) == 4
    assert again.candidates()[0].path == run.path
    assert search(plan, 4, lr=["log(1e-4,1)"]).proposals(2) == []
    other = search(plan, 4, lr=["log(1e-4,0.1)"])
    assert other.candidates() == []  # what was found in another range says nothing here


def test_a_run_that_failed_is_told_and_not_proposed_again(plan, tmp_path):
    found = search(plan, 3, lr=["int(1,100)"])
    values = iter([None, 0.5, 0.6])
    assert len(work(found, lambda lr: next(values))) == 3
    assert [trial.state.name for trial in found.study.trials] == ["FAIL", "COMPLETE", "COMPLETE"]
    assert found.proposals(2) == []


def test_what_makes_no_search_is_refused(plan, tmp_path):
    with pytest.raises(UsageError, match="takes one range, or values, not both"):
        search(plan, 1, lr=["log(1,10)", "3"])
    with pytest.raises(UsageError, match="nothing varies for ewc"):
        search(plan, 1)


def test_spaces_are_those_of_each_combination():
    found = spaces(
        {"strategy": "naive,ewc", "seed": "0"}, ["strategy.ewc.importance=log(1,10)", "optimizer.lr=1,2", "a=3"]
    )
    assert found == [
        ({"strategy": "naive", "seed": "0"}, {"optimizer.lr": ["1", "2"]}),
        ({"strategy": "ewc", "seed": "0"}, {"strategy.ewc.importance": ["log(1,10)"], "optimizer.lr": ["1", "2"]}),
    ]


def test_flags_that_do_not_go_together(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert main(["sweep", "--optuna", "0", "--random", "2", "--dry-run", "optimizer.lr=0.1,0.2"]) == 2
    assert [line.split(":")[1].split(" ")[1] for line in capsys.readouterr().err.splitlines()] == [
        "--optuna", "--optuna", "only", "--dry-run",
    ]  # fmt: skip


def test_optuna_where_it_is_missing(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "optuna", None)
    words = ["sweep", "--optuna", "2", "--select", "first-1", "scenario.validation=0.1", "optimizer.lr=0.1,0.2"]
    assert main(words) == 3
    assert "pip install 'clplat[optuna]'" in capsys.readouterr().err
