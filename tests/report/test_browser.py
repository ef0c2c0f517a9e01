"""The page in a browser: every view draws, nothing is asked of anybody else, and names are text."""

from __future__ import annotations

from pathlib import Path

import pytest

from clplat.cli import main
from clplat.report.views import VIEWS
from tests.browser import Seen, opened
from tests.report.conftest import Maker

pytestmark = pytest.mark.slow

HOSTILE = "<img src=x onerror=\"document.title='taken'\"><b>&amp;%{x}"

# What plotly has drawn of each figure that is shown: marks of each trace, not the frames around them.
MARKS = """() => Object.fromEntries([...document.querySelectorAll("[data-drawn]")].map((place) => [
  place.dataset.view,
  place.querySelectorAll(".point, .js-line, .hm image, .heatmaplayer image, .cell-text").length,
]))"""


def shown(seen: Seen, path: Path) -> None:
    seen.page.goto(path.as_uri())
    seen.wait("[...document.querySelectorAll('[data-drawn]')].every((place) => place.querySelector('.main-svg'))")


@pytest.mark.parametrize("target", ["folder", "one.html"])
def test_every_view_draws_and_asks_nobody(watched: Maker, tmp_path: Path, target: str) -> None:
    for seed in range(2):
        watched(f"runs/ewc{seed}", seed=seed)
    watched("runs/joint", strategy={"name": "cumulative"})
    assert main(["report", str(tmp_path / "runs"), "--output", str(tmp_path / target)]) == 0
    with opened() as seen:
        shown(seen, tmp_path / target / "index.html" if target == "folder" else tmp_path / target)
        marks = seen.page.evaluate(MARKS)
        assert set(marks) == {view.key for view in VIEWS}
        assert all(marks.values()), marks
        assert seen.errors == []
        ours = {path.as_uri() for path in tmp_path.rglob("*")}
        assert set(seen.requests) - ours <= {request for request in seen.requests if request.startswith("data:")}
        assert seen.page.locator(".missing").count() == 0


def test_the_page_is_dark_where_the_system_is(watched: Maker, tmp_path: Path) -> None:
    for name in ("ewc", "er"):
        watched(f"runs/{name}", strategy={"name": name})
    assert main(["report", str(tmp_path / "runs"), "--output", str(tmp_path / "it.html")]) == 0
    paper = "[...document.querySelectorAll('[data-drawn]')].map((it) => it.layout.paper_bgcolor)"
    front = "document.querySelector('[data-view=memory-cost]').data.at(-1).line.color"
    with opened() as seen:
        shown(seen, tmp_path / "it.html")
        assert set(seen.page.evaluate(paper)) == {"#ffffff"}
        assert seen.page.evaluate(front) == "#222222"
        seen.page.emulate_media(color_scheme="dark")
        seen.wait(f"{paper}.every((colour) => colour === '#16181c')")
        assert seen.page.evaluate(front) == "#dddddd"  # not dark on dark
        assert seen.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(22, 24, 28)"
        assert seen.errors == []


def test_the_slider_lets_rows_appear(watched: Maker, tmp_path: Path) -> None:
    path = watched("one")
    assert main(["report", str(path), "--output", str(tmp_path / "one.html")]) == 0
    with opened() as seen:
        shown(seen, tmp_path / "one.html")
        place = seen.page.locator("[data-view=matrix]")
        assert place.evaluate("(it) => it.layout.yaxis.range") == [2.5, -0.5]
        place.evaluate("(it) => it.scrollIntoView()")
        rail = place.locator(".slider-rail-touch-rect").bounding_box()
        seen.page.mouse.click(rail["x"] + rail["width"] / 2, rail["y"] + rail["height"] / 2)
        seen.wait("document.querySelector('[data-view=matrix]').layout.yaxis.range[0] === 1.5")
        assert set(place.locator(".ytick text").all_text_contents()) == {"start", "1"}
        assert seen.errors == []


def test_names_and_values_are_text(watched: Maker, tmp_path: Path) -> None:
    name = HOSTILE.replace("/", "|")
    for run in (name, "other"):
        path = watched(f"runs/{run}", strategy={"name": HOSTILE, "note": HOSTILE}, scenario={"name": HOSTILE})
        text = (path / "metrics.jsonl").read_text().replace('"penalty"', '"<img src=x onerror=alert(1)>"')
        (path / "metrics.jsonl").write_text(text.replace('"accuracy"', '"<i>acc</i>"'))
    assert main(["report", str(tmp_path / "runs"), "--output", str(tmp_path / "it.html")]) == 0
    with opened() as seen:
        shown(seen, tmp_path / "it.html")
        assert seen.page.title() == "2 runs"
        assert seen.page.locator("img, b, i").count() == 0
        assert all(seen.page.evaluate(MARKS).values())
        assert HOSTILE in seen.page.locator("body").inner_text()
        assert seen.page.locator("[data-view=average] .legendtext").first.text_content().startswith("<img src=x")
        assert seen.errors == []


def test_figures_of_many_runs_are_drawn_when_they_are_opened(watched: Maker, tmp_path: Path) -> None:
    for number in range(5):
        watched(f"runs/{number}", seed=number)
    assert main(["report", str(tmp_path / "runs"), "--output", str(tmp_path / "it.html")]) == 0
    with opened() as seen:
        shown(seen, tmp_path / "it.html")
        assert seen.page.locator("[data-view=matrix][data-drawn]").count() == 0
        seen.page.locator("body > details > summary").nth(3).click()
        seen.page.wait_for_selector("[data-view=matrix][data-drawn]")
        assert seen.page.locator("[data-view=matrix][data-drawn]").count() == 1
        assert seen.errors == []
