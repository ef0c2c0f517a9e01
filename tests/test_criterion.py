"""Training that ends when it has learned enough: what is measured, and where a run stopped on the way goes on."""

from __future__ import annotations

import functools
import json
import shutil
from pathlib import Path

import pytest
import torch

import clplat
from clplat import optim
from clplat.backbones.mlp import MLP
from clplat.criterion import Criterion
from clplat.errors import UsageError
from clplat.metrics.measures import parts_of_outputs
from clplat.settings import TrainerSettings
from tests import harness
from tests.scenarios.streams import build


def taken(steps: list[list[float]], value: float, window: int, *, smaller: bool = False) -> list[bool]:
    criterion, found = Criterion(value, window, smaller=smaller), []
    for parts in steps:
        criterion.take(torch.tensor(parts), 0)
        found.append(criterion.reached)
    return found


def test_samples_are_weighed_over_the_window() -> None:
    assert taken([[9, 10], [1, 1], [0, 10], [10, 10], [10, 10]], 0.9, 2) == [False, True, False, False, True]
    assert taken([[8.0, 10.0], [2.0, 10.0], [1.0, 10.0]], 0.5, 2, smaller=True) == [False, True, True]
    assert taken([[0, 0], [0, 0]], 0.0, 1) == [False, False]  # nothing was asked


def test_parts_of_a_step_add_up_and_each_output_counts() -> None:
    criterion = Criterion(0.9, 1)
    criterion.take(torch.tensor([[10.0, 1.0], [10.0, 10.0]]), 0)
    assert not criterion.reached
    criterion.take(torch.tensor([[0.0, 90.0], [0.0, 90.0]]), 1)
    assert criterion.recent == [[10.0, 91.0, 10.0, 100.0]]
    assert criterion.reached


def test_bits_are_counted_by_output_and_only_where_asked() -> None:
    logits = torch.tensor([[[1.0, -1.0, 2.0], [1.0, 1.0, -2.0]]])
    y = torch.tensor([[[1, 1, -100], [1, 1, -100]]])
    assert parts_of_outputs("bits", logits, y).tolist() == [[2, 1, 0], [2, 2, 0]]
    assert parts_of_outputs("class", torch.eye(3), torch.tensor([0, 1, 1])).tolist() == [[2], [3]]


SMALL = ["scenario=split-digits", "scenario.experiences=2", "backbone=mlp", "backbone.hidden=16", "strategy=naive"]
SMALL += ["trainer.max_epochs=20", "trainer.until=0.4", "trainer.until_window=4", "trainer.progress=none"]
SMALL += ["trainer.checkpoint_every=3", "trainer.dispatch=4", "trainer.accumulate=2", "trainer.accelerator=cpu"]
SMALL += ["optimizer.lr=0.01"]


def phases(run_dir: Path) -> list[int]:
    lines = map(json.loads, (run_dir / "timings.jsonl").read_text().splitlines())
    return [line["steps"] for line in lines if line.get("phase") == "train"]


@pytest.mark.slow
def test_a_run_stopped_on_the_way_ends_training_where_the_whole_one_does(tmp_path: Path) -> None:
    whole = harness.make(tmp_path / "whole", SMALL)
    outcome = harness.run(whole)
    assert outcome.codes == [0], outcome.output
    expected, steps = harness.results(whole), phases(whole)
    assert all(4 <= n < 200 for n in steps)
    total = sum(steps)
    # Also after the very step at which it was reached, and that many steps into the next experience.
    for at in (5, steps[0], total - 1):
        killed = harness.make(tmp_path / "killed", SMALL)
        assert harness.run(killed, kill_at=("step", at)).codes == [harness.KILLED]
        last = harness.run(killed)
        assert last.codes == [0], last.output
        assert harness.results(killed) == expected
        shutil.rmtree(killed)
    two = harness.make(tmp_path / "two", SMALL)
    assert harness.run(two, world=2).codes == [0, 0]
    assert phases(two) == steps


def test_what_is_never_reached_trains_to_the_end_and_what_is_soon_ends_soon() -> None:
    steps = {}
    for until in (None, 0.3, 1.1):
        results = clplat.fit(
            "naive",
            build("split-digits", experiences=2),
            lambda D: MLP(D, hidden=16),
            optimizer=functools.partial(optim.adam, lr=1e-2),
            trainer=TrainerSettings(max_epochs=4, until=until, until_window=3, progress="none", accelerator="cpu"),
        )
        steps[until] = results["steps"]
    assert steps[1.1] == steps[None]
    assert 6 <= steps[0.3] < steps[None] - 10


def test_nonsense_is_refused() -> None:
    with pytest.raises(UsageError, match="until_window=0"):
        clplat.fit("naive", build("split-digits"), "mlp", trainer=TrainerSettings(until=0.5, until_window=0))
