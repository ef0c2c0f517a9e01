"""Each mirror by itself, on a few lines."""

from __future__ import annotations

import csv
import json
import math
import shutil
import sys
import time
import types
from pathlib import Path
from typing import Any

import pytest

from clplat import checkpoint, registry
from clplat.build import build_mirrors
from clplat.errors import MissingError
from clplat.tracking.directory import sweep, write_status
from clplat.tracking.mirrors import wandb as weights_and_biases
from clplat.tracking.mirrors.csv import CsvMirror
from clplat.tracking.mirrors.tensorboard import TensorBoardMirror
from clplat.tracking.mirrors.wandb import WandbMirror
from clplat.tracking.names import cells, matrix_row, outcome, scalars
from clplat.tracking.record import Mirror, Record
from clplat.tracking.record import lines as recorded
from tests.tracking.conftest import CONFIG, LINES, RESULTS, evaluation, record, train
from tests.tracking.wandb_file import BLOCK, WandbFile, _records, offline_runs


def play(mirror: Mirror, run_dir: Path, lines: list[dict[str, Any]], results: Any = None, before: int = 0) -> None:
    """What a run does to a mirror; ``before`` lines are in the record when it starts."""
    mirror.start(run_dir, CONFIG, lines[:before])
    for line in lines[before:]:
        mirror.log(line)
    record(run_dir, lines)
    if results is not None:
        (run_dir / "results.json").write_text(json.dumps(results), encoding="utf-8")
    mirror.finish(results)


# --- scalars ---------------------------------------------------------------------------------------------------------


def test_scalars_of_training():
    line = train(1, 20, 0.5)
    line["terms"]["penalty"] = 2
    assert scalars(line) == {"train/loss": 0.5, "train/penalty": 2.0}
    assert scalars(train(1, 20, 0.5, phase="retrain")) == {"train/retrain/loss": 0.5}
    assert scalars(train(1, 20, None)) == {}


def test_scalars_of_the_optimiser_and_of_the_machine():
    line = {**train(1, 20, 0.5), "lr": [0.1], "grad_norm": 2.0, "use": {"cpu": [0.5], "memory_bytes": [8.0]}}
    one = {"optim/lr": 0.1, "optim/grad_norm": 2.0, "system/cpu": 0.5, "system/memory_bytes": 8.0}
    assert scalars(line) == {"train/loss": 0.5, **one}
    line |= {"lr": [0.1, 0.2], "grad_norm": None, "use": {"cpu": [0.5, None, 1.0]}}
    several = {"optim/lr/0": 0.1, "optim/lr/1": 0.2, "system/cpu/0": 0.5, "system/cpu/2": 1.0}
    assert scalars(line) == {"train/loss": 0.5, **several}


def test_scalars_of_an_evaluation():
    assert scalars(LINES[0]) == {"eval/task/0": 0.1, "eval/task/1": 0.125, "eval/loss/0": 0.9, "eval/loss/1": 0.875}
    assert scalars(LINES[3]) == {
        "eval/task/0": 0.9,
        "eval/loss/0": pytest.approx(0.1),
        "eval/ACC": 0.9,
        "eval/learning_accuracy": 0.9,
        "eval/average_seen": 0.9,
    }
    found = scalars(LINES[-1])
    assert all(type(value) is float and math.isfinite(value) for value in found.values())
    assert (found["eval/ACC"], found["eval/forgetting"], found["eval/BWT"], found["eval/FWT"]) == (0.7, 0.3, -0.3, 0.05)


def test_scalars_of_any_metric_and_of_other_lines():
    line = {"event": "evaluate", "experience": 0, "step": 3, "nll": [1.5, None], "test_loss": [1.0, None]}
    assert matrix_row(line) == [1.5, None]
    assert scalars(line) == {"eval/task/0": 1.5, "eval/loss/0": 1.0}
    assert scalars({"event": "other", "experience": 0, "step": 3}) == {}


def test_cells():
    rows = [(line["experience"], matrix_row(line)) for line in LINES if line["event"] == "evaluate"]
    assert cells(rows) == [(-1, 0, 0.1), (-1, 1, 0.125), (0, 0, 0.9), (1, 0, 0.6), (1, 1, 0.8)]


def test_the_row_of_a_stream_whose_tasks_return():
    line = {"event": "evaluate", "experience": -1, "step": 0, "tests": [0, 1, 0], "accuracy": [0.1, 0.2]}
    assert matrix_row(line) == [0.1, 0.2]


