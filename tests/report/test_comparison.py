"""Comparing, filtering and sorting runs."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest

from clplat.errors import UsageError
from clplat.report.comparison import Comparison, compare
from clplat.report.formats import FORMATS
from clplat.report.query import clause, query
from clplat.report.runs import RunData, load_runs
from tests.report.conftest import Maker

ACC = {"naive": (0.5, 0.6, 0.4), "ewc": (0.7, 0.7, 0.6), "er": (0.9, 0.8)}


@pytest.fixture
def runs(make: Maker, tmp_path: Path) -> list[RunData]:
    for strategy, values in ACC.items():
        for seed, acc in enumerate(values):
            path = make(f"{strategy}{seed}", strategy={"name": strategy}, seed=seed)
            results = json.loads((path / "results.json").read_text())
            results["summary"]["ACC"] = acc
            (path / "results.json").write_text(json.dumps(results))
    make("late", status="running", strategy={"name": "er"}, seed=2)
    return load_runs([tmp_path])


def test_sides_pairs_and_ranks(runs: list[RunData]) -> None:
    found = compare(runs)
    assert [side.name for side in found.sides] == ["er", "ewc", "naive"]
    assert found.baseline == "naive"
    er, ewc, naive = found.sides
    assert er.difference["ACC"].mean == pytest.approx((0.4 + 0.2) / 2)  # only seeds that both have
    assert er.p["ACC"] == (0.5, 0.5)
    assert ewc.p["ACC"] == (0.25, 0.5)
    assert naive.difference == {}
    assert [side.rank["ACC"] for side in found.sides] == [1, 2, 3]
    assert [line.split(":")[0] for line in found.left_out] == ["late"]
    assert found.varying == []


def test_forgetting_is_better_when_smaller(runs: list[RunData]) -> None:
    for run in runs:
        run.summary["forgetting"] = 1 - (run.summary["ACC"] or 0)
    assert [side.name for side in compare(runs, metrics=["forgetting"]).sides] == ["er", "ewc", "naive"]


def test_any_key_and_what_else_differs(runs: list[RunData]) -> None:
    found = compare(runs, by="seed", metrics=["ACC", "seconds"])
    assert {side.name for side in found.sides} == {"0", "1", "2"}
    assert found.baseline is None
    assert found.varying == ["strategy.name"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"by": "stratgy"}, "Did you mean 'strategy'"),
        ({"metrics": ["acc"]}, "--metric acc: no run has it"),
        ({"baseline": "si"}, "no run has strategy=si"),
    ],
)
def test_what_there_is_not_is_refused(runs: list[RunData], options: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        compare(runs, **options)


def test_nothing_done(make: Maker, tmp_path: Path) -> None:
    make("late", status="failed")
    with pytest.raises(UsageError, match="no run is done"):
        compare(load_runs([tmp_path]))


@pytest.fixture
def found(runs: list[RunData]) -> Comparison:
    runs[0].config["strategy"]["name"] = "e_r & 100%|"
    return compare(runs)


def test_formats(found: Comparison) -> None:
    rows = list(csv.DictReader(io.StringIO(FORMATS["csv"](found))))
    plain = json.loads(FORMATS["json"](found))["rows"]
    assert len(rows) == len(plain) == 4
    assert [float(row["mean"]) for row in rows] == [row["mean"] for row in plain]
    assert {row["strategy"] for row in rows} >= {"e_r & 100%|"}
    latex = FORMATS["latex"](found)
    assert r"e\_r \& 100\%|" in latex
    assert latex.count(r"\textbf") == 1
    assert latex.count(r"\\") == 5
    columns = {line.replace("\\|", "").count("|") for line in FORMATS["markdown"](found).splitlines()}
    assert len(columns) == 1
    assert FORMATS["text"](found).splitlines()[0].split()[0] == "strategy"


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        (["strategy=ewc"], {"ewc0", "ewc1", "ewc2"}),
        (["strategy!=ewc", "seed=1"], {"naive1", "er1"}),
        (["acc>=0.7", "strategy~e"], {"ewc0", "ewc1", "er0", "er1", "late"}),
        (["status=running"], {"late"}),
        (["optimizer.lr<0.01", "seed>1"], {"naive2", "ewc2", "late"}),
        (["backbone.hidden=8.0", "ACC<0.5"], {"naive2"}),
    ],
)
def test_where(runs: list[RunData], where: list[str], expected: set[str]) -> None:
    assert {run.label for run in query(runs, where)} == expected


def test_sort(runs: list[RunData]) -> None:
    assert [run.label for run in query(runs, ["status=done"], "ACC")][:2] == ["er0", "er1"]
    assert query(runs, ["status=done"], "-acc")[0].label == "naive2"
    names = [run.config["strategy"]["name"] for run in query(runs, sort="strategy")]
    assert names == sorted(names)


def test_words_that_are_no_condition(runs: list[RunData]) -> None:
    for words in ("", "ACC", "=3"):
        with pytest.raises(UsageError, match="expected KEY=VALUE"):
            clause(words)
    with pytest.raises(UsageError, match=r"no run has a 'strateg'\. Did you mean"):
        query(runs, ["strateg=ewc"])
