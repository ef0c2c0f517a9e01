"""``clplat probe``, and probes at the ends of experiences."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import clplat
from clplat import registry, signals
from clplat.backbones.rnn.gru import GRU
from clplat.cli import main
from clplat.errors import UsageError
from clplat.metrics.probes import base
from clplat.probing import make
from clplat.settings import EvalSettings, TrainerSettings
from clplat.tracking import directory
from tests import harness
from tests.cases import built

SMALL = ["strategy=ewc", "backbone=gru", "backbone.hidden=8", "scenario.experiences=2", "trainer.max_epochs=1"]
SMALL += ["trainer.keep_boundaries=true", "eval.probes=[gdv]"]
ENTRIES = [registry.find("probe", name) for name in registry.names("probe")]


@pytest.fixture(autouse=True)
def surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "install", lambda: None)
    monkeypatch.setattr(registry, "_added", [])


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("probed") / "run"
    harness.make(path, SMALL)
    outcome = harness.run(path)
    assert outcome.codes == [0], outcome.output
    return path


def read(path: Path) -> dict[str, Any]:
    found = json.loads(path.read_text())
    found.pop("checkpoint", None)  # the command says it, the run need not
    return found


def test_the_command_finds_what_the_run_found(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    at_the_ends = {k: read(run_dir / "probes" / f"gdv-e00{k}.json") for k in (1, 2)}
    assert at_the_ends[1] != at_the_ends[2]
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    noted = [line for line in lines if line["event"] == "probe"]
    assert [line["values"]["last"] for line in noted] == [at_the_ends[k]["last"] for k in (1, 2)]
    for k, words in {1: ["--experience", "1"], 2: []}.items():
        assert main(["probe", "gdv", str(run_dir), "--json", *words]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found.pop("checkpoint").endswith("-evaluate")
        assert found == at_the_ends[k]
    assert main(["probe", "gdv", str(run_dir), "samples=20"]) == 0
    out = capsys.readouterr().out
    assert "shuffled" in out
    assert "probes/gdv.json" in out
    assert read(run_dir / "probes" / "gdv.json")["last"] != at_the_ends[2]["last"]
    assert not list((run_dir / "probes").glob(".*"))


@pytest.mark.parametrize("ending", ["svg", "png", "html"])
def test_figures(run_dir: Path, tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"figure.{ending}"
    assert main(["probe", "gdv", str(run_dir), "samples=10", "--figure", str(path)]) == 0
    content = path.read_bytes()
    assert content.lower().startswith({"svg": b"<?xml", "png": b"\x89png", "html": b"<!doctype html>"}[ending])
    first = content
    if ending != "html":  # which has a random name for the place of the figure
        assert main(["probe", "gdv", str(run_dir), "samples=10", "--figure", str(path)]) == 0
        assert path.read_bytes() == first


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["gdvv", "RUN"], "Did you mean 'gdv'"),
        (["gdv", "nowhere"], "is not a run directory"),
        (["gdv", "RUN", "sample=3"], "Did you mean 'samples'"),
        (["gdv", "RUN", "samples=many"], "expected a whole number"),
        (["gdv", "RUN", "samples=1"], "two at least"),
        (["gdv", "RUN", "samples"], "KEY=VALUE"),
        (["gdv", "RUN", "samples=3", "samples=4"], "twice"),
        (["gdv", "RUN", "--experience", "7"], "it has those after 1, 2"),
        (["gdv", "RUN", "--figure", "a.bmp"], "ends in .svg"),
    ],
)
def test_mistakes(run_dir: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str) -> None:
    assert main(["probe", *[str(run_dir) if word == "RUN" else word for word in words]]) == 2
    assert message in capsys.readouterr().err


def test_training_is_the_same_with_and_without(tmp_path: Path) -> None:
    """Dropout takes its noise from the run's own source; what comes of torch's generator is as before, too."""

    def results(probes: tuple[str, ...]) -> dict[str, Any]:
        return clplat.fit(
            "si",
            registry.find("scenario", "permuted-digits").build(0, experiences=2),
            lambda D: GRU(D, hidden=8),
            trainer=TrainerSettings(max_epochs=1, progress="none", accelerator="cpu"),
            evaluation=EvalSettings(probes=probes),
        )

    assert results(("gdv",))["weights_sha256"] == results(())["weights_sha256"]


def test_a_killed_run_ends_with_the_same_probes(run_dir: Path, tmp_path: Path) -> None:
    path = tmp_path / "run"
    harness.make(path, SMALL)
    assert harness.run(path, kill_at=("finished", 2)).codes == [harness.KILLED]
    assert harness.run(path).codes == [0]
    for name in ("gdv-e001.json", "gdv-e002.json"):
        assert read(path / "probes" / name) == read(run_dir / "probes" / name)
    assert (path / "metrics.jsonl").read_text() == (run_dir / "metrics.jsonl").read_text()


def test_starting_again_takes_the_results_away() -> None:
    assert "probes" in directory.RECORDS


def test_a_run_refuses_a_probe_that_cannot_be_taken() -> None:
    with pytest.raises(UsageError, match=r"eval\.probes: unknown probe 'nothing'"):
        clplat.fit(
            evaluation=EvalSettings(probes=("nothing", "gdv")),
            trainer=TrainerSettings(progress="none", accelerator="cpu"),
        )


class Rude(base.Probe):
    """Draws from torch's generator, and needs a word."""

    needs = ("attention",)

    def measure(self, learner: Any, scenario: Any) -> base.Result:
        assert not learner.training
        assert not torch.is_grad_enabled()
        return {"a": torch.rand(()).item(), "b": float("nan"), "c": torch.ones(2), "d": {1: (2, float("inf"))}, "e": 3}


def test_taking_leaves_no_trace_and_gives_plain_values() -> None:
    one = built("naive", "backbone=transformer", "scenario=permuted-digits")
    one.learner.train()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    probe = Rude()
    probe.name = "rude"
    found = base.take(probe, one.learner, one.scenario)
    assert torch.equal(torch.rand(3), expected)
    assert one.learner.training
    assert found["b"] is None
    assert found["c"] == [1.0, 1.0]
    assert found["d"] == {"1": [2, None]}
    assert base.numbers(found) == {"a": found["a"], "b": None, "e": 3}
    json.dumps(found, allow_nan=False)
    other = built("naive", "backbone=gru", "scenario=permuted-digits")
    with pytest.raises(UsageError, match=r"rude needs attention, which this backbone does not give: .*transformer"):
        base.take(probe, other.learner, other.scenario)


def test_names_become_files() -> None:
    assert base.file_name("a.b:C", 3) == Path("probes/a.b.C-e003.json")
    assert make("gdv").name == "gdv"


def test_needs_in_conf_are_those_of_the_class() -> None:
    for entry in ENTRIES:
        assert entry.info["needs"] == list(entry.load().needs), entry.name
        assert entry.info["family"]
        assert entry.info["paper"]