def test_the_outcome_of_a_run(run_dir):
    record(run_dir, LINES)
    results = {**RESULTS, "parameters": 12, "stored_bytes_by_kind": {"samples": 3}, "weights_sha256": "ab"}
    (run_dir / "results.json").write_text(json.dumps(results), encoding="utf-8")
    added = {"evaluations": 2, "values": {"ece": 0.25, "confusion": [[1]]}, "reasons": {}, "references": {}}
    (run_dir / "metrics.json").write_text(json.dumps(added), encoding="utf-8")
    timings = [{"event": "phase", "phase": "train", "samples": 30, "seconds": 2.0}]
    timings += [{"event": "evaluate", "seconds": 0.5}]
    (run_dir / "timings.jsonl").write_text("".join(json.dumps(line) + "\n" for line in timings), encoding="utf-8")
    (run_dir / "probes").mkdir()
    (run_dir / "probes" / "gdv.json").write_text('{"checkpoint": "c", "gdv": -0.5, "layers": [1]}', encoding="utf-8")
    (run_dir / "probes" / "damaged.json").write_text("{", encoding="utf-8")
    assert outcome(run_dir) == {
        "status": "done",
        "metric": "accuracy",
        "weights_sha256": "ab",
        "steps": 8,
        "seconds": 1.5,
        "ACC": 0.7,
        "forgetting": 0.3,
        "BWT": -0.3,
        "FWT": 0.05,
        "learning_accuracy": 0.85,
        "parameters": 12,
        "stored_bytes_by_kind/samples": 3,
        "seconds_by_phase/train": 2.0,
        "seconds_by_phase/evaluate": 0.5,
        "seconds_by_phase/checkpoint": 0,
        "samples_per_second": 15.0,
        "ece": 0.25,
        "probe/gdv/gdv": -0.5,
    }


# --- the registry ----------------------------------------------------------------------------------------------------


def test_every_option_is_documented():
    assert set(registry.names("logger")) >= {"none", "wandb", "csv", "tensorboard"}
    for entry in registry.entries("logger").values():
        assert entry.summary
        assert all(option.doc and not option.required for option in entry.options.values())
    assert list(registry.find("logger", "wandb").options) == [
        "project", "entity", "mode", "group", "tags", "artifacts",
    ]  # fmt: skip


def test_a_missing_package_is_told_before_the_run(monkeypatch):
    pytest.importorskip("torch")
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(MissingError, match="pip install tensorboard"):
        build_mirrors({"name": "tensorboard"})
    monkeypatch.setattr(weights_and_biases.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingError, match="pip install wandb"):
        build_mirrors({"name": "csv+wandb"})


# --- W&B -------------------------------------------------------------------------------------------------------------


def matrix(run: WandbFile, row: int) -> list[list[float]]:
    table = run.media(run.history[row]["eval/matrix"])
    assert table["columns"] == ["after", "on", "value"]
    return table["data"]


def play_wandb(mirror: WandbMirror, run_dir: Path, *args: Any, **kwargs: Any) -> None:
    """Like play(), and as at the end of a process: all is on disk then."""
    import wandb

    if list(run_dir.glob("wandb/offline-run-*")):
        time.sleep(1.0)  # the name of a run's folder has whole seconds
    play(mirror, run_dir, *args, **kwargs)
    wandb.teardown()


