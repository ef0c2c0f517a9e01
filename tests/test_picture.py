"""Pictures of streams: every entry can be drawn, and what is drawn is what the samples hold."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

from clplat import picture
from clplat.cli import main
from clplat.scenario import Scenario, Spec, TensorData, stream
from tests.scenarios.streams import NAMES, build

SVG = "{http://www.w3.org/2000/svg}"


def one(spec: Spec, x: torch.Tensor, y: torch.Tensor) -> ElementTree.Element:
    data = stream("train", [TensorData(x, y)])
    return ElementTree.fromstring(picture.svg(Scenario(spec, data, data), "it's <one>"))


def fills(root: ElementTree.Element) -> list[str]:
    return [e.get("fill", "") for e in root.iter(f"{SVG}rect")][1:]  # the first is the paper


@pytest.mark.parametrize("name", NAMES)
def test_every_entry_can_be_drawn(name: str) -> None:
    scenario = build(name)
    root = ElementTree.fromstring(picture.svg(scenario, name))
    texts = [text.text or "" for text in root.iter(f"{SVG}text")]
    shown = min(picture.EXPERIENCES, len(scenario.train_stream))
    assert texts[0] == name
    assert sum(text.startswith("experience ") for text in texts) == shown
    width, height = float(root.get("width", 0)), float(root.get("height", 0))
    for e in root.iter(f"{SVG}rect"):
        assert 0 <= float(e.get("x", 0)) <= width
        assert 0 <= float(e.get("y", 0)) + float(e.get("height", 0)) <= height
    assert picture.svg(build(name), name) == picture.svg(scenario, name)
    assert "nan" not in "".join(e.get("d", "") + e.get("points", "") for e in root.iter())


def test_tokens_are_cells_of_their_own_colour_with_the_answer_below() -> None:
    x, y = torch.tensor([[0, 3, 5, 3]]), torch.tensor([[-100, -100, 5, -100]])
    found = fills(one(Spec((4,), 8, "domain", encoder="tokens", target="token", vocabulary=8), x, y))
    assert len(found) == 5
    blank, three, five, answer, again = found
    assert blank == "#eeeeee"
    assert three == again != five == answer


def test_images_are_tiles_from_black_to_white() -> None:
    x = torch.tensor([[[[0.0, 1.0], [0.5, 0.0]]]])
    root = one(Spec((1, 2, 2), 2, "class"), x, torch.tensor([1]))
    paths = {e.get("fill"): len(re.findall("M", e.get("d", ""))) for e in root.iter(f"{SVG}path")}
    assert paths == {"#000000": 2, "#8b8b8b": 1, "#ffffff": 1}
    assert "class 1" in [text.text for text in root.iter(f"{SVG}text")]


def test_a_series_is_a_curve_and_what_is_asked_a_broken_one_with_gaps() -> None:
    x, y = torch.tensor([[[0.0], [1.0], [-1.0], [0.0]]]), torch.tensor([[[1.0], [torch.nan], [0.0], [1.0]]])
    root = one(Spec((4, 1), 1, "domain", target="series"), x, y)
    lines = list(root.iter(f"{SVG}polyline"))
    assert [len(line.get("points", "").split()) for line in lines] == [4, 2]
    assert [line.get("stroke-dasharray") for line in lines] == [None, "3 2"]
    assert len(list(root.iter(f"{SVG}circle"))) == 1  # the answer that stands alone
    heights = [float(point.split(",")[1]) for point in lines[0].get("points", "").split()]
    assert heights[1] < heights[0] == heights[3] < heights[2]


def test_the_command_draws_and_says_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["show", "sines", "--plot"]) == 0
    assert capsys.readouterr().out == "drawn: sines.svg\n"
    assert main(["show", "sines", "--plot", "other.svg"]) == 0
    assert (tmp_path / "other.svg").read_text() == (tmp_path / "sines.svg").read_text()
    for argv in (["ewc", "--plot"], ["sines", "--plot", "a.pdf"], ["sines", "x.svg"], ["sines", "--plot", "no/a.svg"]):
        assert main(["show", *argv]) == 2
