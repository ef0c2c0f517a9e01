"""A whole run with all mirrors, offline and without an account: what they hold is what the record holds."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from clplat.tracking.names import cells, scalars
from clplat.tracking.record import lines as recorded
from tests.tracking.conftest import without_account
from tests.tracking.test_loggers import events, matrix
from tests.tracking.wandb_file import WandbFile, offline_runs


@dataclass
class Done:
    """A run that is over."""

    path: Path
    stderr: str
    lines: list[dict[str, Any]]
    results: dict[str, Any]
    wandb: WandbFile


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Done:
    pytest.importorskip("tensorboard")
    home = tmp_path_factory.mktemp("home")
    run_dir = home / "the-run"
    argv = ["fit", "--strategy", "naive", "--backbone", "mlp", "--logger", "wandb+csv+tensorboard"]
    argv += ["scenario.experiences=2", "trainer.max_epochs=1", "trainer.accelerator=cpu", f"run.dir={run_dir}"]
    argv += ["logger.wandb.project=tests"]
    result = subprocess.run(
        [sys.executable, "-m", "clplat", *argv], env=without_account(home), capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    results = json.loads((run_dir / "results.json").read_text())
    (run,) = offline_runs(run_dir)
    return Done(run_dir, result.stderr, recorded(run_dir, "metrics.jsonl"), results, run)


@pytest.mark.slow
def test_the_mirrors_are_quiet(done):
    assert "warning" not in done.stderr
    assert not [line for line in done.stderr.splitlines() if "wandb" in line.lower() or "tensor" in line.lower()]


def test_the_run_in_wandb(done):
    run = done.wandb.run
    assert (run.project, run.display_name, run.job_type) == ("tests", "the-run", "train")
    assert run.run_group == "naive-mlp-permuted-digits"
    config = yaml.safe_load((done.path / "config.yaml").read_text())
    assert {key: done.wandb.config[key] for key in config} == config
    assert done.wandb.config["strategy"]["name"] == "naive"
    assert done.wandb.exit_code == 0


def test_the_axes_in_wandb(done):
    axes = done.wandb.axes
    assert axes["experience"] == axes["step"] == ""
    assert (axes["train/*"], axes["eval/*"]) == ("step", "experience")
    assert not [key for row in done.wandb.history for key in row if "global_step" in key]


def test_every_line_is_in_wandb(done):
    """Each number of each line, in order, with both axes; and nothing beyond but W&B's own."""
    logged = [line for line in done.lines if scalars(line)]
    assert len(done.wandb.history) == len(logged) + 1  # the heat map
    for row, line in zip(done.wandb.history, logged, strict=False):
        ours = {key: value for key, value in row.items() if not key.startswith("_") and key != "eval/matrix"}
        plain = {key: value for key, value in ours.items() if not key.startswith("system/")}  # see test_use.py
        assert plain == {**scalars(line), "experience": line["experience"], "step": line["step"]}


def test_curves_and_summary_in_wandb(done):
    run, summary = done.wandb, done.results["summary"]
    (after_last,) = [row for row in run.history if row["experience"] == 1 and "eval/ACC" in row]
    for name, value in summary.items():
        if value is None:  # not measured (eval.every is 0): no number is made up
            assert f"eval/{name}" not in after_last
            assert name not in run.summary
            continue
        assert after_last[f"eval/{name}"] == pytest.approx(value, rel=1e-12)
        assert run.summary[name] == pytest.approx(value, rel=1e-12)
    rows = [done.results["baseline"], *done.results["matrix"]]
    for j in range(2):
        curve = [(after - 1, row[j]) for after, row in enumerate(rows)]
        assert run.series(f"eval/task/{j}", "experience") == curve
        assert [step for step, _ in run.series(f"eval/task/{j}", "step")] == [0, 45, 90]
    assert run.summary["steps"] == done.results["steps"] == 90


def test_the_matrix_in_wandb(done):
    rows = list(enumerate([done.results["baseline"], *done.results["matrix"]], start=-1))
    tables = [i for i, row in enumerate(done.wandb.history) if "eval/matrix" in row]
    assert len(tables) == 3
    for n, index in enumerate(tables, start=1):
        assert matrix(done.wandb, index) == [list(cell) for cell in cells(rows[:n])]
    figure = done.wandb.media(done.wandb.history[-1]["eval/heatmap"])
    seen, to_come = (trace["z"] for trace in figure["data"])
    drawn = [[b if a is None else a for a, b in zip(*both, strict=True)] for both in zip(seen, to_come, strict=True)]
    assert drawn == [row for _, row in rows]
    assert {"experience", "step"} <= set(done.wandb.history[-1])


def test_csv_holds_the_record(done):
    for kind in ("train", "eval"):
        with open(done.path / "csv" / f"{kind}.csv", encoding="utf-8", newline="") as file:
            rows = [row for row in csv.DictReader(file) if not row["name"].startswith("system/")]
        found = [(int(row["experience"]), int(row["step"]), row["name"], float(row["value"])) for row in rows]
        assert found == [
            (line["experience"], line["step"], name, value)
            for line in done.lines
            for name, value in scalars(line).items()
            if name.startswith("eval/") == (kind == "eval")
        ]


def test_tensorboard_holds_the_record(done):
    found = events(done.path)
    for line in done.lines:
        for name, value in scalars(line).items():
            assert (line["step"], pytest.approx(value)) in found[name]
