"""What a run that was stopped and went on says of its time: the same steps and samples as one that was not, and parts
that add up."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from clplat import checkpoint
from clplat.metrics.runs import evidence
from clplat.metrics.spent import samples_per_second, seconds_by_phase
from clplat.tracking.record import lines, shown_lines
from clplat.tracking.stopwatch import Stopwatch
from tests import cases, harness

STEPS = 8  # optimiser steps of an experience of the small case


def phases(run_dir: Path) -> list[dict[str, Any]]:
    return [line for line in lines(run_dir, "timings.jsonl") if line["event"] == "phase"]


def trained(run_dir: Path) -> list[tuple[Any, ...]]:
    return [(line["experience"], line["phase"], line.get("steps"), line.get("samples")) for line in phases(run_dir)]


def adds_up(run_dir: Path) -> bool:
    """The times of the phases of training are all the time that was spent in training, rounding aside."""
    results = json.loads((run_dir / "results.json").read_text())
    parts = [line["seconds"] for line in phases(run_dir) if "steps" in line]
    return sum(parts) == pytest.approx(results["train_seconds"], abs=0.002)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = harness.make(tmp_path_factory.mktemp("runs") / "whole", cases.small("naive"))
    assert harness.run(run_dir).codes == [0]
    assert adds_up(run_dir)
    assert {line["steps"] for line in phases(run_dir) if "steps" in line} == {STEPS}
    return run_dir


@pytest.mark.parametrize(
    ("number", "step"),
    [(signal.SIGKILL, STEPS + 6), (signal.SIGTERM, STEPS + 6), (signal.SIGTERM, 2 * STEPS)],
    ids=["killed", "stopped", "stopped-at-the-last-step"],
)
def test_the_time_before_a_stop_is_kept(whole: Path, tmp_path: Path, number: int, step: int) -> None:
    run_dir = harness.make(tmp_path / "run", cases.small("naive"))
    code = harness.KILLED if number == signal.SIGKILL else 75
    assert harness.run(run_dir, kill_at=("step", step), number=number).codes == [code]
    found = checkpoint.newest(run_dir / "checkpoints")
    assert found is not None
    progress = found.state["progress"]
    assert progress["experience"] == 1
    assert progress["phase_seconds"] > 0
    assert harness.run(run_dir).codes == [0]
    assert trained(run_dir) == trained(whole)
    assert adds_up(run_dir)
    (second,) = [line for line in phases(run_dir) if line["experience"] == 1 and "steps" in line]
    assert second["seconds"] >= round(progress["phase_seconds"], 4)
    assert all(line["use"]["cpu"] for line in shown_lines(run_dir) if line["event"] == "train")
    spent = evidence(run_dir)[0]
    assert seconds_by_phase(spent)["train"] == pytest.approx(sum(x["seconds"] for x in phases(run_dir) if "steps" in x))
    samples = sum(line.get("samples", 0) for line in phases(whole))
    assert samples_per_second(spent) == pytest.approx(samples / seconds_by_phase(spent)["train"])


def test_parts_of_a_run_that_was_to_stop_add_up(whole: Path, tmp_path: Path) -> None:
    run_dir = harness.make(tmp_path / "run", cases.small("naive"), **{"stop-after": 1})
    assert harness.run(run_dir).codes == [0]
    assert len(trained(run_dir)) == 2
    config = (run_dir / "config.yaml").read_text()
    assert "stop_after: 1" in config
    (run_dir / "config.yaml").write_text(config.replace("stop_after: 1", "stop_after: null"))
    assert harness.run(run_dir).codes == [0]
    assert trained(run_dir) == trained(whole)
    assert adds_up(run_dir)


def test_a_checkpoint_that_knows_nothing_of_the_phase_times_what_comes_after_it() -> None:
    watch = Stopwatch()
    watch.load({"train_seconds": 3.0, "position": 7})
    watch.start(7)
    watch.stop()
    assert watch.first == 7
    assert 0 <= watch.phase == pytest.approx(watch.total - 3.0)
    watch.start(0)
    assert watch.first == 0


def test_the_optimiser_of_a_phase_that_was_stopped_at_its_end_is_carried_on(tmp_path: Path) -> None:
    overrides = [*cases.small("naive"), "optimizer.keep_state=true"]
    expected = harness.make(tmp_path / "whole", overrides)
    assert harness.run(expected).codes == [0]
    run_dir = harness.make(tmp_path / "run", overrides)
    assert harness.run(run_dir, kill_at=("step", STEPS), number=signal.SIGTERM).codes == [75]
    assert harness.run(run_dir).codes == [0]
    assert harness.results(run_dir) == harness.results(expected)
