"""Stored answers of whole runs: the same after a kill, and on any number of ranks; and metrics of run directories."""

from __future__ import annotations

import json
import math
import random
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from clplat import checkpoint
from clplat.cli import main
from clplat.config import compose
from clplat.metrics import measures, store
from clplat.metrics.matrix import average
from clplat.metrics.runs import evidence
from clplat.tracking import continuation
from tests import cases, harness

SPLIT = [*cases.small("naive"), "scenario=split-digits", "scenario.experiences=3"]

COPYING = ["scenario=permuted-copy", "scenario.samples=200", "backbone=gru", "backbone.hidden=12"]
OVER = {
    "class": SPLIT,
    "bits": [*(o for o in cases.small("naive") if not o.startswith(("scenario", "backbone"))), *COPYING],
}


def files(run_dir: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (run_dir / store.FOLDER).iterdir()}


def ran(run_dir: Path, *overrides: str, world: int = 1) -> Path:
    harness.make(run_dir, [*SPLIT, *overrides])
    outcome = harness.run(run_dir, world=world)
    assert outcome.codes == [0] * world, outcome.output
    return run_dir


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ran(tmp_path_factory.mktemp("stored") / "run", "trainer.keep_boundaries=true")


def metrics(*argv: str, capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    assert main(["metrics", *argv, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_each_evaluation_has_its_file_and_they_make_the_matrix(done: Path) -> None:
    assert set(files(done)) == {"untrained.npz", "e000.npz", "e001.npz", "e002.npz"}
    known, _ = evidence(done)
    assert known.new_classes
    for i, row in enumerate([known.baseline, *known.matrix], -1):
        for j, value in enumerate(row):
            y, predicted, _ = known.known().column(i, j, "y", "predicted")
            assert value == (y == predicted).mean()


def test_killed_between_answers_and_record_ends_with_the_same_files(done: Path, tmp_path: Path) -> None:
    draw = random.Random("stored")
    for point in ("evaluated", "evaluate", "step", "save.rename"):
        killed = harness.make(tmp_path / point, [*SPLIT, "trainer.keep_boundaries=true"])
        outcome = harness.run(killed, kill_at=(point, draw.randint(2, 4)))
        assert outcome.codes == [harness.KILLED]
        assert harness.run(killed).codes == [0]
        assert files(killed) == files(done), point
        assert harness.results(killed) == harness.results(done)


def test_what_was_stored_after_the_checkpoint_is_taken_away(done: Path, tmp_path: Path) -> None:
    killed = harness.make(tmp_path / "run", SPLIT)
    assert harness.run(killed, kill_at=("evaluated", 3)).codes == [harness.KILLED]  # experience 1 is evaluated
    assert set(files(killed)) == {"untrained.npz", "e000.npz", "e001.npz"}
    assert harness.run(killed, kill_at=("evaluate", 1)).codes == [harness.KILLED]  # before it is evaluated again
    assert set(files(killed)) == {"untrained.npz", "e000.npz"}


def test_a_fork_has_the_answers_of_its_past(done: Path, tmp_path: Path) -> None:
    overrides = [*SPLIT, "trainer.keep_boundaries=true", "trainer.progress=none", "trainer.accelerator=cpu"]
    fork = continuation.fork(done, 2, compose([*overrides, f"run.dir={tmp_path / 'fork'}"]), ["test"])
    assert set(files(fork)) == {"untrained.npz", "e000.npz"}  # e001 comes after the checkpoint
    assert harness.run(fork).codes == [0]
    assert files(fork) == files(done)


@pytest.mark.parametrize("target", list(OVER))
def test_two_ranks_store_what_one_stores(target: str, tmp_path: Path) -> None:
    """With weights that hardly move: equal weights, equal answers, to the last bit of every confidence."""
    still = ["optimizer=sgd", "optimizer.lr=1e-30", "trainer.clip=null", "eval.batch_size=50"]
    one, two = (harness.make(tmp_path / name, [*OVER[target], *still]) for name in ("one", "two"))
    for run_dir, world in ((one, 1), (two, 2)):
        outcome = harness.run(run_dir, world=world)
        assert outcome.codes == [0] * world, outcome.output
    assert files(one) == files(two)
    first, second = harness.results(one), harness.results(two)
    for key in ("matrix", "baseline", "summary", "reasons"):
        assert first[key] == second[key], key


def test_the_same_weights_with_and_without_storing(done: Path, tmp_path: Path) -> None:
    none = ran(tmp_path / "none", "eval.store=none", "trainer.keep_boundaries=true")
    assert not (none / store.FOLDER).exists()
    assert harness.results(none) == harness.results(done)
    counts = ran(tmp_path / "counts", "eval.store=counts")
    assert harness.results(counts) == harness.results(done)
    assert set(files(counts)) == set(files(done))


def test_a_run_that_says_nothing_of_its_predictions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As runs made before there were any: what can be had is had, for the rest there is a reason."""
    old = ran(tmp_path / "old", "eval.store=none", "eval.every=0")
    results = json.loads((old / "results.json").read_text())
    kept = {key: value for key, value in results.items() if key not in ("new_classes", "stored_bytes_by_kind")}
    (old / "results.json").write_text(json.dumps(kept))
    lines = (old / "metrics.jsonl").read_text()
    (old / "metrics.jsonl").write_text(re.sub(r',? *"new_classes": \w+', "", lines))
    (old / "timings.jsonl").unlink()
    (found,) = metrics(str(old), capsys=capsys)
    assert found["values"]["ACC"] == results["summary"]["ACC"]
    assert found["values"]["FWT"] is not None  # nothing says that it is undefined
    for name, why in {
        "ece": "stored no predictions",
        "AAA": "eval.every > 0",
        "intransigence": "--reference RUN",
        "stored_bytes_by_kind": "older than that",
        "seconds_by_phase": "timings.jsonl",
    }.items():
        assert found["values"][name] is None
        assert why in found["reasons"][name]


def test_metrics_are_kept_beside_results(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (done / "results.json").read_bytes()
    (found,) = metrics(str(done), capsys=capsys)
    assert not (done / "metrics.json").exists()
    assert found["values"]["ACC_masked"] > found["values"]["ACC"]
    assert found["values"]["FWT"] is None
    metrics(str(done), "--add", "ece,confusion", capsys=capsys)
    metrics(str(done), "--add", "ece", "--set", "ece.bins=5", capsys=capsys)
    (compared,) = metrics(str(done), "--reference", str(done), "--add", "intransigence", capsys=capsys)
    assert compared["values"] == {"intransigence": 0.0}
    kept = json.loads((done / "metrics.json").read_text())
    assert set(kept["values"]) == {"ece", "confusion", "ece(bins=5)", "intransigence"}
    assert kept["references"] == {"intransigence": [str(done)]}
    (again,) = metrics(str(done), capsys=capsys)
    assert again["values"]["intransigence"] == 0.0
    assert "intransigence" not in again["reasons"]
    assert (done / "results.json").read_bytes() == before
    (done / "metrics.json").unlink()


def test_an_unfinished_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = harness.make(tmp_path / "run", SPLIT)
    assert harness.run(run, kill_at=("finish", 3)).codes == [harness.KILLED]
    (found,) = metrics(str(run), capsys=capsys)
    known, _ = evidence(run)
    assert known.n == 2
    assert found["values"]["ACC"] == average(known)
    assert found["values"]["ACC_masked"] is not None
    assert "not done" in found["reasons"]["parameters"]
    metrics(str(run), "--add", "ece", capsys=capsys)
    assert harness.run(run).codes == [0]
    (later,) = metrics(str(run), capsys=capsys)
    assert later["values"]["ece"] != json.loads((run / "metrics.json").read_text())["values"]["ece"]


def test_what_was_spent(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = json.loads((done / "results.json").read_text())
    (found,) = metrics(str(done), capsys=capsys)
    values = found["values"]
    assert values["parameters"] == values["trainable_parameters"] == results["parameters"]
    assert values["stored_bytes_by_kind"] == {}
    assert set(values["seconds_by_phase"]) == {"train", "finish", "evaluate", "checkpoint"}
    assert values["samples_per_second"] > 0


@pytest.mark.parametrize(
    ("argv", "problem"),
    [
        (["--add", "confusoin"], "Did you mean 'confusion'?"),
        (["--set", "ece.bins"], "NAME.OPTION=VALUE is needed"),
        (["--set", "eec.bins=1"], "there is no metric 'eec'"),
        (["--add", "ece", "--set", "ece.bin=3"], "has no option 'bin'"),
        (["--add", "ece", "--set", "ece.bins=x"], "bins"),
        (["--add", "ece", "--set", "ece.bins=0"], "at least 1 is needed"),
        (["--add", "ece", "--set", "ece.bins=["], "not YAML"),
        (["--reference", "nowhere"], "nowhere"),
    ],
)
def test_refused(argv: list[str], problem: str, done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["metrics", str(done), *argv]) == 2
    assert problem in capsys.readouterr().err


def test_listed_with_what_they_need(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "metrics"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["name", "family", "needs"]
    assert any(line.split()[:4] == ["ece", "predictions", "matrix,", "predictions"] for line in lines)


def test_looks_are_read_back(tmp_path: Path) -> None:
    watched, unwatched = ran(tmp_path / "run", "eval.every=3"), ran(tmp_path / "other", "eval.every=0")
    known, _ = evidence(watched)
    assert known.looks
    for found in (checkpoint.newest(watched / "checkpoints"), checkpoint.newest(unwatched / "checkpoints")):
        assert found is not None  # looks are in the record: they make no checkpoint larger
        assert "looks" not in found.state["progress"]
        assert sum(len(row) for row in found.state["progress"]["matrix"]) == 2 * 3
    results = json.loads((watched / "results.json").read_text())
    assert results["summary"]["AAA"] is not None
    assert torch.tensor(results["summary"]["stability_gap"]) >= 0


def test_a_value_that_is_not_finite_is_none_in_the_matrix_as_in_the_record(monkeypatch: pytest.MonkeyPatch) -> None:
    one = cases.built("naive")
    whole = measures.values
    monkeypatch.setattr(measures, "values", lambda *given: {**whole(*given), "accuracy": math.inf})
    results = cases.run(one)
    assert results["matrix"] == [[None] * 3] * 3
    assert "was not measured" in results["reasons"]["ACC"]
