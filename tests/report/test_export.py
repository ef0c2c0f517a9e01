"""Values as CSV, figures as pictures, and runs in notebooks."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import plotly.graph_objects as go
import pytest

import clplat
from clplat.cli import main
from clplat.errors import MissingError
from clplat.metrics.evidence import NotMeasuredError
from clplat.notebook import Results
from clplat.report import export, tidy
from clplat.report.runs import load, load_runs
from clplat.report.views import VIEWS
from tests import browser
from tests.report.conftest import RESULTS, SUMMARY, Maker


def test_every_value_is_a_row(watched: Maker) -> None:
    run = load(watched("one", seed=3))
    rows = list(tidy.rows([run]))
    found = {(row["kind"], row["after"], row["on"], row["step"], row["metric"]): row["value"] for row in rows}
    assert len(found) == len(rows)
    assert found["evaluation", 0, 2, 0, "accuracy"] == 0.125
    assert found["evaluation", 2, 1, 8, "accuracy"] == 0.6
    assert ("evaluation", 1, 2, 4, "accuracy") not in found  # not measured
    assert found["look", 1, 1, 5, "accuracy"] == 0.3
    assert found["train", 1, None, 6, "penalty"] == 0.5
    assert ("train", 0, None, 2, "penalty") not in found
    assert found["cost", 2, None, 8, "stored_bytes"] == 100
    assert {k[4]: v for k, v in found.items() if k[0] == "summary"} == SUMMARY
    assert {(row["run"], row["strategy"], row["seed"], row["status"]) for row in rows} == {("one", "ewc", "3", "done")}


def test_csv_is_read_back_and_holds_no_formula(make: Maker, tmp_path: Path) -> None:
    make("runs/a", strategy={"name": '=HYPERLINK("x")'})
    make("runs/b, c", strategy={"name": 'a "b"\n'})
    whole = tmp_path / "out"
    assert main(["report", str(tmp_path / "runs"), "--text", "--data", "--output", str(whole)]) == 0
    rows = list(csv.DictReader((whole / "data.csv").open(encoding="utf-8", newline="")))
    assert {(row["run"], row["strategy"]) for row in rows} == {
        ("a", '\'=HYPERLINK("x")'),
        ("b, c", 'a "b"\ufffd'),
    }
    assert len(rows) == len(list(tidy.rows(load_runs([tmp_path / "runs"]))))


def test_a_file_of_others_is_not_written_over(make: Maker, tmp_path: Path, capsys) -> None:
    run = make("one")
    (tmp_path / "data.csv").write_text("mine")
    assert main(["report", str(run), "--text", "--data", "--output", str(tmp_path / "it.html")]) == 2
    assert (tmp_path / "data.csv").read_text() == "mine"


def test_names_of_pictures(watched: Maker, tmp_path: Path) -> None:
    for seed, name in enumerate(("a b", "a_b", "..|x")):
        watched(f"runs/{name}", seed=seed)
    names = list(export.drawn(load_runs([tmp_path])))
    assert {"matrix-a_b", "matrix-a_b-2", "matrix-.._x", "average"} <= set(names)
    assert len(names) == sum(3 if view.each else 1 for view in VIEWS)
    assert not [name for name in names if "/" in name]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "begins"), [("png", b"\x89PNG"), ("svg", b"<svg"), ("pdf", b"%PDF")])
def test_pictures(watched: Maker, tmp_path: Path, kind: str, begins: bytes) -> None:
    pytest.importorskip("kaleido", reason="kaleido is not installed")
    browser.executable()
    run = watched("one")
    assert main(["report", str(run), "--text", "--export", kind, "--output", str(tmp_path / "out")]) == 0
    found = {path.stem: path.read_bytes() for path in (tmp_path / "out" / "figures").iterdir()}
    assert set(found) == set(export.drawn([load(run)]))
    assert all(content.startswith(begins) for content in found.values())


def test_without_kaleido_it_says_what_to_install(make: Maker, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "kaleido", None)
    assert main(["report", str(make("one")), "--text", "--export", "png", "--output", str(tmp_path / "out")]) == 3
    assert "pip install 'clplat[figures]'" in capsys.readouterr().err


def test_runs_in_a_notebook(watched: Maker, tmp_path: Path) -> None:
    watched("runs/a")
    watched("runs/b", strategy={"name": "<b>er</b>"})
    runs = clplat.load_runs(tmp_path / "runs")
    assert [run.label for run in runs] == ["a", "b"]
    assert isinstance(runs[:1], clplat.Runs)
    assert [run.label for run in runs.where("strategy=ewc")] == ["a"]
    for shown in (runs._repr_html_(), runs[1]._repr_html_()):
        assert "&lt;b&gt;er&lt;/b&gt;" in shown
        assert "<b>" not in shown
    assert "0.7000" in Results(RESULTS)._repr_html_()


def test_figures_in_a_notebook(watched: Maker) -> None:
    run = load(watched("one"))
    figure = clplat.figures.matrix(run)
    assert isinstance(figure, go.Figure)
    assert list(figure.data[0].z[1]) == [0.9, None]
    assert len(clplat.figures.average([run]).data) == 1
    assert len(clplat.figures.average(run).data) == 1
    assert set(dir(clplat.figures)) == {view.key.replace("-", "_") for view in VIEWS}
    run.looks = []
    with pytest.raises(NotMeasuredError, match=r"eval\.every"):
        clplat.figures.gap(run)
    with pytest.raises(AttributeError, match="Did you mean 'matrix'"):
        clplat.figures.matrx  # noqa: B018


def test_pandas(watched: Maker, tmp_path: Path, monkeypatch) -> None:
    watched("a")
    watched("b", seed=1)
    runs = clplat.load_runs(tmp_path)
    pandas = pytest.importorskip("pandas", reason="pandas is not installed")
    table = runs.to_pandas()
    assert list(table["config.seed"]) == [0, 1]
    assert list(table["ACC"]) == [0.7, 0.7]
    long = runs.to_pandas(long=True)
    assert list(long.columns) == list(tidy.COLUMNS)
    assert len(long) == len(list(tidy.rows(runs)))
    assert pandas.api.types.is_float_dtype(long["value"])
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MissingError, match="clplat\\[notebook\\]"):
        runs.to_pandas()