def test_wandb_offline(run_dir, nobody, capfd):
    mirror = WandbMirror(tags=("a", "b"))
    assert not isinstance(vars(weights_and_biases).get("wandb"), types.ModuleType)
    play_wandb(mirror, run_dir, LINES, RESULTS)
    assert capfd.readouterr() == ("", "")
    (run,) = offline_runs(run_dir)
    assert (run.run.project, run.run.display_name, run.run.job_type) == ("clplat", "some-run", "train")
    assert (run.run.run_group, list(run.run.tags)) == ("ewc-mlp-permuted-digits", ["a", "b"])
    assert run.run.run_id == (run_dir / "wandb" / "id").read_text().strip()
    assert {key: run.config[key] for key in CONFIG} == CONFIG
    over_steps = dict.fromkeys(("train/*", "optim/*", "system/*"), "step")
    assert run.axes == {"experience": "", "step": "", **over_steps, "eval/*": "experience"}
    assert run.series("train/loss", "step") == [(2, 2.0), (6, 1.5), (8, 0.25)]
    assert run.series("optim/lr", "step") == [(6, 0.125)]
    assert run.series("optim/grad_norm", "step") == [(6, 3.0)]
    assert run.series("system/cpu", "step") == [(6, 0.75)]
    assert run.series("eval/task/0", "experience") == [(-1, 0.1), (0, 0.9), (1, 0.6)]
    assert run.series("eval/task/1", "experience") == [(-1, 0.125), (1, 0.8)]
    assert run.series("eval/ACC", "step") == [(4, 0.9), (8, 0.7)]
    assert run.series("eval/forgetting", "experience") == [(1, 0.3)]
    # Line 2 has nothing to show; W&B's own step is the number of the line all the same.
    assert [row["_step"] for row in run.history] == [0, 1, 3, 4, 5, 6, 7]
    assert all({"experience", "step"} <= set(row) for row in run.history)
    assert matrix(run, 0) == [[-1, 0, 0.1], [-1, 1, 0.125]]
    assert matrix(run, 5) == [[-1, 0, 0.1], [-1, 1, 0.125], [0, 0, 0.9], [1, 0, 0.6], [1, 1, 0.8]]
    figure = run.media(run.history[-1]["eval/heatmap"])
    assert figure["data"][0]["z"][2] == [0.6, 0.8]
    curves = run.media(run.history[-1]["eval/curves"])
    assert [trace["y"] for trace in curves["data"]] == [[0.1, 0.9, 0.6], [0.125, None, 0.8]]
    assert (run.summary["ACC"], run.summary["steps"], run.summary["eval/ACC"]) == (0.7, 8, 0.7)
    assert "average_incremental" not in run.summary
    assert run.exit_code == 0
    assert not {"environment", "stats", "output", "output_raw"} & set(run.kinds)


def test_wandb_goes_on_with_the_same_id_and_the_whole_matrix(run_dir, nobody):
    write_status(run_dir, "preempted")
    play_wandb(WandbMirror(project="mine", group="g"), run_dir, LINES[:5])
    play_wandb(WandbMirror(project="mine", group="g"), run_dir, LINES, RESULTS, before=4)
    first, second = offline_runs(run_dir)
    assert first.run.run_id == second.run.run_id
    assert (second.run.project, second.run.run_group) == ("mine", "g")
    assert first.exit_code == 75
    assert "preempting" in first.kinds
    assert [row["_step"] for row in first.history] == [0, 1, 3, 4]
    # The newest holds all, once: nothing depends on what a killed run had brought to disk.
    assert [row["_step"] for row in second.history] == [0, 1, 3, 4, 5, 6, 7]
    assert second.series("eval/task/0", "experience") == [(-1, 0.1), (0, 0.9), (1, 0.6)]
    assert ["eval/matrix" in row for row in second.history] == [False] * 5 + [True, False]
    assert len(matrix(second, -2)) == 5


def test_wandb_table_of_a_long_stream_comes_at_the_end(run_dir, nobody, monkeypatch):
    monkeypatch.setattr(weights_and_biases, "TABLE_EACH", 1)
    write_status(run_dir, "failed")
    play_wandb(WandbMirror(), run_dir, LINES)
    play_wandb(WandbMirror(), run_dir, LINES, RESULTS, before=6)
    failed, done = offline_runs(run_dir)
    assert failed.exit_code == 1
    assert not any("eval/matrix" in row for row in failed.history)
    assert ["eval/matrix" in row for row in done.history] == [False] * 6 + [True]
    assert len(matrix(done, -1)) == 5


def test_wandb_shows_a_server_only_what_it_does_not_have(run_dir, nobody, monkeypatch):
    import wandb

    monkeypatch.setattr(wandb.Run, "starting_step", 5)  # the killed run had sent lines 0 to 4
    play_wandb(WandbMirror(), run_dir, LINES, RESULTS, before=3)
    (run,) = offline_runs(run_dir)
    assert [row["_step"] for row in run.history] == [5, 6, 7]
    assert len(matrix(run, 1)) == 5


def test_wandb_without_network_goes_on_offline(run_dir, nobody, monkeypatch, capfd):
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.setattr(weights_and_biases, "START_TIMEOUT", 1.0)
    play_wandb(WandbMirror(), run_dir, LINES, RESULTS)
    (run,) = offline_runs(run_dir)
    assert run.series("eval/ACC", "experience") == [(0, 0.9), (1, 0.7)]
    err = capfd.readouterr().err.splitlines()
    assert len(err) == 1
    assert err[0].startswith("W&B cannot be reached, going on offline: ")


