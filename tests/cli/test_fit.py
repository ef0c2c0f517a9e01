"""Whole runs through the front door. What a real process of its own shows, with its signals and its ranks, is few runs
that others share, since each pays for the imports; other commands are forked (:mod:`tests.harness`)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests import harness

pytestmark = pytest.mark.slow

SMALL = ["--strategy", "er", "--backbone", "mlp", "backbone.hidden=16", "scenario.experiences=2"]
SMALL += ["trainer.max_epochs=1", "trainer.accelerator=cpu", "trainer.threads=1"]
SUMMARY = {
    "ACC", "forgetting", "BWT", "FWT", "learning_accuracy", "average_incremental", "forgetting_first", "plasticity",
    "recency_bias", "relative_forgetting",
}  # fmt: skip
WATCHED = {"min_ACC", "WC_ACC", "AAA", "stability_gap", "windowed_forgetting"}  # with eval.every only; else null


def process(*argv: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*argv), cwd=cwd, env=surroundings(), capture_output=True, text=True)


def clplat(*argv: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    outcome = harness.command(*argv, cwd=cwd)
    return subprocess.CompletedProcess(argv, outcome.codes[0], outcome.stdout, outcome.stderr)


def command(*argv: str) -> list[str]:
    return [sys.executable, "-m", "clplat", *argv]


def surroundings() -> dict[str, str]:
    left_out = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "CLPLAT_DEBUG")
    return {key: value for key, value in os.environ.items() if key not in left_out}


def results(run_dir: Path) -> dict[str, Any]:
    return json.loads((run_dir / "results.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fit")


@pytest.fixture(scope="module")
def fitted(place: Path) -> subprocess.CompletedProcess[str]:
    """A run of a few seconds in ``place/whole``."""
    return process("fit", *SMALL, "run.dir=whole", cwd=place)


def test_what_a_run_leaves(fitted, place):
    assert fitted.returncode == 0, fitted.stderr
    found = results(place / "whole")
    assert set(found) == {
        "status", "metric", "direction", "matrix", "baseline", "summary", "reasons", "steps", "parameters",
        "stored_bytes", "weights_sha256", "seconds", "train_seconds", "peak_bytes", "new_classes",
        "trainable_parameters", "stored_bytes_by_kind", "state_size",
    }  # fmt: skip
    assert (found["status"], found["metric"], found["direction"]) == ("done", "accuracy", "max")
    assert [len(row) for row in found["matrix"]] == [2, 2]
    assert len(found["baseline"]) == 2
    assert set(found["summary"]) == SUMMARY | WATCHED
    assert {name for name, value in found["summary"].items() if value is None} == set(found["reasons"]) == WATCHED
    assert found["steps"] == 90
    assert found["stored_bytes"] >= 200 * 64 * 4
    assert len(found["weights_sha256"]) == 64
    assert found["seconds"] >= found["train_seconds"] > 0
    assert found["peak_bytes"] > 2**20
    assert json.loads((place / "whole" / "status.json").read_text())["status"] == "done"


def test_what_one_sees_of_a_run(fitted, place):
    assert "learning accuracy" in fitted.stdout
    assert "whole" in fitted.stdout
    lines = fitted.stderr.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["experience 1/2", "experience 2/2"]


def test_the_end_of_a_run_says_what_to_do_next(fitted, place):
    assert "best task" in fitted.stdout
    words = [line.split("clplat ")[1] for line in fitted.stdout.splitlines() if "clplat " in line]
    assert words == ["report whole", "metrics whole", "compare ."]
    for command in words:
        looked = clplat(*command.split(), cwd=place)
        assert looked.returncode == 0, looked.stderr


def test_json_and_quiet_say_what_they_promise(place, fitted):
    """A run in two parts, the first told in JSON and the second not at all, is the whole one."""
    first = clplat("fit", *SMALL, "run.dir=parts", "--stop-after", "1", "--json", cwd=place)
    assert first.returncode == 0, first.stderr
    told = json.loads(first.stdout)
    assert (told["run"], told["status"], len(told["matrix"])) == ("parts", "stopped", 1)
    assert first.stderr.splitlines() == ["stopped after 1 experiences; go on with: clplat resume parts"]
    second = clplat("resume", "parts", "--quiet", cwd=place)
    assert (second.returncode, second.stdout, second.stderr) == (0, "", "")
    assert results(place / "parts")["weights_sha256"] == results(place / "whole")["weights_sha256"]
    again = clplat("resume", "parts", "--json", cwd=place)
    assert json.loads(again.stdout) == {"run": "parts", **results(place / "parts")}
    assert clplat("resume", "parts", "--quiet", cwd=place).stdout == ""
    assert "is done already" in clplat("resume", "parts", cwd=place).stdout
    failed = clplat("fit", *SMALL, "run.dir=failed", "optimizer.lr=1e30", "--quiet", cwd=place)
    assert (failed.returncode, failed.stdout) == (1, "")
    assert all(line.startswith("error: ") for line in failed.stderr.splitlines())
    refused = clplat("fit", *SMALL, "--quiet", "--json", cwd=place)
    assert (refused.returncode, refused.stderr) == (2, "error: only one of --quiet and --json can be given\n")


def test_a_run_that_is_done_is_not_run_again(fitted, place):
    before = {path: path.read_bytes() for path in (place / "whole").rglob("*") if path.is_file()}
    done = clplat("resume", "whole", cwd=place)
    assert done.returncode == 0
    assert "done already" in done.stdout
    assert {path: path.read_bytes() for path in (place / "whole").rglob("*") if path.is_file()} == before


def test_an_existing_run_is_not_overwritten(fitted, place):
    done = clplat("fit", *SMALL, "run.dir=whole", cwd=place)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "clplat resume whole" in line
    assert "--overwrite" in line


def test_the_report_of_a_run(fitted, place):
    done = clplat("report", "whole", cwd=place)
    assert done.returncode == 0
    assert f"{results(place / 'whole')['summary']['ACC']:.4f}" in done.stdout
    assert "plotly.min.js" in (place / "report" / "index.html").read_text(encoding="utf-8")
    assert (place / "report" / "plotly.min.js").stat().st_size > 10**6


def test_eval_gives_the_last_row(fitted, place):
    before = {path: path.stat().st_mtime_ns for path in (place / "whole").rglob("*")}
    done = clplat("eval", "whole", "--json", cwd=place)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["row"] == found["recorded"] == results(place / "whole")["matrix"][-1]
    assert (found["experience"], found["trained"], found["step"], found["metric"]) == (1, 2, 90, "accuracy")
    line = json.loads((place / "whole" / "metrics.jsonl").read_text().splitlines()[-1])
    assert found["test_loss"] == line["test_loss"]
    assert {path: path.stat().st_mtime_ns for path in (place / "whole").rglob("*")} == before


def test_a_stopped_run_goes_on_to_the_same_end(fitted, place):
    argv = command("fit", *SMALL, "run.dir=stopped", "trainer.dispatch=1", "--json")
    pipe = subprocess.PIPE
    run_dir = place / "stopped"
    with subprocess.Popen(argv, cwd=place, env=surroundings(), stdout=pipe, stderr=pipe, text=True) as started:
        deadline = time.monotonic() + 120
        # The first line of the record is the untrained network's, so training is about to begin.
        while not (run_dir / "metrics.jsonl").exists() or not (run_dir / "metrics.jsonl").read_text():
            assert time.monotonic() < deadline
            assert started.poll() is None
            time.sleep(0.01)
        started.send_signal(signal.SIGTERM)
        assert started.wait(60) == 75
        assert started.stdout is not None
        assert started.stderr is not None
        assert json.loads(started.stdout.read()) == {"run": "stopped", "status": "preempted", "exit_code": 75}
        assert "go on with: clplat resume stopped" in started.stderr.read()
    assert json.loads((run_dir / "status.json").read_text())["status"] == "preempted"
    assert not (run_dir / "results.json").exists()
    done = clplat("resume", "stopped", cwd=place)
    assert done.returncode == 0, done.stderr
    for key in ("weights_sha256", "matrix", "steps", "summary"):
        assert results(run_dir)[key] == results(place / "whole")[key], key


def test_two_ranks(fitted, place):
    done = process("fit", *SMALL, "trainer.devices=2", "run.dir=two", cwd=place)
    assert done.returncode == 0, done.stderr
    assert "starting 2 ranks" in done.stderr
    found, alone = results(place / "two"), results(place / "whole")
    assert [len(row) for row in found["matrix"]] == [2, 2]
    assert (found["steps"], found["parameters"]) == (alone["steps"], alone["parameters"])
    assert found["summary"]["ACC"] == pytest.approx(alone["summary"]["ACC"], abs=0.02)


def test_a_dry_run_writes_nothing_and_counts_right(fitted, place):
    before = sorted(place.rglob("*"))
    done = clplat("fit", *SMALL, "--dry-run", cwd=place)
    assert done.returncode == 0, done.stderr
    assert sorted(place.rglob("*")) == before
    found = results(place / "whole")
    assert f"{found['parameters']:,} (backbone " in done.stdout
    assert f"the whole run: {found['steps']} steps" in done.stdout
    assert "T = 1 steps of D = 64 values" in done.stdout
    assert "experience 2: 1438 samples to train on, 359 to test on, classes 0-9; 45 steps" in done.stdout
    assert "experience 1, train: loss " in done.stdout


@pytest.mark.parametrize("extra", [[], ["--dry-run"]])
def test_a_pairing_that_is_impossible(place, extra):
    """What only the engine can know is one line too, whether the run is meant or only tried."""
    argv = ["fit", "--strategy", "ewc", "--scenario", "split-digits", "learner.head=per-task", *extra, "run.dir=no"]
    done = clplat(*argv, cwd=place)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "task labels" in line
    assert line.startswith("error: ")


def test_a_strategy_that_is_not_there(place):
    done = clplat("fit", "--strategy", "ewcc", cwd=place)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: --strategy: unknown strategy 'ewcc'. Did you mean 'ewc'?")
    assert done.stdout == ""


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is unwritable for root")
def test_a_place_that_cannot_be_written(place):
    (place / "locked").mkdir(mode=0o500)
    done = clplat("fit", *SMALL, "run.dir=locked/run", cwd=place)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "cannot make a run directory here" in line


def test_a_place_where_nothing_can_be(place):
    (place / "file").write_text("")
    done = clplat("fit", *SMALL, "run.dir=file/run", cwd=place)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line == "error: file/run: not a folder"
