"""Metrics at the ends of experiences: what checkpoints would have given, on any number of ranks and after a kill."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from clplat import config
from clplat.cli import main
from clplat.errors import UsageError
from clplat.settings import EvalSettings
from tests import cases, harness

NAMES = ("cka", "effective_rank", "dormant_units", "head_drift", "gradient_interference", "flops")
SMALL = ["strategy=er", "strategy.memory=20", "backbone=gru", "backbone.hidden=8", "scenario.experiences=3"]
SMALL += ["scenario.test=0.8", "trainer.max_epochs=1", "trainer.precision=64", "eval.probes=[gdv]"]
ASKED = [
    *SMALL,
    f"eval.metrics=[{','.join(NAMES)}]",
    "eval.options.dormant_units.tau=0.5",
    "eval.options.gdv.samples=9",
]


def lines(run_dir: Path, event: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [line for line in found if line["event"] == event]


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = harness.make(tmp_path_factory.mktemp("ends") / "run", [*ASKED, "trainer.keep_boundaries=true"])
    outcome = harness.run(path)
    assert outcome.codes == [0], outcome.output
    return path


def test_they_are_what_checkpoints_give(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    *_, before, last = lines(run_dir, "metrics")
    assert set(before["values"]["cka"]) == {"0"}
    assert last["values"]["flops"] is None
    assert "--add" in last["reasons"]["flops"]
    held = json.loads((run_dir / "metrics.json").read_text())
    assert held["values"] == last["values"]
    words = ["--add", ",".join(NAMES[:-1]), "--set", "dormant_units.tau=0.5", "--json"]
    assert main(["metrics", str(run_dir), *words]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert "dormant_units(tau=0.5)" in found["values"]
    for name, value in found["values"].items():
        assert last["values"][name] == pytest.approx(value, rel=1e-9), name


def test_options_reach_the_probe(run_dir: Path) -> None:
    found = json.loads((run_dir / "probes" / "gdv-e001.json").read_text())
    assert len(found["labels"]) == 9 * 3


def test_a_killed_run_ends_with_the_same(run_dir: Path, tmp_path: Path) -> None:
    path = harness.make(tmp_path / "run", ASKED)
    assert harness.run(path, kill_at=("finished", 3)).codes == [harness.KILLED]
    assert harness.run(path).codes == [0]
    assert lines(path, "metrics") == lines(run_dir, "metrics")
    for k in range(3):
        assert (path / "features" / f"e00{k}.npz").read_bytes() == (run_dir / "features" / f"e00{k}.npz").read_bytes()


def test_two_ranks_find_what_one_finds(run_dir: Path, tmp_path: Path) -> None:
    path = harness.make(tmp_path / "two", ASKED)
    outcome = harness.run(path, world=2)
    assert outcome.codes == [0, 0], outcome.output
    for one, two in zip(lines(run_dir, "metrics"), lines(path, "metrics"), strict=True):
        assert two["reasons"] == one["reasons"]
        for name in one["values"].keys() - one["reasons"].keys():
            assert two["values"][name] == pytest.approx(one["values"][name], rel=1e-6), name
    for k in (1, 2, 3):
        one, two = (json.loads((p / "probes" / f"gdv-e00{k}.json").read_text()) for p in (run_dir, path))
        assert two["layers"] == pytest.approx(one["layers"], rel=1e-6)
        assert two["labels"] == one["labels"]


def test_what_is_refused() -> None:
    with pytest.raises(UsageError) as error:
        cases.run(cases.built("naive", "eval.metrics=[ckaa,intransigence,cka]", "eval.options.cka.depth=3"))
    said = "\n".join(error.value.messages)
    assert "Did you mean 'cka'" in said
    assert "intransigence needs a reference, which a run that goes on has not" in said
    assert "no option 'depth'" in said
    with pytest.raises(UsageError, match=r"neither in eval\.probes nor in eval\.metrics"):
        EvalSettings(options={"gdv": {"samples": 3}})
    with pytest.raises(UsageError, match="asked for twice"):
        EvalSettings(probes=("gdv", "gdv"))
    with pytest.raises(UsageError, match="one value, not a section"):
        config.compose(["eval.probes=[gdv]", "eval.options.gdv.samples.more=3"])


def test_options_come_back_from_a_file(tmp_path: Path) -> None:
    words = ["eval.probes=[verbatim-recall,gdv]", "eval.options.verbatim-recall.sizes=[3,5]"]
    composed = config.compose([*words, "eval.options.verbatim-recall.filler=random", "eval.options.gdv.samples=7"])
    expected = {"verbatim-recall": {"sizes": [3, 5], "filler": "random"}, "gdv": {"samples": 7}}
    assert composed["eval"]["options"] == expected
    path = tmp_path / "config.yaml"
    path.write_text(config.dump(composed))
    assert config.load(path)["eval"]["options"] == expected
