"""Sweeps through the front door, as real processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.cli.test_fit import clplat, command, results, surroundings

pytestmark = pytest.mark.slow

SMALL = ["--strategy", "naive,ewc", "--seed", "0,1", "--backbone", "mlp", "backbone.hidden=8"]
SMALL += ["scenario.experiences=2", "trainer.max_epochs=1", "trainer.accelerator=cpu", "--jobs", "2"]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sweep")


@pytest.fixture(scope="module")
def swept(place: Path) -> subprocess.CompletedProcess[str]:
    return clplat("sweep", *SMALL, "strategy.ewc.importance=10,1000", cwd=place)


def folders(place: Path) -> list[Path]:
    return sorted(path for path in (place / "runs/sweep").iterdir() if path.is_dir())


def test_every_run_is_done_and_equal_to_one_of_its_own(swept, place):
    assert swept.returncode == 0, swept.stderr
    assert len(folders(place)) == 6
    assert "6 runs, 6 to do, 2 at a time" in swept.stderr
    alone = clplat(
        "fit", "--strategy", "ewc", "--seed", "1", *SMALL[4:-2], "strategy.importance=1000", "run.dir=alone",
        "trainer.threads=1", cwd=place,
    )  # fmt: skip
    assert alone.returncode == 0, alone.stderr
    found = [results(path) for path in folders(place) if path.name.startswith("ewc") and "-s1-" in path.name]
    assert results(place / "alone")["weights_sha256"] in {one["weights_sha256"] for one in found}


def test_called_again_it_does_what_is_new_alone(swept, place):
    before = {path: (path / "results.json").stat().st_mtime_ns for path in folders(place)}
    again = clplat("sweep", *SMALL, "strategy.ewc.importance=10,1000", "--json", cwd=place)
    assert again.returncode == 0, again.stderr
    assert "6 runs, 0 to do" in again.stderr
    assert {run["state"] for run in json.loads(again.stdout)} == {"done"}
    more = clplat("sweep", *SMALL, "strategy.ewc.importance=10,1000,5000", cwd=place)
    assert "8 runs, 2 to do" in more.stderr
    assert {path: (path / "results.json").stat().st_mtime_ns for path in before} == before


def test_compare_runs_and_diff_read_it(swept, place):
    compared = clplat("compare", "runs/sweep", "--json", cwd=place)
    assert [row["strategy"] for row in json.loads(compared.stdout)["rows"]] in (["ewc", "naive"], ["naive", "ewc"])
    listed = clplat("runs", "--where", "strategy=naive", "--json", cwd=place)
    assert [row["seed"] for row in json.loads(listed.stdout)] == ["0", "1"]
    one, two = (row["path"] for row in json.loads(listed.stdout))
    assert '"key": "seed"' in clplat("diff", one, two, "--json", cwd=place).stdout


def test_a_run_that_fails_is_named_and_the_others_go_on(place):
    code = clplat(
        "sweep", "--name", "broken", *SMALL, "optimizer=sgd", "optimizer.lr=1e30,0.01", "trainer.log_every=1", cwd=place
    )
    assert code.returncode == 1
    assert code.stderr.count("failed: ") == 4
    assert "not finite" in code.stderr or "NaN" in code.stderr
    assert sum((path / "results.json").exists() for path in (place / "runs/broken").iterdir()) == 4


def test_stopped_and_killed_it_goes_on(place):
    words = ["sweep", "--name", "stopped", *SMALL, "trainer.max_epochs=8", "trainer.checkpoint_every=20"]

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(command(*words), cwd=place, env=surroundings(), stderr=subprocess.PIPE, text=True)

    def checkpoints() -> set[Path]:
        return set((place / "runs/stopped").glob("*/checkpoints/*"))

    def wait_for_steps(process: subprocess.Popen[str], known: set[Path]) -> None:
        deadline = time.monotonic() + 120
        while not checkpoints() - known:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)

    first = start()
    wait_for_steps(first, set())
    first.send_signal(signal.SIGINT)
    _, said = first.communicate(timeout=120)
    assert first.returncode == 130, said
    assert "the same command goes on" in said
    known = checkpoints()
    second = start()
    wait_for_steps(second, known)
    os.kill(second.pid, signal.SIGKILL)
    second.communicate(timeout=60)
    whole = clplat(*words, cwd=place)
    assert whole.returncode == 0, whole.stderr
    alone = clplat(
        "fit", "--strategy", "naive", "--seed", "0", *SMALL[4:-2], "trainer.max_epochs=8", "run.dir=long",
        "trainer.threads=1", cwd=place,
    )  # fmt: skip
    assert alone.returncode == 0, alone.stderr
    (found,) = (place / "runs/stopped").glob("naive-*-s0-*")
    assert results(found)["weights_sha256"] == results(place / "long")["weights_sha256"]


def test_ctrl_c_while_the_first_run_is_being_forked(place):
    """Torch is imported for seconds before the first fork, and a run that has just been forked hears no signal."""
    words = ["sweep", "--name", "early", "--strategy", "naive", *SMALL[4:], "trainer.max_epochs=1000000"]
    process = subprocess.Popen(command(*words), cwd=place, env=surroundings(), stderr=subprocess.PIPE, text=True)
    assert "1 runs, 1 to do" in process.stderr.readline()
    time.sleep(1)  # the import is under way
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 130, said
    assert "stopped with 1 runs to go; the same command goes on" in said
    assert "failed" not in said


def test_select_looks_at_the_first_experiences_alone(place):
    made = clplat(
        "sweep", "--name", "chosen", "--select", "first-1", *SMALL, "scenario.validation=0.1",
        "optimizer.lr=1e-9,0.01", cwd=place,
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    chosen = json.loads((place / "runs/chosen/selected.json").read_text())
    assert [one["chosen"] for one in chosen] == [{"optimizer.lr": "0.01"}] * 2
    candidates = sorted((place / "runs/chosen/select").iterdir())
    assert len(candidates) == 4  # two strategies, two rates, one seed
    for path in candidates:
        rows = [
            line for line in map(json.loads, (path / "metrics.jsonl").read_text().splitlines()) if "test_loss" in line
        ]
        assert all(row["accuracy"][1] is None for row in rows if row["experience"] >= 0)
    final = [path for path in (place / "runs/chosen").iterdir() if path.name not in ("select", "selected.json")]
    assert len(final) == 4  # two strategies, two seeds
    refused = clplat("sweep", "--select", "first-1", *SMALL, "optimizer.lr=0.1,0.2", "--name", "no", cwd=place)
    assert refused.returncode == 1
    assert "scenario.validation=0.1" in refused.stderr


def test_optuna_proposes_by_validation_and_goes_on(place):
    pytest.importorskip("optuna", reason="Optuna is not installed")
    words = ["sweep", "--name", "proposed", "--select", "first-1", *SMALL, "scenario.validation=0.1"]
    words += ["strategy.ewc.importance=log(1,1e4)", "optimizer.lr=1e-9,0.01", "--json"]
    made = clplat(*words, "--optuna", "2", cwd=place)
    assert made.returncode == 0, made.stderr
    assert len(json.loads(made.stdout)) == 4  # two strategies, two seeds
    folder = place / "runs/proposed"
    assert {tuple(one["chosen"]) for one in json.loads((folder / "selected.json").read_text())} == {
        ("optimizer.lr",), ("strategy.ewc.importance", "optimizer.lr"),
    }  # fmt: skip
    before = set((folder / "select").iterdir())
    for path in before:
        assert json.loads((path / "status.json").read_text())["status"] == "stopped"
        lines = map(json.loads, (path / "metrics.jsonl").read_text().splitlines())
        rows = [line["accuracy"] for line in lines if "summary" in line]
        assert rows
        assert all(row[1] is None for row in rows)
    more = clplat(*words, "--optuna", "3", cwd=place)
    assert more.returncode == 0, more.stderr
    assert before <= set((folder / "select").iterdir())
    assert more.stderr.count("runs, 1 to do") + more.stderr.count("runs, 0 to do") >= 2
