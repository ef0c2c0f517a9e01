"""Exact resume: killed anywhere, a run ends where the uninterrupted one ends, bit for bit."""

from __future__ import annotations

import json
import random
import shutil
import signal
from pathlib import Path

import pytest

from tests import cases, damage, harness

THOROUGH = ("ewc+er", *cases.TEST_ONLY)


@pytest.mark.parametrize("strategy", cases.each_strategy())
def test_killed_anywhere_ends_bit_identical(strategy: str, tmp_path: Path) -> None:
    whole = harness.make(tmp_path / "whole", cases.small(strategy, brief=True))
    outcome = harness.run(whole)
    assert outcome.codes == [0], outcome.output
    expected, lines = harness.results(whole), (whole / "metrics.jsonl").read_bytes()
    draw = random.Random(f"kills {strategy}")
    assert {"step", "save.write", "save.rename", "save.done", "finish", "finished", "evaluate"} <= set(outcome.points)
    points = sorted(outcome.points.items())
    # One that is drawn for each of many strategies; scripts/soak tries as many as one likes.
    for point, times in points if strategy in THOROUGH else [draw.choice(points)]:
        killed = harness.make(tmp_path / "killed", cases.small(strategy, brief=True))
        assert harness.run(killed, kill_at=(point, draw.randint(1, times))).codes == [harness.KILLED]
        # A second kill while it goes on; it may come too late to happen.
        again = harness.run(killed, kill_at=("step", draw.randint(1, 9))).codes
        assert again in ([harness.KILLED], [0])
        last = harness.run(killed)
        assert last.codes == [0], last.output
        assert harness.results(killed) == expected, f"killed at {point}"
        assert (killed / "metrics.jsonl").read_bytes() == lines, f"killed at {point}"
        shutil.rmtree(killed)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ewc+er", *cases.TEST_ONLY])
def test_a_rank_killed_among_two_ends_bit_identical(strategy: str, tmp_path: Path) -> None:
    whole = harness.make(tmp_path / "whole", cases.small(strategy))
    assert harness.run(whole, world=2).codes == [0, 0]
    expected = harness.results(whole)
    for number, point in enumerate(["step", "save.rename", "finish", "evaluate"]):
        killed = harness.make(tmp_path / "killed", cases.small(strategy))
        rank = 0 if point.startswith("save") else number % 2
        outcome = harness.run(killed, world=2, kill_at=(point, 2), kill_rank=rank)
        assert outcome.codes[rank] == harness.KILLED
        last = harness.run(killed, world=2)
        assert last.codes == [0, 0], last.output
        assert harness.results(killed) == expected, f"rank {rank} killed at {point}"
        shutil.rmtree(killed)


@pytest.mark.parametrize("kind", damage.KINDS)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(kind: str, tmp_path: Path) -> None:
    overrides = cases.small("ewc+er")
    whole = harness.make(tmp_path / "whole", overrides)
    assert harness.run(whole).codes == [0]
    run_dir = harness.make(tmp_path / "damaged", overrides)
    assert harness.run(run_dir, kill_at=("save.done", 5)).codes == [harness.KILLED]
    newest = damage.spoil(run_dir, kind, random.Random(kind))
    outcome = harness.run(run_dir)
    assert outcome.codes == [0], outcome.output
    assert f"checkpoint {newest.name} is not used" in outcome.output
    assert harness.results(run_dir) == harness.results(whole)


def test_with_no_whole_checkpoint_left_the_run_says_so(tmp_path: Path) -> None:
    run_dir = harness.make(tmp_path / "run", cases.small("naive"))
    assert harness.run(run_dir, kill_at=("save.done", 3)).codes == [harness.KILLED]
    for path in (run_dir / "checkpoints").iterdir():
        (path / "state.pt").write_bytes(b"")
    outcome = harness.run(run_dir)
    assert outcome.codes == [1]
    assert "no checkpoint is whole" in outcome.output


def test_optimizer_state_that_is_kept_survives(tmp_path: Path) -> None:
    overrides = [*cases.small("naive"), "optimizer.keep_state=true"]
    whole = harness.make(tmp_path / "whole", overrides)
    assert harness.run(whole).codes == [0]
    fresh = harness.make(tmp_path / "fresh", cases.small("naive"))
    assert harness.run(fresh).codes == [0]
    assert harness.results(whole)["weights_sha256"] != harness.results(fresh)["weights_sha256"]
    for point in ("finish", "evaluate", "step"):
        killed = harness.make(tmp_path / f"killed-{point}", overrides)
        assert harness.run(killed, kill_at=(point, 2)).codes == [harness.KILLED]
        assert harness.run(killed).codes == [0]
        assert harness.results(killed) == harness.results(whole), point


@pytest.mark.parametrize("world", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_signal_stops_between_steps_and_the_run_goes_on(world: int, tmp_path: Path) -> None:
    overrides = cases.small("ewc+er")
    whole = harness.make(tmp_path / "whole", overrides)
    assert harness.run(whole, world=world).codes == [0] * world
    for number, code, point, times in (
        (signal.SIGTERM, 75, "step", 11),
        (signal.SIGUSR1, 75, "poll", 5),
        (signal.SIGTERM, 75, "finish", 1),
        (signal.SIGINT, 130, "evaluate", 9),
    ):
        run_dir = harness.make(tmp_path / point, overrides)
        outcome = harness.run(run_dir, world=world, kill_at=(point, times), kill_rank=world - 1, number=number)
        assert outcome.codes == [code] * world, outcome.output
        assert json.loads((run_dir / "status.json").read_text())["status"] == "preempted"
        assert "clplat resume" in outcome.output
        last = harness.run(run_dir, world=world)
        assert last.codes == [0] * world, last.output
        assert harness.results(run_dir) == harness.results(whole), point


def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    run_dir = harness.make(
        tmp_path / "run", [*cases.small("naive"), "optimizer=sgd", "optimizer.lr=1e30", "trainer.clip=null"]
    )
    outcome = harness.run(run_dir)
    assert outcome.codes == [1]
    assert "the loss is not finite at step" in outcome.output
    assert "experience 0" in outcome.output
    assert json.loads((run_dir / "status.json").read_text())["status"] == "failed"
    assert not (run_dir / "results.json").exists()
