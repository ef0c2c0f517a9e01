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
    assert main(["runs", "--sort", "-seed", "--where", "seed>0", "--columns", "run,seed,ACC,average_incremental"]) == 0
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["run", "seed", "ACC", "average_incremental"], ["s1", "1", "0.7000", "-"], ["s2", "2", "0.7000", "-"],
    ]  # fmt: skip
    assert main(["runs", "--where", "sede=1"]) == 2
    assert "Did you mean 'seed'" in capsys.readouterr().err
    for wrong in ("run,strateg", "", "run,"):
        assert main(["runs", "--columns", wrong]) == 2
        assert "no run has a '" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["runs", "compare", "report", "rm", "jobs"])
def test_places_that_hold_no_run(capsys, command):
    Path("empty").mkdir()
    Path("file").write_text("mine")
    assert main([command, "empty", "file", "nowhere"]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "error: empty: is no run directory and holds none",
        "error: file: is a file; a run is a folder",
        "error: nowhere: there is no such folder",
    ]


def test_the_dashboard_waits_for_runs_but_not_in_a_file(capsys):
    Path("file").write_text("mine")
    assert main(["dashboard", "file"]) == 2
    assert capsys.readouterr().err == "error: file: is a file; a run is a folder\n"


def test_a_folder_that_may_not_be_read_says_so(capsys, monkeypatch):
    """Root may read all, so the system's refusal is played."""
    Path("closed").mkdir()

    def refused(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("os.listdir", refused)
    monkeypatch.setattr("os.scandir", refused)
    assert main(["runs", "closed"]) == 2
    assert capsys.readouterr().err == "error: closed: cannot be read: Permission denied\n"


def test_a_page_is_not_written_where_a_file_is(capsys, make):  # noqa: F811
    run = make("a")
    Path("file").write_text("mine")
    for target in ("file", "file/below", "file/it.html"):
        assert main(["report", str(run), "--output", target]) == 2
        assert capsys.readouterr().err.startswith("error: file")
    Path("folder.html").mkdir()
    assert main(["report", str(run), "--output", "folder.html"]) == 2
    assert Path("file").read_text() == "mine"


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "/x", "a/b"])
def test_the_name_of_a_sweep_is_that_of_one_folder(capsys, name):
    assert main(["sweep", "--strategy", "naive", "--dry-run", "--name", name]) == 2
    assert capsys.readouterr().err == f"error: --name {name!r}: the name of one folder, which is made in run.root\n"


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


def test_compare_and_report_of_some(capsys, make):  # noqa: F811
    for seed in range(3):
        make(f"runs/s{seed}", seed=seed)
    assert main(["compare", "runs", "--where", "seed<2", "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["rows"][0]["n"] == 2
    assert main(["compare", "runs", "--where", "sede=1"]) == 2
    assert "Did you mean 'seed'" in capsys.readouterr().err
    assert main(["report", "runs", "-o", "pages"]) == 0
    assert Path("pages/index.html").is_file()
