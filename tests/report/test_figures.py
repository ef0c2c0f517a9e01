"""Figures by their JSON, and the page by its text."""

import base64
import hashlib
import html.parser
import json
import re

import plotly.graph_objects as go
import pytest

from clplat.report import compare, figures, figures_compare
from clplat.report.page import page
from clplat.report.runs import RunData, load, load_runs

HOSTILE = '</script><img src=x onerror="alert(1)">&amp;<b>'


def test_the_matrix_is_split_at_the_diagonal(make):
    figure = figures.matrix(load(make("one")))
    go.Figure(figure)  # raises where plotly knows no such key or value
    seen, coming = figure["data"]
    assert seen["y"] == coming["y"] == ["start", "1", "2"]
    assert seen["x"] == ["1", "2"]
    assert seen["z"] == [[None, None], [0.9, None], [0.6, 0.8]]
    assert coming["z"] == [[0.1, 0.125], [None, None], [None, None]]
    assert seen["text"] == [["", ""], ["0.900", ""], ["0.600", "0.800"]]
    assert coming["text"][0] == ["0.100", "0.125"]
    assert (seen["zmin"], seen["zmax"]) == (0.0, 1.0)
    assert figure["layout"]["yaxis"]["range"] == [2.5, -0.5]
    steps = figure["layout"]["sliders"][0]["steps"]
    assert [step["label"] for step in steps] == ["start", "1", "2"]
    assert steps[1]["args"] == [{"yaxis.range": [1.5, -0.5], "yaxis.domain": [pytest.approx(1 / 3), 1]}]


def test_a_metric_that_should_be_small(make):
    run = load(make("one"))
    run.metric, run.direction = "mse", "min"
    (seen, _), layout = figures.matrix(run)["data"], figures.matrix(run)["layout"]
    assert seen["reversescale"] is True
    assert (seen["zmin"], seen["zmax"]) == (0.1, 0.9)
    assert "mse" in layout["title"]["text"]


@pytest.mark.parametrize(("width", "text"), [(10, "0.500"), (11, "0.50"), (41, None)])
def test_numbers_in_cells_give_way(width, text):
    run = RunData(path=None, matrix=[[0.5] * width])  # type: ignore[arg-type]
    trace = figures.matrix(run)["data"][0]
    assert (trace["text"][0][0] if "text" in trace else None) == text


def test_the_curves(make, tmp_path):
    make("a")
    make("b", seed=1)
    make("c", strategy={"name": "naive"}, status="running")
    runs = load_runs([tmp_path])
    figure = figures_compare.average_seen(runs)
    go.Figure(figure)
    assert [trace["name"] for trace in figure["data"]] == [
        "a",
        "b",
        "ewc (mean of 2), 95%",
        "ewc (mean of 2)",
        "c (naive)",
    ]
    assert figure["data"][0]["x"] == [1, 2]
    assert figure["data"][0]["y"] == pytest.approx([0.9, 0.7])
    colours = [trace["line"].get("color") for trace in figure["data"]]
    assert colours[0] == colours[1] == colours[3] != colours[4]
    each = figures.curves(runs[0])
    go.Figure(each)
    assert [trace["y"] for trace in each["data"]] == [[0.1, 0.9, 0.6], [0.125, None, 0.8]]
    assert each["data"][1]["marker"]["size"] == [5, 5, 11]


def test_names_are_no_markup_in_figures(make):
    run = load(make("one"))
    run.label = run.metric = HOSTILE
    for figure in (figures.matrix(run), figures.curves(run), figures_compare.average_seen([run])):
        assert "<img" not in json.dumps(figure)
    assert figures_compare.average_seen([run])["data"][0]["name"].startswith("&lt;/script&gt;&lt;img")
    # The text that plotly fills a hover label with holds no name of ours: it would read %{...} in it.
    assert all("one" not in trace["hovertemplate"] for trace in figures_compare.average_seen([run])["data"])


class Parsed(html.parser.HTMLParser):
    """The elements of a page, its scripts and what is shown of it."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.scripts, self.shown, self.inside = [], [], "", False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.inside = True
            self.scripts.append((dict(attrs), ""))

    def handle_endtag(self, tag):
        self.inside = self.inside and tag != "script"

    def handle_data(self, data):
        if self.inside:
            attrs, text = self.scripts[-1]
            self.scripts[-1] = (attrs, text + data)
        else:
            self.shown += data


def write(make, tmp_path):
    make("plain")
    make("</p>" + HOSTILE.replace("/", "|"), strategy={"name": HOSTILE, "note": "<i>"}, scenario={"name": "'\"><u>"})
    broken = make("broken")
    (broken / "results.json").write_text("{")
    runs = load_runs([tmp_path])
    for run in runs:
        run.reasons = {"BWT": "<s>why</s>"}
    return page(runs, compare.groups(runs))


def test_the_page_is_safe_and_needs_nothing_else(make, tmp_path):
    text = write(make, tmp_path)
    parsed = Parsed(text)
    allowed = {"html", "head", "meta", "title", "style", "body", "h1", "h2", "section", "p", "table", "tr", "th", "td"}
    assert {tag for tag, _ in parsed.tags} <= allowed | {"div", "details", "summary", "pre", "script"}
    keys = {key for _, attrs in parsed.tags for key in attrs}
    assert keys <= {
        "lang",
        "charset",
        "data-view",
        "name",
        "content",
        "http-equiv",
        "data-figure",
        "type",
        "id",
        "open",
        "class",
    }
    assert HOSTILE in parsed.shown
    assert "<s>why</s>" in parsed.shown
    assert "results.json" in parsed.shown
    data = [json.loads(body) for attrs, body in parsed.scripts if attrs.get("type") == "application/json"]
    shown = [attrs["data-view"] for _, attrs in parsed.tags if "data-view" in attrs]
    assert len(data) == len(shown)
    assert shown.count("average") == 1
    assert shown.count("matrix") == shown.count("curves") == shown.count("losses") == 3
    for figure in data:
        go.Figure(figure)
    code = [body for attrs, body in parsed.scripts if not attrs]
    assert len(code) == 2
    assert "plotly.js" in code[0][:100]
    policy = next(attrs["content"] for _, attrs in parsed.tags if "http-equiv" in attrs)
    hashes = [base64.b64encode(hashlib.sha256(body.encode()).digest()).decode() for body in code]
    assert re.search(r"script-src ([^;]*);", policy)[1] == " ".join(f"'sha256-{digest}'" for digest in hashes)
    assert "default-src 'none'" in policy
    assert "unsafe-inline" not in policy.split("style-src")[0]


def test_a_page_of_nothing_yet(make, tmp_path):
    make("one", status="created", lines=[])
    runs = load_runs([tmp_path])
    assert "Accuracy matrix: nothing has been evaluated yet" in page(runs, compare.groups(runs))
