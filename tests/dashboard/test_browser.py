"""The dashboard in a browser: what it draws, what keys do, and what the address says."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests import browser
from tests.report.conftest import LINES, Maker, make  # noqa: F401 - a fixture

expect = pytest.importorskip("playwright.sync_api", reason="playwright is not installed").expect
pytestmark = pytest.mark.slow
HOSTILE = "<img src=x onerror=alert(1)><b>&amp;"
Open = Callable[..., Any]


@pytest.fixture
def opened(serve: Any) -> Iterator[Open]:
    """A function that opens the dashboard. At the end: nothing went wrong in it, and it asked nobody but its server."""
    server = serve()
    with browser.opened() as seen:
        page = seen.page
        page.set_viewport_size({"width": 1500, "height": 850})
        page.on("dialog", lambda dialog: seen.errors.append(f"dialog: {dialog.message}"))

        def start(address: str = "") -> Any:
            page.goto(f"{server.url}{address}")
            expect(page.locator("#message")).to_contain_text("runs")
            return page

        yield start
    # a browser tells of each question that the server refuses, such as a filter that is half typed
    assert not [what for what in seen.errors if "status of 400 (Bad Request)" not in what]
    ours = (server.url, "data:", "blob:", "about:")
    assert not [url for url in seen.requests if not url.startswith(ours)]


def until(page: Any, expression: str) -> None:
    """Wait for an expression of the page to become true."""
    browser.Seen(page).wait(expression)


def see(page: Any, key: str) -> None:
    """Choose a view, and wait until it is drawn or has said why not."""
    page.select_option("#view", key)
    expect(page.locator("#place")).to_have_attribute("data-view", key)
    assert page.locator("#place .main-svg, #place .reason, #place pre").count() > 0


def names(page: Any) -> list[str]:
    found: list[str] = page.evaluate("[...document.querySelectorAll('#rows tr')].map((row) => row.dataset.run)")
    return found


def traces(page: Any) -> list[dict[str, Any]]:
    """What plotly has drawn, by its own account, in the first figure."""
    page.wait_for_selector("#place .figure .main-svg")
    found: list[dict[str, Any]] = page.evaluate(
        "document.querySelector('#place .figure').data.map((t) => ({name: t.name, y: [...(t.y ?? [])], type: t.type}))"
    )
    return found


def drawn_traces(page: Any, n: int) -> list[dict[str, Any]]:
    """The traces once there are so many, and as many lines on the screen."""
    until(page, f"document.querySelectorAll('#place .scatterlayer .trace').length === {n}")
    return traces(page)


@pytest.fixture
def four(make: Maker) -> None:  # noqa: F811
    for seed in range(2):
        for strategy in ("ewc", "naive"):
            make(f"runs/{strategy}-{seed}", seed=seed, strategy={"name": strategy})


@pytest.mark.usefixtures("four")
def test_the_table_and_the_overlay_are_drawn(opened):
    page = opened()
    assert names(page) == ["ewc-0", "ewc-1", "naive-0", "naive-1"]
    cells = page.locator("#rows tr").first.locator("td").all_inner_texts()
    assert [cell.strip() for cell in cells] == [
        "", "ewc-0", "ewc", "mlp", "permuted-digits", "0", "done", "2", "0.7000", "0.3000", "1.5000",
    ]  # fmt: skip
    assert [trace["name"] for trace in drawn_traces(page, 4)] == ["ewc-0", "ewc-1", "naive-0", "naive-1"]
    assert traces(page)[0]["y"] == pytest.approx([0.9, 0.7])


@pytest.mark.usefixtures("four")
def test_filter_sort_and_address(opened):
    page = opened()
    page.fill("#where", "strategy=ewc; seed>0")
    until(page, "document.querySelectorAll('#rows tr').length === 1")
    assert names(page) == ["ewc-1"]
    expect(page.locator("#message")).to_have_text("1 of 4 runs")
    page.fill("#where", "stategy=ewc")
    expect(page.locator("#message.error")).to_contain_text("Did you mean 'strategy'")
    page.fill("#where", "ACC>0.5")
    until(page, "document.querySelectorAll('#rows tr').length === 4")
    page.get_by_role("button", name="seed").click()
    until(page, "document.querySelector('#rows tr').dataset.run === 'ewc-1'")
    assert page.locator("th[aria-sort=descending]").inner_text().startswith("seed")
    address = page.evaluate("location.hash")
    assert "sort=seed" in address
    page.goto("about:blank")
    page = opened(address)
    assert names(page)[0] == "ewc-1"
    assert page.input_value("#where") == "ACC>0.5"
    page.evaluate("location.hash = '#where=strategy%3Dnaive&view=matrix&pick=naive-1'")  # a link that is followed
    until(page, "document.querySelectorAll('#rows tr').length === 2")
    expect(page.locator("#place h3")).to_have_text("naive-1")
    assert {trace["type"] for trace in traces(page)} == {"heatmap"}
    assert page.locator("#place .heatmaplayer image").count() > 0


@pytest.mark.usefixtures("four")
def test_groups_are_means_with_bands(opened):
    page = opened()
    page.fill("#group", "nothing")
    expect(page.locator("#place .reason")).to_have_text("no run has a 'nothing' to group by")
    page.fill("#group", "strategy")
    until(page, "document.querySelector('#place .figure')?.data?.[0].name.startsWith('strategy=')")
    assert [trace["name"] for trace in traces(page)] == [
        "strategy=ewc, 95% confidence interval", "strategy=ewc (n=2)",
        "strategy=naive, 95% confidence interval", "strategy=naive (n=2)",
    ]  # fmt: skip
    assert page.locator("#place .scatterlayer .js-fill").count() >= 2


@pytest.mark.usefixtures("four")
def test_picks_and_keys(opened):
    page = opened()
    drawn_traces(page, 4)
    page.keyboard.press("j")
    page.keyboard.press("x")
    page.keyboard.press("ArrowDown")
    page.keyboard.press(" ")
    assert [trace["name"] for trace in drawn_traces(page, 2)] == ["ewc-1", "naive-0"]
    assert page.evaluate("location.hash") == "#pick=ewc-1&pick=naive-0"
    page.keyboard.press("k")
    page.keyboard.press("Enter")
    assert [trace["name"] for trace in drawn_traces(page, 1)] == ["ewc-1"]
    page.keyboard.press("a")
    drawn_traces(page, 4)
    page.keyboard.press("c")
    until(page, "location.hash === ''")
    page.keyboard.press("/")
    page.keyboard.type("seed=0")  # letters in a field are no keys
    until(page, "document.querySelectorAll('#rows tr').length === 2")
    page.keyboard.press("Escape")
    page.keyboard.press("n")
    expect(page.locator("#view")).to_have_value("training")
    page.keyboard.press("p")
    expect(page.locator("#view")).to_have_value("overlay")
    page.keyboard.press("?")
    expect(page.locator("dialog")).to_be_visible()
    documented = " ".join(page.locator("dialog dt").all_inner_texts()).split()
    assert {"/", "j", "k", "x", "a", "c", "n", "p", "g", "l", "t", "Esc", "Enter"} <= set(documented)
    page.keyboard.press("Escape")
    expect(page.locator("dialog")).to_be_hidden()
    page.keyboard.press("g")
    assert page.evaluate("document.activeElement.id") == "group"


def test_a_run_that_goes_on_is_followed(opened, make):  # noqa: F811
    path = make("runs/going", status="running", lines=LINES[:3])
    (path / "log.txt").write_text("the first line\n")
    page = opened()
    assert len(drawn_traces(page, 1)[0]["y"]) == 1
    with open(path / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps(LINES[3]) + "\n")
    until(page, "document.querySelector('#place .figure').data[0].y.length === 2")
    expect(page.locator("#rows .status")).to_contain_text("2 evaluated")
    page.select_option("#view", "log")
    expect(page.locator("#place pre")).to_have_text("the first line\n")
    with open(path / "log.txt", "a", encoding="utf-8") as file:
        file.write("the second line\n")
    expect(page.locator("#place pre")).to_have_text("the first line\nthe second line\n", timeout=10_000)
    make("runs/new", status="created", lines=[])
    expect(page.locator("#rows tr")).to_have_count(2, timeout=10_000)
    (path / "status.json").write_text(json.dumps({"status": "failed"}))
    expect(page.locator("#rows tr[data-status=failed]")).to_have_count(1, timeout=10_000)
    page.keyboard.press("l")
    make("runs/later")
    page.wait_for_timeout(3000)
    assert names(page) == ["going", "new"]


@pytest.mark.usefixtures("four")
def test_dark_and_light(opened):
    page = opened()
    drawn_traces(page, 4)
    back = "getComputedStyle(document.body).backgroundColor"
    plot = "document.querySelector('#place .figure').layout.paper_bgcolor"
    assert (page.evaluate(back), page.evaluate(plot)) == ("rgb(255, 255, 255)", "#ffffff")
    page.emulate_media(color_scheme="dark")
    until(page, f"{plot} === '#16181c'")
    assert page.evaluate(back) == "rgb(22, 24, 28)"
    page.keyboard.press("t")
    until(page, f"{plot} === '#ffffff'")
    assert page.evaluate(back) == "rgb(255, 255, 255)"
    page.reload()
    drawn_traces(page, 4)
    assert page.evaluate(back) == "rgb(255, 255, 255)"


def test_every_view_draws_or_says_why_not(opened, make):  # noqa: F811
    make("runs/a")
    page = opened()
    keys = page.evaluate("[...document.getElementById('view').options].map((one) => one.value)")
    assert {"overlay", "training", "average", "matrix", "curves", "log", "run"} <= set(keys)
    for key in keys:
        see(page, key)
        assert page.locator("#place .reason", has_text="cannot be drawn").count() == 0
        assert page.locator("#message.error").count() == 0


def test_hostile_names_are_text(opened, make):  # noqa: F811
    lines = [{"event": "train", "experience": 0, "phase": "train", "step": 1, "terms": {HOSTILE: 1.0}}, *LINES]
    path = make(f"runs/{HOSTILE}", status="running", lines=lines, strategy={"name": HOSTILE}, seed=HOSTILE)
    (path / "log.txt").write_text(f"{HOSTILE}\n")
    page = opened("#columns=run,strategy,seed,status&group=strategy")
    assert names(page) == [HOSTILE]
    keys = page.evaluate("[...document.getElementById('view').options].map((one) => one.value)")
    for key in keys:
        see(page, key)
    assert page.locator("img, b").count() == 0
    page.select_option("#view", "log")
    expect(page.locator("#place pre")).to_have_text(f"{HOSTILE}\n")
    page.select_option("#view", "overlay")
    expect(page.locator("#place .legendtext")).to_have_text(f"strategy={HOSTILE} (n=1)")
