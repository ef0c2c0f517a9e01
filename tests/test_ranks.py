"""N ranks = 1 rank: same weights to 1e-9 in double precision, same memories, same metrics."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests import cases, harness


@pytest.mark.parametrize("strategy", cases.each_strategy())
def test_several_ranks_end_where_one_ends(strategy: str, tmp_path: Path) -> None:
    overrides = [*cases.small(strategy, brief=True), "trainer.precision=64"]
    single = harness.make(tmp_path / "1", overrides)
    outcome = harness.run(single)
    assert outcome.codes == [0], outcome.output
    expected, expected_results = harness.last_state(single), harness.results(single)
    for world in (2, 3) if strategy in cases.CORE else (3,):
        several = harness.make(tmp_path / str(world), overrides)
        outcome = harness.run(several, world=world)
        assert outcome.codes == [0] * world, outcome.output
        state, found = harness.last_state(several), harness.results(several)
        assert state.keys() == expected.keys()
        for name, value in expected.items():
            if isinstance(value, torch.Tensor) and value.is_floating_point():
                scale = max(1.0, float(value.abs().max())) if value.numel() else 1.0
                torch.testing.assert_close(
                    state[name], value, rtol=0, atol=1e-9 * scale, msg=lambda m, n=name: f"{n}: {m}"
                )
            else:
                assert torch.equal(state[name], value) if isinstance(value, torch.Tensor) else state[name] == value, (
                    name
                )
        assert found["matrix"] == expected_results["matrix"]
        assert found["baseline"] == expected_results["baseline"]
        for line, other in zip(_lines(single), _lines(several), strict=True):
            assert line.keys() == other.keys()
            if line["event"] == "train":
                assert other["terms"] == pytest.approx(line["terms"], rel=1e-8, abs=1e-10)
                assert other["lr"] == pytest.approx(line["lr"], rel=1e-12)
                assert other.get("grad_norm") == pytest.approx(line.get("grad_norm"), rel=1e-8, abs=1e-10)


def _lines(run_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def test_the_small_cases_do_have_empty_slices(tmp_path: Path) -> None:
    """Else the test above would not test them: some batch must leave a rank of three without a row."""
    from clplat.batch import part
    from clplat.build import build
    from clplat.config import compose
    from clplat.ranks import Ranks

    built = build(compose([*cases.small("naive", brief=True), "trainer.accelerator=cpu"]), Ranks())
    n = len(built.scenario.train_stream[0].dataset)
    last = n % 51
    assert 0 < last < 3
    assert any(part(last, rank, 3).start == part(last, rank, 3).stop for rank in range(3))
