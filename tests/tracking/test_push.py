"""``clplat wandb``: runs that are sent from their directories, and the layout of a project."""

from __future__ import annotations

import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from clplat.cli import main
from clplat.tracking.mirrors import wandb as weights_and_biases
from tests.report.conftest import LINES as REPORTED
from tests.report.conftest import make  # noqa: F401 - a fixture
from tests.tracking.wandb_file import WandbFile, offline_runs

GOLDEN = Path(__file__).parent / "golden" / "workspace.json"


@pytest.fixture(autouse=True)
def surroundings(nobody, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def push(*words: str) -> int:
    import wandb

    code = main(["wandb", "push", *words])
    wandb.teardown()  # all is on disk then
    return code


def shown(run: WandbFile) -> dict[str, Any]:
    """The summary without what W&B adds of its own."""
    return {name: value for name, value in run.summary.items() if not name.startswith("_")}


def test_a_run_without_a_logger_is_written_whole_and_once(make, capsys):  # noqa: F811
    run = make("runs/one", strategy={"name": "<b>ewc"})
    make("runs/going", status="running", time=time.time())
    assert push("runs", "--offline", "--project", "mine", "--dry-run") == 0
    assert capsys.readouterr().out == "runs/going: not ended: running\nruns/one: would be pushed\n"
    assert not (run / "wandb").exists()
    assert push("runs", "--offline", "--project", "mine") == 0
    assert capsys.readouterr().out == "runs/going: not ended: running\nruns/one: written\n"
    (sent,) = offline_runs(run)
    assert (sent.run.project, sent.run.job_type, sent.run.run_group) == ("mine", "train", "<b>ewc-mlp-permuted-digits")
    assert sent.run.run_id == weights_and_biases.run_id(run)
    assert sent.series("eval/ACC", "experience") == [(0, 0.9), (1, 0.7)]
    table = sent.media(sent.history[-1]["eval/matrix"])
    assert table["data"] == [[-1, 0, 0.1], [-1, 1, 0.125], [0, 0, 0.9], [1, 0, 0.6], [1, 1, 0.8]]
    assert (sent.summary["ACC"], sent.summary["status"], sent.exit_code) == (0.7, "done", 0)
    assert push("runs/one", "--offline", "--project", "mine") == 0
    assert capsys.readouterr().out == "runs/one: there already\n"
    assert len(offline_runs(run)) == 1
    time.sleep(1.0)  # the name of a run's folder has whole seconds
    (run / "probes").mkdir()
    (run / "probes" / "gdv.json").write_text('{"gdv": -0.5}', encoding="utf-8")
    assert push("runs/one", "--offline", "--project", "mine") == 0
    first, second = offline_runs(run)
    assert (second.run.run_id, second.run.job_type) == (f"{first.run.run_id}-eval", "eval")
    assert (second.run.run_group, second.run.display_name) == (first.run.run_group, first.run.display_name)
    assert shown(second) == {"probe/gdv/gdv": -0.5}
    assert (second.history, second.exit_code) == ([], 0)
    assert push("runs/one", "--offline", "--project", "mine") == 0
    assert len(offline_runs(run)) == 2


def test_what_was_measured_later_is_sent_once_with_a_run_that_was_not_sent_yet(make):  # noqa: F811
    run = make("runs/sweeps/one")
    (run / "command.txt").write_text("clplat sweep --name sweeps\n", encoding="utf-8")
    added = {"evaluations": 2, "values": {"ece": 0.25}, "reasons": {}, "references": {}}
    (run / "metrics.json").write_text(json.dumps(added), encoding="utf-8")
    assert push("runs", "--offline") == 0
    sent = {one.run.job_type: one for one in offline_runs(run)}
    assert sorted(sent) == ["eval", "train"]
    assert {one.run.run_group for one in sent.values()} == {"sweeps"}
    assert shown(sent["eval"]) == {"ece": 0.25}
    assert "ece" not in sent["train"].summary
    assert sent["train"].summary["ACC"] == 0.7


def test_a_copy_of_a_run_is_the_same_run(make):  # noqa: F811
    run = make("runs/one")
    (run / "history.jsonl").write_text('{"event": "start", "time": 2.5, "pid": 7}\n', encoding="utf-8")
    shutil.copytree(run, "copied/elsewhere")
    assert push("runs", "copied", "--offline") == 0
    (here,), (there,) = offline_runs(run), offline_runs(Path("copied/elsewhere"))
    assert here.run.run_id == there.run.run_id


def test_a_damaged_run_does_not_stop_the_others(make, capsys):  # noqa: F811
    make("runs/a", lines=[{**REPORTED[0], "accuracy": [{"no": "number"}]}])
    make("runs/b")
    assert push("runs", "--offline") == 1
    captured = capsys.readouterr()
    assert captured.out == "runs/b: written\n"
    assert captured.err.startswith("error: runs/a: not pushed: ")
    assert not Path("runs/a/wandb/pushed.json").exists()


def test_without_a_key_and_without_a_server_nothing_is_called_pushed(make, capsys, monkeypatch):  # noqa: F811
    run = make("runs/one")
    assert push("runs") == 3
    assert "no W&B API key is configured" in capsys.readouterr().err
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.setattr(weights_and_biases, "START_TIMEOUT", 1.0)
    assert push("runs") == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: W&B cannot be reached: ")
    assert not (run / "wandb" / "pushed.json").exists()
    assert not offline_runs(run)


def test_the_layout_of_a_project(capsys):
    pytest.importorskip("wandb_workspaces", reason="wandb-workspaces is not installed")
    assert main(["wandb", "workspace", "--project", "p", "--entity", "e", "--print"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(GOLDEN.read_text(encoding="utf-8"))


def test_a_layout_is_not_saved_without_an_account(capsys):
    pytest.importorskip("wandb_workspaces", reason="wandb-workspaces is not installed")
    assert main(["wandb", "workspace", "--project", "p", "--entity", "e"]) == 1
    assert capsys.readouterr().err.startswith("error: W&B did not take it: ")


def test_a_missing_package_is_told(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    assert main(["wandb", "workspace", "--print"]) == 3
    assert "pip install 'clplat[workspaces]'" in capsys.readouterr().err
