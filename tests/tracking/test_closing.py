"""What is said when a run has ended."""

from __future__ import annotations

import json
import math
import signal
from pathlib import Path
from typing import Any

import pytest

from clplat.tracking import closing, directory
from tests import cases, harness

RESULTS: dict[str, Any] = {
    "status": "done",
    "metric": "[red]accuracy",
    "direction": "max",
    "matrix": [[0.9, None], [0.6, 0.8], [0.5, 0.85]],
    "baseline": [0.1, 0.125],
    "tests": [0, 1, 0],
    "summary": {"ACC": 0.675, "BWT": None, "learning_accuracy": 0.7},
    "reasons": {"BWT": "it [is] so"},
    "seconds": 2.0,
    "train_seconds": 1.0,
    "peak_bytes": 2**20,
    "stored_bytes": 0,
}


def test_the_summary_of_a_stream_whose_tasks_return(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    closing.print_summary(RESULTS, Path("runs/some run"))
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    cells = [[cell.strip() for cell in line.strip("│").split("│")] for line in lines if line.startswith("│")]
    assert cells == [["start", "0.100", "0.125"], ["1", "0.900", ""], ["2", "0.600", "0.800"], ["3", "0.500", "0.850"]]
    assert (
        lines[-10:]
        == [
            "ACC  0.6750",
            "BWT  -  it [is] so",
            "learning accuracy  0.7000",
            "best task  2  (0.8500, 0.8000 when it was learned)",
            "worst task  1  (0.5000, 0.9000 when it was learned)",
            "time  2.0 s (training 1.0 s)",
            "memory  1 MiB at most, 0.00 MiB kept by the strategy",
            "run  runs/some run",
            "next  clplat report 'runs/some run'",
            "clplat metrics 'runs/some run'",
            "clplat compare runs",
        ][-10:]
    )
    assert any("[red]accuracy" in line for line in lines)


def test_best_is_smallest_where_smaller_is_better():
    found = closing.extremes({**RESULTS, "direction": "min"})
    assert found["best"].startswith("1  ")
    assert found["worst"].startswith("2  ")


def test_one_task_is_neither_best_nor_worst():
    assert closing.extremes({**RESULTS, "matrix": [[0.9, None]], "tests": None}) == {}
    assert closing.extremes({**RESULTS, "matrix": [[0.9, None], [None, 0.9]], "tests": None}) == {}


def test_a_run_that_stopped_is_to_be_resumed():
    assert closing.following({**RESULTS, "status": "stopped"}, Path("r"))[0] == "clplat resume r"


@pytest.mark.parametrize(
    ("number", "times", "code"), [(signal.SIGUSR1, 1, 75), (signal.SIGINT, 2, 130)], ids=["requeued", "interrupted"]
)
def test_a_run_that_a_signal_stopped_says_so_in_json(tmp_path, number, times, code):
    argv = ("fit", *cases.small("naive"), "trainer.accelerator=cpu", "run.dir=r", "--json")
    outcome = harness.command(*argv, cwd=tmp_path, kill_at=("step", 2), number=number, times=times)
    assert outcome.codes == [code]
    told = outcome.output[outcome.output.index("{") : outcome.output.rindex("}") + 1]  # standard error is in it too
    assert json.loads(told) == {"run": "r", "status": "preempted", "exit_code": code}
    assert directory.read_status(tmp_path / "r")["status"] == "preempted"


@pytest.mark.parametrize("progress", ["json", "quiet"])
def test_json_and_quiet(capsys, progress):
    closing.show({**RESULTS, "strategy": {"share": math.nan}}, Path("r"), progress)
    out = capsys.readouterr().out
    if progress == "quiet":
        assert out == ""
    else:
        assert json.loads(out) == {"run": "r", **RESULTS, "strategy": {"share": None}}
