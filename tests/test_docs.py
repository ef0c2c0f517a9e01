"""docs/strategies.md, docs/backbones.md and docs/scenarios.md are what conf/ and the source say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from clplat import registry

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("script", ["docs_strategies", "docs_backbones", "docs_scenarios"])
def test_the_page_is_up_to_date(script: str) -> None:
    path = ROOT / "scripts" / script
    found = subprocess.run([sys.executable, str(path), "--check"], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr


def test_every_strategy_has_its_row_and_no_other_has_one() -> None:
    page = (ROOT / "docs" / "strategies.md").read_text(encoding="utf-8").split("<!-- measured -->")[0]
    rows = [line.split("|")[1].strip(" `*") for line in page.splitlines() if line.startswith("| `")]
    assert sorted(rows) == registry.names("strategy")
    assert all(line.count("|") == 6 for line in page.splitlines() if line.startswith("| `"))


def test_every_backbone_has_its_section() -> None:
    page = (ROOT / "docs" / "backbones.md").read_text(encoding="utf-8")
    sections = [line.removeprefix("### ") for line in page.splitlines() if line.startswith("### ")]
    names = registry.names("backbone")
    assert sorted(section for section in sections if section in names) == names


def test_every_scenario_has_its_section_and_every_picture_is_there() -> None:
    page = (ROOT / "docs" / "scenarios.md").read_text(encoding="utf-8")
    sections = [line.removeprefix("### ") for line in page.splitlines() if line.startswith("### ")]
    assert sorted(sections) == registry.names("scenario")
    pictures = {line.split("(")[1].rstrip(")") for line in page.splitlines() if line.startswith("![")}
    assert all((ROOT / "docs" / picture).is_file() for picture in pictures)
    assert pictures >= {f"scenarios/{path.name}" for path in (ROOT / "docs" / "scenarios").glob("*.svg")}