def test_wandb_modes(run_dir, nobody, monkeypatch):
    with pytest.raises(MissingError, match="wandb login"):
        WandbMirror(mode="online").start(run_dir, CONFIG, [])
    monkeypatch.setenv("WANDB_MODE", "online")
    with pytest.raises(MissingError, match="WANDB_API_KEY"):
        WandbMirror().start(run_dir, CONFIG, [])
    monkeypatch.setenv("WANDB_MODE", "disabled")
    play_wandb(WandbMirror(), run_dir, LINES, RESULTS)
    assert not list(run_dir.glob("wandb/*"))
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_MODE", "offline")
    play_wandb(WandbMirror(), run_dir, LINES, RESULTS)
    assert len(offline_runs(run_dir)) == 1


@pytest.mark.parametrize("named", [True, False])
def test_an_api_key_in_netrc_is_found(tmp_path, nobody, monkeypatch, named):
    import wandb

    settings = wandb.Settings(base_url="https://wandb.example.org")
    assert not weights_and_biases._has_key(settings)
    path = tmp_path / ("elsewhere" if named else ".netrc")
    path.write_text(f"machine wandb.example.org login user password {'0' * 40}\n")
    path.chmod(0o600)
    if named:
        monkeypatch.setenv("NETRC", str(path))
    assert weights_and_biases._has_key(settings)
    assert not weights_and_biases._has_key(wandb.Settings(base_url="https://other.example.org"))


def test_the_reader_joins_records_over_blocks_and_stops_where_the_file_is_cut():
    def chunk(kind: int, data: bytes) -> bytes:
        return b"\0" * 4 + len(data).to_bytes(2, "little") + bytes([kind]) + data

    head = b":W&B\xe1\xbe\x00"
    first = BLOCK - 7 - 7 - 7 - 2 - 3  # leaves 3 bytes of the first block, too short for a header
    content = head + chunk(1, b"ab") + chunk(2, b"x" * first) + b"\0" * 3 + chunk(3, b"y" * (BLOCK - 7))
    content += chunk(4, b"z") + chunk(1, b"whole")
    assert list(_records(content)) == [b"ab", b"x" * first + b"y" * (BLOCK - 7) + b"z", b"whole"]
    assert list(_records(content[:-1]))[-1].endswith(b"z")
    with pytest.raises(ValueError, match="not a"):
        list(_records(b"something else"))


def test_wandb_groups_the_runs_of_a_sweep(tmp_path, nobody):
    run_dir = tmp_path / "mine" / "select" / "a-run"
    run_dir.mkdir(parents=True)
    (run_dir / "command.txt").write_text("clplat sweep --name mine --seed 0,1\n", encoding="utf-8")
    play_wandb(WandbMirror(), run_dir, LINES, RESULTS)
    assert offline_runs(run_dir)[0].run.run_group == "mine/select"
    assert sweep(run_dir.parent) is None


def test_wandb_sends_the_last_whole_checkpoint_where_asked(run_dir, nobody):
    torch = pytest.importorskip("torch")
    for number in range(3):
        checkpoint.save(run_dir / "checkpoints", {"x": torch.zeros(1)}, experience=number, marker="evaluate", keep=3)
    damaged = run_dir / "checkpoints" / "00000003-e002-evaluate" / "state.pt"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    play_wandb(WandbMirror(artifacts=True), run_dir, LINES, RESULTS)
    (run,) = offline_runs(run_dir)
    (sent,) = [one for one in run.artifacts if one.type == "model"]  # tables are artifacts as well
    assert (sent.name, json.loads(sent.metadata)) == (
        f"checkpoint-{run.run.run_id}", {"checkpoint": "00000002-e001-evaluate"},
    )  # fmt: skip
    assert {entry.path for entry in sent.manifest.contents} == {"manifest.json", "state.pt"}


def test_the_id_in_wandb_follows_the_history(run_dir, tmp_path):
    (run_dir / "history.jsonl").write_text('{"event": "start", "time": 1.5}\n{"event": "end"}\n', encoding="utf-8")
    copy = tmp_path / "copy"
    shutil.copytree(run_dir, copy)
    first = weights_and_biases.run_id(run_dir)
    assert first == weights_and_biases.run_id(run_dir) == weights_and_biases.run_id(copy)
    other = tmp_path / "other"
    other.mkdir()
    assert weights_and_biases.run_id(other) != first


# --- CSV -------------------------------------------------------------------------------------------------------------


