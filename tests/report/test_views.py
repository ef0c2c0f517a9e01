"""Every view by the data that it draws, and by its reason where there is none."""

from __future__ import annotations

import json
from pathlib import Path

import plotly.graph_objects as go
import pytest

from clplat.report.figures_compare import front
from clplat.report.runs import RunData, load, load_runs
from clplat.report.thin import thin
from clplat.report.views import VIEWS
from tests.report.conftest import Maker

BY_KEY = {view.key: view for view in VIEWS}


def draw(key: str, *runs: RunData) -> dict:
    figure = BY_KEY[key].figure(runs)
    assert isinstance(figure, dict), figure
    go.Figure(figure)  # raises where plotly knows no such key or value
    return figure


def named(figure: dict) -> dict[str, dict]:
    return {trace["name"]: trace for trace in figure["data"]}


@pytest.fixture
def run(watched: Maker) -> RunData:
    return load(watched("one"))


@pytest.mark.parametrize("view", VIEWS, ids=lambda view: view.key)
def test_all_views_have_a_figure_of_runs_that_recorded_all(watched: Maker, tmp_path: Path, view) -> None:
    watched("a")
    watched("b", seed=1)
    runs = load_runs([tmp_path])
    assert draw(view.key, *(runs[:1] if view.each else runs))["data"]


@pytest.mark.parametrize("view", VIEWS, ids=lambda view: view.key)
def test_all_views_say_why_there_is_none(make: Maker, view) -> None:
    reason = view.figure([load(make("one", status="created", lines=[]))])
    assert isinstance(reason, str)
    assert len(reason.splitlines()) == 1
    assert "cannot be drawn" not in reason


def test_what_fails_is_told_and_stays_with_its_view(run: RunData) -> None:
    run.matrix = 7  # type: ignore[assignment]
    assert BY_KEY["matrix"].figure([run]) == "cannot be drawn: TypeError: 'int' object is not iterable"


def test_what_went_on_around_training(run: RunData) -> None:
    figure = draw("system", run)
    curves = {name: (trace["yaxis"], trace["x"], trace["y"]) for name, trace in named(figure).items()}
    assert curves == {
        "lr/0": ("y", [2, 6], [None, 0.1]),
        "lr/1": ("y", [2, 6], [None, 0.01]),
        "grad_norm": ("y2", [2, 6], [None, 3.0]),
        "cpu": ("y3", [2], [0.5]),
        "memory_bytes": ("y4", [2], [2.0]),
    }
    axes = [figure["layout"][f"yaxis{number}"] for number in ("", "2", "3", "4")]
    assert [axis["title"]["text"] for axis in axes] == [
        "learning rate", "gradient norm", "cores busy", "memory, MiB",
    ]  # fmt: skip
    ends = [end for axis in axes for end in reversed(axis["domain"])]  # from the top: none lies over another
    assert ends == sorted(ends, reverse=True)
    assert (ends[0], ends[-1]) == (1.0, 0.0)
    assert [shape["x0"] for shape in figure["layout"]["shapes"]] == [4, 8]


def test_curves_over_steps(run: RunData) -> None:
    figure = draw("curves", run)
    lines = [trace for trace in figure["data"] if trace["mode"] == "lines"]
    assert [trace["x"] for trace in lines] == [[0, 2, 4, 5, 6, 8]] * 2
    assert lines[0]["y"] == [0.1, 0.5, 0.9, 0.3, 0.5, 0.6]
    assert lines[1]["y"] == [0.125, None, None, 0.2, 0.6, 0.8]
    learned = [trace for trace in figure["data"] if trace["mode"] == "markers"]
    assert [(trace["x"], trace["y"]) for trace in learned] == [([4], [0.9]), ([8], [0.8])]
    assert [shape["x0"] for shape in figure["layout"]["shapes"]] == [4, 8]


def test_the_stability_gap_begins_where_an_experience_begins(run: RunData) -> None:
    (trace,) = draw("gap", run)["data"]
    assert (trace["x"], trace["y"]) == ([0, 1, 2, 4], [0.9, 0.3, 0.5, 0.6])


def test_a_task_that_returns_is_no_earlier_one(run: RunData) -> None:
    run.tests = [0, 0]
    assert BY_KEY["gap"].figure([run]) == "the stability gap needs two experiences"


def test_confusion(run: RunData) -> None:
    blocks = draw("blocks", run)["data"][0]
    assert blocks["z"] == [[0.5, 0.5, 0.0], [0.25, 0.75, 0.0]]
    assert (blocks["x"], blocks["y"]) == (["1", "2", "none of them"], ["1", "2"])
    assert draw("classes", run)["data"][0]["z"][0] == [0.5, 0.0, 0.5, 0.0]


