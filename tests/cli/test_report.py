"""``clplat report`` and how quickly things are listed."""

import json
import subprocess
import sys
import time
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


def test_one_run(capsys, make):  # noqa: F811
    make("runs/one")
    assert main(["report", "runs/one", "--text"]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[1].split()[:6] == ["one", "ewc", "mlp", "permuted-digits", "0", "0.7000"]
    assert out.endswith("after  1      2\nstart  0.100  0.125\n1      0.900\n2      0.600  0.800\n")
    assert not Path("report").exists()


def test_several_runs(capsys, make):  # noqa: F811
    for seed in range(2):
        make(f"runs/s{seed}", seed=seed)
    make("runs/later", status="running", time=time.time(), strategy="naive")
    assert main(["report", "runs"]) == 0
    out = capsys.readouterr().out
    assert "0.7000 ± 0.0000" in out
    assert "running (2 evaluated)" in out
    assert out.endswith("page: report/index.html\n")
    assert main(["report", "runs", "--text", "--output", "mine.html"]) == 0
    inside, beside = Path("mine.html").read_text(), Path("report/index.html").read_text()
    script = Path("report/plotly.min.js").read_text()
    assert script in inside
    assert script not in beside
    assert '<script src="plotly.min.js"></script>' in beside


def test_json_and_what_is_damaged(capsys, make):  # noqa: F811
    make("runs/a")
    (make("runs/b") / "results.json").write_text("{")
    assert main(["report", "runs", "--json"]) == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert [run["run"] for run in found["runs"]] == ["a", "b"]
    assert found["runs"][1]["matrix"] == [[0.9, None], [0.6, 0.8]]
    assert found["groups"][0]["summary"]["ACC"] == {"mean": 0.7, "std": None, "n": 1}
    first, second = captured.err.splitlines()
    assert first.startswith("warning: runs/b/results.json: ")
    assert second == "warning: b repeats a seed; the table over seeds counts it once"
    assert not Path("report").exists()


def test_files_of_others_are_never_touched(capsys, make):  # noqa: F811
    make("run")
    Path("index.html").write_text("mine")
    assert main(["report", "run", "--output", "."]) == 2
    assert "no report of clplat" in capsys.readouterr().err
    assert Path("index.html").read_text() == "mine"
    assert main(["report", "run", "--output", "index.html/below"]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_no_torch(make):  # noqa: F811
    code = "import sys; from clplat.cli import main; main(sys.argv[1:]); print('torch' in sys.modules, file=sys.stderr)"
    path = make("run")
    done = subprocess.run([sys.executable, "-c", code, "report", str(path)], capture_output=True, text=True, check=True)
    assert done.stderr == "False\n"


def test_a_list_of_many_entries_reads_no_source(capsys, tmp_path, monkeypatch):
    from clplat import signature

    folder = tmp_path / "conf" / "strategy"
    folder.mkdir(parents=True)
    for number in range(250):
        (folder / f"made-{number}.yaml").write_text(
            f"# Made number {number} (Nobody 2000).\n_target_: nowhere.module_{number}.Class\n_info_: {{family: a}}\n"
        )
    monkeypatch.setattr(signature, "read", lambda target: pytest.fail(f"{target} was read"))
    begun = time.process_time()
    assert main(["list", "strategies", "--config-dir", str(tmp_path / "conf")]) == 0
    assert time.process_time() - begun < 0.5  # a fifth of it
    out = capsys.readouterr().out
    assert "made-249" in out
    assert "Made number 249 (Nobody 2000)." in out