def table(path: Path) -> list[tuple[int, int, str, float]]:
    with open(path, encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["experience", "step", "name", "value"]
    return [(int(experience), int(step), name, float(value)) for experience, step, name, value in rows]


def expected(*kinds: str) -> list[tuple[int, int, str, float]]:
    return [
        (line["experience"], line["step"], name, value)
        for line in LINES
        for name, value in scalars(line).items()
        if name.startswith(kinds)
    ]


def test_csv(run_dir):
    play(CsvMirror(), run_dir, LINES, RESULTS)
    assert table(run_dir / "csv" / "train.csv") == expected("train", "optim", "system")
    assert table(run_dir / "csv" / "eval.csv") == expected("eval")


def test_csv_has_nothing_twice_when_the_run_goes_on(run_dir):
    play(CsvMirror(), run_dir, LINES)
    play(CsvMirror(), run_dir, LINES, RESULTS, before=3)
    assert table(run_dir / "csv" / "train.csv") == expected("train", "optim", "system")
    assert table(run_dir / "csv" / "eval.csv") == expected("eval")


def test_csv_is_complete_while_the_run_goes_on(run_dir):
    mirror = CsvMirror()
    mirror.start(run_dir, CONFIG, [])
    mirror.log(LINES[0])
    assert len(table(run_dir / "csv" / "eval.csv")) == 4
    mirror.finish(None)
    mirror.finish(None)


# --- TensorBoard -----------------------------------------------------------------------------------------------------


def events(run_dir: Path) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard shows of a run."""
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    shown = accumulators.EventAccumulator(str(run_dir / "tensorboard"), purge_orphaned_data=True)
    shown.Reload()
    return {tag: [(e.step, e.value) for e in shown.Scalars(tag)] for tag in shown.Tags()["scalars"]}


def check_events(found: dict[str, list[tuple[int, float]]]) -> None:
    wanted: dict[str, list[Any]] = {}
    for line in LINES:
        for name, value in scalars(line).items():
            wanted.setdefault(name, []).append((line["step"], pytest.approx(value)))
    assert {name: values for name, values in found.items() if name != "experience"} == wanted


def test_tensorboard(run_dir):
    pytest.importorskip("tensorboard")
    play(TensorBoardMirror(), run_dir, LINES, RESULTS)
    found = events(run_dir)
    check_events(found)
    assert dict(found["experience"])[8] == 1


@pytest.mark.parametrize("before", range(len(LINES) + 1))
def test_tensorboard_shows_nothing_twice_when_the_run_goes_on(run_dir, before):
    pytest.importorskip("tensorboard")
    play(TensorBoardMirror(), run_dir, LINES)
    play(TensorBoardMirror(), run_dir, LINES, RESULTS, before=before)
    check_events(events(run_dir))


# --- the record ------------------------------------------------------------------------------------------------------


class Failing(CsvMirror):
    """Raises in one of its methods."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.where = where

    def start(self, *args: Any) -> None:
        self.fail("start")

    def log(self, *args: Any) -> None:
        self.fail("log")

    def finish(self, *args: Any) -> None:
        self.fail("finish")

    def fail(self, here: str) -> None:
        if here == self.where:
            raise OSError("no space left on the logger's disk")


@pytest.mark.parametrize("where", ["start", "log", "finish"])
def test_a_failing_mirror_is_told_once_and_the_run_goes_on(tmp_path, capsys, where):
    kept = Record(tmp_path, [Failing(where), CsvMirror()])
    kept.begin({}, 0.0, CONFIG)
    for line in LINES:
        kept.log(**line)
    kept.close(RESULTS)
    err = capsys.readouterr().err.splitlines()
    assert err == ["warning: Failing failed and is switched off: OSError: no space left on the logger's disk"]
    assert recorded(tmp_path, "metrics.jsonl") == LINES
    assert table(tmp_path / "csv" / "eval.csv") == expected("eval")


def test_a_record_that_is_cut_takes_the_mirrors_along(tmp_path):
    kept = Record(tmp_path, [CsvMirror()])
    kept.begin({}, 0.0, CONFIG)
    for line in LINES[:3]:
        kept.log(**line)
    lengths = kept.lengths()
    kept.log(**evaluation(0, 4, [0.5, 0.5]))  # beyond the checkpoint
    kept.close()
    kept = Record(tmp_path, [CsvMirror()])
    kept.begin(lengths, 0.0, CONFIG)
    for line in LINES[3:]:
        kept.log(**line)
    kept.close(RESULTS)
    assert table(tmp_path / "csv" / "eval.csv") == expected("eval")
