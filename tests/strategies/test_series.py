"""Series of real values, and tasks that return: every strategy that asks for neither classes nor tokens learns."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from clplat import registry
from clplat.build import build
from clplat.config import compose
from clplat.loop import Run
from clplat.ranks import Ranks
from clplat.scenario import Scenario, Spec, TensorData, stream
from tests.cases import each_strategy, small


class Waves(Scenario):
    """Sines of two frequencies that take turns; the next value of each step but the last two thirds of a sample's is
    unknown."""

    def __init__(self, seed: int) -> None:
        def part(rate: float, phase: int) -> TensorData:
            offset = torch.arange(40)[:, None] * 0.7 + phase
            wave = torch.sin(rate * torch.arange(13) + offset + seed)[..., None]
            y = wave[:, 1:].clone()
            y[:, :4] = torch.nan
            return TensorData(wave[:, :-1], y)

        spec = Spec((12, 1), 1, "domain", target="series", metric="nrmse", direction="min")
        visits = [part(0.4, 0), part(1.3, 1), part(0.4, 2), part(1.3, 3)]
        super().__init__(
            spec, stream("train", visits), stream("test", [part(0.4, 9), part(1.3, 9)]), tests=(0, 1, 0, 1)
        )


def fits(case: Any) -> bool:
    name = case.values[0] if hasattr(case, "values") else case
    return "+" not in name and set(registry.find("strategy", name).load().needs) <= {"boundaries", "steps"}


@pytest.mark.parametrize("strategy", [case for case in each_strategy() if fits(case)])
def test_it_learns_from_a_series(strategy: str) -> None:
    skip = ("scenario", "backbone", "trainer.", "eval.", "learner")
    own = [o for o in small(strategy) if not o.startswith(skip) and ".policy=" not in o]  # some policies need classes
    settings = ["backbone=gru", "backbone.hidden=8", "trainer.accelerator=cpu", "trainer.max_epochs=2"]
    config = compose([*own, *settings, "trainer.batch_size=16", "scenario=tests.strategies.test_series:Waves"])
    built = build(config, Ranks())
    results = Run(built.learner, built.scenario, eval_settings=built.eval_settings).execute()
    assert results["tests"] == (0, 1, 0, 1)
    assert [len(row) for row in results["matrix"]] == [2] * 4
    assert all(math.isfinite(value) for row in [results["baseline"], *results["matrix"]] for value in row)
    assert results["summary"]["forgetting"] is not None
