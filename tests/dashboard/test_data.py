"""What the dashboard answers, without a server."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest

from clplat.dashboard import data, index, overlay
from clplat.dashboard.index import Index
from clplat.errors import UsageError
from clplat.report.runs import load
from clplat.report.statistics import estimate
from tests.report.conftest import LINES, Maker, make  # noqa: F401 - a fixture


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index, "PAUSE", 0.0)


def add(path: Path, *lines: object) -> None:
    with open(path / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)


def train(step: int, **terms: float) -> dict[str, object]:
    return {"event": "train", "experience": 0, "phase": "train", "step": step, "terms": terms}


def test_only_what_has_changed_is_sent_and_read(make, tmp_path, monkeypatch):  # noqa: F811
    make("runs/a")
    growing = make("runs/b", status="running", lines=LINES[:3])
    known = Index([tmp_path / "runs"])
    first = data.table(known)
    assert first["order"] == list(first["rows"]) == ["a", "b"]
    assert data.table(known, since=first["version"])["rows"] == {}
    lines = []
    monkeypatch.setattr(index, "load", lambda *a, **k: pytest.fail("a run was read from its beginning"))
    monkeypatch.setattr("clplat.report.parse._take_line", lambda run, line: lines.append(line))
    add(growing, LINES[3])
    second = data.table(known, since=first["version"])
    assert lines == LINES[3:]
    assert second["version"] > first["version"]
    assert list(second["rows"]) == ["b"]
    assert second["order"] == ["a", "b"]


def test_runs_come_go_and_are_cut(make, tmp_path):  # noqa: F811
    (tmp_path / "runs").mkdir()
    known = Index([tmp_path / "runs"])
    assert data.table(known)["order"] == []
    path = make("runs/a", status="running")
    first = data.table(known, columns=("ACC", "experiences", "steps"))
    assert first["rows"]["a"]["cells"] == [0.7, 2, 8]
    whole = (path / "metrics.jsonl").read_text().splitlines(keepends=True)
    (path / "metrics.jsonl").write_text("".join(whole[:3]))  # it goes on from a checkpoint
    assert data.table(known, columns=("ACC", "experiences", "steps"))["rows"]["a"]["cells"] == [0.9, 1, 4]
    shutil.rmtree(path)
    last = data.table(known, since=first["version"])
    assert (last["order"], last["rows"], last["total"]) == ([], {}, 0)
    with pytest.raises(KeyError):
        data.view(known, "overlay", ["a"])


def test_filters_and_orders_are_those_of_the_command(make, tmp_path):  # noqa: F811
    for seed in range(4):
        make(f"runs/s{seed}", seed=seed, strategy={"name": "ewc" if seed % 2 else "naive"})
    known = Index([tmp_path / "runs"])
    assert data.table(known, ["strategy=ewc", "seed>1"])["order"] == ["s3"]
    assert data.table(known, sort="-seed")["order"] == ["s0", "s1", "s2", "s3"]
    assert data.table(known)["keys"] == ["strategy"]
    with pytest.raises(UsageError, match="Did you mean 'strategy'"):
        data.table(known, ["stategy=ewc"])


def test_names_that_look_alike_are_two_runs(make, tmp_path):  # noqa: F811
    make("runs/a\x01")
    make("runs/a\x02")
    assert data.table(Index([tmp_path / "runs"]))["order"] == ["a\ufffd", "a\ufffd (2)"]


def test_memory_is_bounded(make, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(index, "WHOLE", 2)
    for seed in range(4):
        make(f"runs/s{seed}", seed=seed)
    known = Index([tmp_path / "runs"])
    known.refresh()
    assert [run.matrix for run in known.runs()] == [[[], []]] * 4
    assert not any("training" in vars(run) or run.results for run in known.runs())
    for label in ("s0", "s1", "s2", "s0", "s3"):
        (run,) = known.whole([label])
        assert run == load(tmp_path / "runs" / label)
    assert list(known._whole) == ["s0", "s3"]


def test_means_and_intervals_over_groups(make, tmp_path):  # noqa: F811
    values = {("ewc", 0): 0.9, ("ewc", 1): 0.7, ("ewc", 2): 0.5, ("naive", 0): 0.3}
    for (strategy, seed), value in values.items():
        lines = [{"event": "evaluate", "experience": 0, "step": 1, "accuracy": [value, None]}]
        make(f"runs/{strategy}{seed}", status="running", lines=lines, seed=seed, strategy={"name": strategy})
    known = Index([tmp_path / "runs"])
    (drawn,) = data.view(known, "overlay", ["ewc0", "ewc1", "ewc2", "naive0"], by="strategy")["figures"]
    band, ewc, naive = drawn["figure"]["data"]
    found = estimate([0.9, 0.7, 0.5])
    assert found.half is not None
    assert ewc["y"] == pytest.approx([found.mean])
    assert band["y"] == pytest.approx([found.mean + found.half, found.mean - found.half])
    assert [ewc["name"], naive["name"]] == ["strategy=ewc (n=3)", "strategy=naive (n=1)"]
    (reason,) = data.view(known, "overlay", ["ewc0"], by="nothing")["figures"]
    assert reason == {"run": None, "reason": "no run has a 'nothing' to group by"}


def test_terms_are_thinned_and_their_means_taken_where_runs_are(make, tmp_path):  # noqa: F811
    peak = 7_777
    lines = [train(step, loss=100.0 if step == peak else math.sin(step)) for step in range(1, 10_001)]
    make("runs/long", status="running", lines=lines)
    make("runs/short", status="running", lines=[train(step, loss=1.0, pull=2.0) for step in (1, 5_000)])
    known = Index([tmp_path / "runs"])
    answer = data.view(known, "training", ["long", "short"])
    assert (answer["terms"], answer["term"]) == (["loss", "pull"], "loss")
    long, short = answer["figures"][0]["figure"]["data"]
    assert len(long["x"]) <= 1001
    assert max(zip(long["y"], long["x"], strict=True)) == (100.0, peak)
    assert short["y"] == [1.0, 1.0]
    grouped = overlay.term(known.whole(["long", "short"]), "loss", "scenario")
    mean = grouped["data"][-1]
    assert len(mean["x"]) == overlay.GRID
    assert mean["name"] == "scenario=permuted-digits (n=1-2)"
    edge = max(grouped["data"][0]["x"])
    assert 4_900 < edge <= 5_000  # beyond that there is one run


def test_what_is_not_there_is_said(make, tmp_path):  # noqa: F811
    make("runs/a", status="created", lines=[])
    known = Index([tmp_path / "runs"])
    for key in ("overlay", "training", "average", "matrix"):
        (one,) = data.view(known, key, ["a"])["figures"]
        assert one.keys() == {"run", "reason"} or one["figure"]["data"] is not None
    assert data.view(known, "overlay", [])["figures"] == [{"run": None, "reason": "no run is picked or shown"}]


def test_a_figure_is_drawn_again_only_for_new_data(make, tmp_path):  # noqa: F811
    path = make("runs/a", status="running", lines=LINES[:3])
    make("runs/b")
    known = Index([tmp_path / "runs"])
    version = data.view(known, "overlay", ["a", "b"])["version"]
    assert data.view(known, "overlay", ["a", "b"], since=version)["figures"] is None
    add(path, LINES[3])
    assert data.view(known, "overlay", ["b"], since=version)["figures"] is None
    (drawn,) = data.view(known, "overlay", ["a", "b"], since=version)["figures"]
    assert drawn["figure"]["data"][0]["x"] == [1, 2]


def test_a_log_is_followed_by_whole_lines(make, tmp_path):  # noqa: F811
    path = make("runs/a") / "log.txt"
    known = Index([tmp_path / "runs"])
    assert data.log(known, "a") == {"run": "a", "name": "log.txt", "names": [], "text": "", "begin": 0, "end": 0}
    path.write_bytes(b"one\ntwo\rthree\x1b[0m\r\nha")
    first = data.log(known, "a")
    assert first["text"] == "one\ntwo\nthree\ufffd[0m\n"
    path.write_bytes(b"one\ntwo\rthree\x1b[0m\r\nhalf \xc3\xa9\n")
    assert data.log(known, "a", since=first["end"])["text"] == "half é\n"
    path.write_bytes(b"new\n")  # shorter than what was read: from the beginning
    assert data.log(known, "a", since=first["end"])["begin"] == 0
    path.write_bytes(b"x" * 99 + b"\n" * 200_000)
    assert len(data.log(known, "a", since=0)["text"]) == data.TAIL
    path.write_bytes(b"x" * 200_000)
    assert len(data.log(known, "a")["text"]) == data.TAIL


def test_a_directory_that_cannot_be_read_costs_nobody_else_a_place(make, tmp_path, monkeypatch):  # noqa: F811
    make("runs/a")
    make("runs/b")

    def broken(path: Path, **_: object) -> object:
        if path.name == "a":
            raise RuntimeError("whatever")
        return load(path)

    monkeypatch.setattr(index, "load", broken)
    rows = data.table(Index([tmp_path / "runs"]))["rows"]
    assert rows["a"]["problems"] == ["cannot be read: RuntimeError: whatever"]
    assert rows["b"]["cells"][0] == "b"
