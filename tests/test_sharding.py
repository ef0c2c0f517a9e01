"""Weights cut among the ranks end where whole ones end, and checkpoints do not know the difference."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from clplat.tracking.record import lines
from tests import cases, harness

# A causal transformer, since what is cut is its blocks.
NETWORK = ["backbone=transformer", "backbone.dim=8", "backbone.layers=2", "backbone.heads=2", "backbone.dropout=0.1"]


def settings(strategy: str, sharding: str) -> list[str]:
    own = [item for item in cases.small(strategy, brief=True) if not item.startswith("backbone")]
    return [*own, *NETWORK, "scenario.experiences=3", f"trainer.sharding={sharding}", "trainer.precision=64"]


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["naive", "cumulative", "ewc+er"])
def test_cut_weights_end_where_whole_ones_end(strategy: str, tmp_path: Path) -> None:
    single = harness.make(tmp_path / "single", settings(strategy, "none"))
    assert harness.run(single).codes == [0]
    cut = harness.make(tmp_path / "cut", settings(strategy, "fsdp"))
    outcome = harness.run(cut, world=2)
    assert outcome.codes == [0, 0], outcome.output
    expected, found = harness.last_state(single), harness.last_state(cut)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if isinstance(value, torch.Tensor):
            scale = max(1.0, float(value.abs().max())) if value.numel() and value.is_floating_point() else 1.0
            torch.testing.assert_close(found[name], value, rtol=0, atol=1e-9 * scale, msg=lambda m, n=name: f"{n}: {m}")
    assert harness.results(cut)["matrix"] == harness.results(single)["matrix"]
    assert harness.results(cut)["stored_bytes"] == harness.results(single)["stored_bytes"]
    norms = [
        [line["grad_norm"] for line in lines(run, "metrics.jsonl") if "grad_norm" in line] for run in (single, cut)
    ]
    assert norms[0]
    assert norms[1] == pytest.approx(norms[0], rel=1e-9)


@pytest.mark.slow
def test_a_rank_holds_a_piece_only(tmp_path: Path) -> None:
    outcome = harness.run(harness.make(tmp_path / "run", settings("tests.probes:Weigh", "fsdp")), world=2)
    assert outcome.codes == [0, 0], outcome.output
    held = [json.loads(line)["held"] for line in outcome.output.splitlines() if line.startswith('{"held"')]
    assert len(held) == 6  # two ranks, three experiences
    for here, everywhere in held:
        assert here < 0.6 * everywhere  # a half, and what is not divisible


@pytest.mark.slow
def test_a_killed_run_with_cut_weights_resumes_exactly(tmp_path: Path) -> None:
    overrides = [*settings("ewc", "fsdp"), "optimizer.keep_state=true"]
    whole = harness.make(tmp_path / "whole", overrides)
    assert harness.run(whole, world=2).codes == [0, 0]
    for point in ("step", "finish", "evaluate"):
        killed = harness.make(tmp_path / point, overrides)
        assert harness.run(killed, world=2, kill_at=(point, 2), kill_rank=1).codes[1] == harness.KILLED
        last = harness.run(killed, world=2)
        assert last.codes == [0, 0], last.output
        assert harness.results(killed) == harness.results(whole), point


def test_a_strategy_that_cannot_is_refused() -> None:
    from clplat.build import build
    from clplat.config import compose
    from clplat.errors import UsageError
    from clplat.ranks import Ranks

    config = compose(["strategy=ewc+agem", "trainer.sharding=fsdp", "trainer.accelerator=cpu"])
    with pytest.raises(UsageError, match=r"agem cannot work on weights that are cut.*or one of .*naive"):
        build(config, Ranks())
