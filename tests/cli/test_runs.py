"""``clplat runs``, ``diff``, ``rm`` and ``compare`` through the front door."""

from __future__ import annotations

import fcntl
import json
from pathlib import Path

import pytest

from clplat import registry, signals
from clplat.cli import main
from tests.report.conftest import make  # noqa: F401 - a fixture


@pytest.fixture(autouse=True)
def surroundings(tmp_path, monkeypatch):
    monkeypatch.setattr(signals, "install", lambda: None)
    monkeypatch.setattr(registry, "_added", [])
    monkeypatch.chdir(tmp_path)


def test_runs_and_columns(capsys, make):  # noqa: F811
    for seed in range(3):
        make(f"runs/s{seed}", seed=seed)
    assert main(["runs", "--sort", "-seed", "--where", "seed>0", "--columns", "run,seed,ACC,nothing"]) == 0
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["run", "seed", "ACC", "nothing"], ["s1", "1", "0.7000", "-"], ["s2", "2", "0.7000", "-"],
    ]  # fmt: skip
    assert main(["runs", "--where", "sede=1"]) == 2
    assert "Did you mean 'seed'" in capsys.readouterr().err


def test_diff(capsys, make):  # noqa: F811
    make("a", strategy={"name": "naive"})
    make("b", seed=3)
    assert main(["diff", "a", "b"]) == 0
    out = capsys.readouterr().out
    assert {line.split()[0] for line in out.splitlines()} == {"key", "strategy.name", "strategy.importance", "seed"}
    assert main(["diff", "a", "a"]) == 0
    assert capsys.readouterr().out == "no difference\n"
    assert main(["diff", "a", "c"]) == 2


def test_rm_takes_only_what_is_ours(capsys, make):  # noqa: F811
    for name in ("runs/a", "runs/b", "runs/c"):
        make(name)
    Path("runs/b/notes.txt").write_text("mine")
    assert main(["rm", "runs"]) == 2  # nobody there to ask
    assert "say --yes" in capsys.readouterr().err
    with open("runs/c/.lock", "w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert main(["rm", "runs", "--yes"]) == 1
    captured = capsys.readouterr()
    assert "runs/c is being run; it stays" in captured.err
    assert "runs/b holds files that are not ours" in captured.err
    assert not Path("runs/a").exists()
    assert [path.name for path in Path("runs/b").iterdir()] == ["notes.txt"]
    assert Path("runs/c/config.yaml").exists()


def test_compare_says_what_it_left_out(capsys, make):  # noqa: F811
    make("runs/a")
    make("runs/b", seed=1)
    make("runs/c", status="failed", seed=2)
    assert main(["compare", "runs", "--format", "json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["rows"][0]["n"] == 2
    assert captured.err == "left out: c: failed (2 evaluated)\n"