def test_memory_rehearsal_and_prompts(run: RunData) -> None:
    memory = named(draw("memory", run))
    assert memory["experience 1"]["y"] == [10, 4]
    assert memory["experience 2"]["y"] == [None, 6]
    rehearsal = named(draw("rehearsal", run))
    assert (rehearsal["realised"]["y"], rehearsal["expected"]["y"]) == ([2], [2.5])
    assert draw("prompts", run)["data"][0]["z"] == [[0.75, 0.25, 0.0], [0.0, 0.0, 1.0]]
    assert draw("importance", run)["data"][0]["x"] == [0.75, 0.25]


def test_a_combination_reports_by_part(run: RunData) -> None:
    run.results = {**run.results, "strategy": {"l2p": run.results["strategy"]}}
    assert len(draw("prompts", run)["data"][0]["z"]) == 2


def test_terms(run: RunData) -> None:
    losses = named(draw("losses", run))
    assert losses["loss"]["y"] == [2.0, 1.0]
    assert losses["penalty"]["y"] == [None, 0.5]
    assert list(named(draw("penalties", run))) == ["penalty"]


def test_time(run: RunData) -> None:
    phases = named(draw("seconds", run))
    assert phases["train"]["x"] == ["start", "1", "2"]
    assert phases["train"]["y"] == [0, 0.5, 0.3]
    assert phases["finish"]["y"] == [0, 0.25, 0]
    assert draw("throughput", run)["data"][0]["y"] == pytest.approx([200, 300])


def test_starts(run: RunData) -> None:
    starts = named(draw("jobs", run))
    assert {name: trace["y"] for name, trace in starts.items()} == {
        "preempted": ["start 1"],
        "killed": ["start 2"],
        "done": ["start 3"],
    }
    assert starts["preempted"]["base"] == ["1970-01-01 00:16:40.000"]
    assert starts["preempted"]["x"] == [60_000]
    assert starts["done"]["x"] == [30_500]
    assert starts["killed"]["text"] == ["host b, job 7, restart 1"]


def test_references_are_of_the_same_scenario_and_backbone(make: Maker, tmp_path: Path) -> None:
    make("ewc")
    make("joint", strategy={"name": "cumulative"})
    make("low", strategy={"name": "naive"})
    make("other", strategy={"name": "naive"}, backbone={"name": "gru"})
    traces = named(draw("average", *load_runs([tmp_path])))
    assert list(traces) == ["ewc", "joint (joint)", "low (naive)", "other"]
    dashes = [trace["line"].get("dash") for trace in traces.values()]
    assert dashes == [None, "dash", "dot", None]


def test_bands_over_seeds(make: Maker, tmp_path: Path) -> None:
    for seed, value in enumerate((0.5, 0.6, 0.7)):
        path = make(f"s{seed}", seed=seed)
        results = json.loads((path / "results.json").read_text())
        (path / "results.json").write_text(json.dumps({**results, "matrix": [[value]]}))
    traces = named(draw("average", *load_runs([tmp_path])))
    assert traces["ewc (mean of 3)"]["y"] == pytest.approx([0.6])
    half = 4.302653 * 0.1 / 3**0.5
    assert traces["ewc (mean of 3), 95%"]["y"] == pytest.approx([0.6 + half, 0.6 - half])
    bars = named(draw("strategies", *load_runs([tmp_path])))["ACC"]
    assert bars["text"] == ["0.700 (n = 3)"]


def test_forgetting_and_cost(watched: Maker, tmp_path: Path) -> None:
    for name in ("ewc", "er"):
        watched(name, strategy={"name": name})
    runs = load_runs([tmp_path])
    forgotten = named(draw("forgetting", *runs))
    assert (forgotten["ewc"]["x"], forgotten["ewc"]["y"]) == (["1"], [pytest.approx(0.3)])
    runs[0].results = {**runs[0].results, "stored_bytes": 10}
    runs[0].summary["ACC"] = 0.8
    assert named(draw("memory-cost", *runs))["Pareto front"]["x"] == [10]
    assert named(draw("state-cost", *runs))["ewc"]["x"] == [8]


def test_the_pareto_front() -> None:
    points = [(1, 0.5), (2, 0.4), (2, 0.7), (3, 0.7), (4, 0.9), (1, 0.5)]
    assert front(points) == [0, 2, 4]


def test_where_configurations_differ(make: Maker, tmp_path: Path) -> None:
    make("a")
    make("b", backbone={"name": "mlp", "hidden": 16}, run={"root": "elsewhere"})
    (table,) = draw("config", *load_runs([tmp_path]))["data"]
    assert table["header"]["values"] == ["run", "backbone.hidden"]
    assert table["cells"]["values"] == [["a", "b"], ["8", "16"]]


def test_thinned_curves_keep_their_peaks() -> None:
    n = 100_000
    y: list[float | None] = [0.0] * n
    y[12_345], y[54_321] = 7.0, -7.0
    x, kept = thin(range(n), y)
    assert len(x) <= 1001
    assert dict(zip(x, kept, strict=True)) | {12_345: 7.0, 54_321: -7.0, n - 1: 0.0} == dict(zip(x, kept, strict=True))
    assert x == sorted(x)
    assert None in thin(range(n), [None] * n)[1]
