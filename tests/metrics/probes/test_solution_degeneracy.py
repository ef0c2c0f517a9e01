"""Solutions that are the same but for the order of units, and runs that are compared by name."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from clplat.backbones.rnn.rnn import RNN
from clplat.batch import Batch
from clplat.cli import main
from clplat.errors import UsageError
from clplat.learner import Learner, Output
from clplat.metrics.probes import base
from clplat.metrics.probes.solution_degeneracy import SolutionDegeneracy, recurrent_blocks
from clplat.probing import make
from clplat.scenario import Scenario, Spec, TensorData, stream
from clplat.strategy import Strategy
from tests import harness
from tests.cases import built
from tests.metrics.probes.streams import language, made, source


def reordered(learner: Learner, order: torch.Tensor) -> Learner:
    """The same network with its units in another order."""
    learner.on_step = learner.save = learner.note = lambda *_: None  # type: ignore[assignment]
    other = copy.deepcopy(learner)
    with torch.no_grad():
        for name, parameter in other.backbone.named_parameters():
            parameter.copy_(parameter[order])
            if recurrent(name):
                parameter.copy_(parameter[:, order])
        weight = other.head.linear.weight if hasattr(other.head, "linear") else next(other.head.parameters())
        weight.copy_(weight[:, order])
    return other


def recurrent(name: str) -> bool:
    return "weight_hh" in name or (name.startswith("hh") and name.endswith("weight"))


def test_a_network_and_its_reordered_copy_are_one_solution() -> None:
    tokens = torch.randint(1, 9, (60, 21), generator=source(0))
    scenario = language(tokens, tokens, 9)
    learner = made(scenario, lambda D: RNN(D, hidden=12))
    order = torch.randperm(12, generator=source(1))
    twin = reordered(learner, order)
    x, _, task = scenario.test_stream[0].dataset.rows(slice(0, 8))
    torch.testing.assert_close(twin.answer(x, task), learner.answer(x, task))
    other = made(scenario, lambda D: RNN(D, hidden=12), seed=1)
    probe = make("solution-degeneracy")
    assert isinstance(probe, SolutionDegeneracy)
    found = probe.compare([learner, twin, other], scenario)
    assert found["dynamics_by_pair"][0][1] < 0.05
    assert found["dynamics_by_pair"][0][2] > 4 * found["dynamics_by_pair"][0][1]
    assert found["weights_by_pair"][0][1] < 1e-6
    assert found["weights_by_pair"][0][2] > 0.05
    a, b = recurrent_blocks(learner), recurrent_blocks(twin)
    assert a is not None
    assert b is not None
    assert np.linalg.norm(a - b) > 0.5
    assert found["errors"][0] == pytest.approx(found["errors"][1])
    assert found["behaviour"] == pytest.approx(np.std(found["errors"]))
    assert probe.figure(found)["data"][0]["z"] == found["dynamics_by_pair"]


class Sparse(Strategy):
    """An L1 penalty on the recurrent matrix."""

    def loss(self, learner: Learner, batch: Batch, output: Output) -> dict[str, torch.Tensor]:
        weight = next(p for name, p in learner.backbone.named_parameters() if recurrent(name))
        return {"l1": 1e-3 * weight.abs().sum()}


def flip_flop(bits: int, steps: int = 20) -> Scenario:
    """The sign of the last pulse in each channel."""

    def part(n: int, seed: int) -> TensorData:
        generator = source(seed)
        pulse = torch.randint(0, 2, (n, steps, bits), generator=generator) * 2.0 - 1
        there = torch.rand(n, steps, bits, generator=generator) < 0.3
        there[:, 0] = True
        held = torch.where(there, torch.arange(steps)[:, None], 0).cummax(1).values
        return TensorData(pulse * there, pulse.gather(1, held))

    spec = Spec((steps, bits), bits, "domain", target="series", metric="mse", direction="min")
    return Scenario(spec, stream("train", [part(512, 0)]), stream("test", [part(64, 1)]))


@pytest.mark.slow
def test_a_penalty_on_weights_brings_solutions_together() -> None:
    scenario, probe = flip_flop(3), make("solution-degeneracy", samples=32, delays=2, rank=6)
    assert isinstance(probe, SolutionDegeneracy)
    found = {}
    for strategy in (Strategy, Sparse):
        networks = [
            made(scenario, lambda D: RNN(D, hidden=16), epochs=10, lr=1e-2, batch=32, seed=seed, strategy=strategy)
            for seed in range(3)
        ]
        found[strategy] = probe.compare(networks, scenario)
        assert max(found[strategy]["errors"]) < 0.25  # a guess has 1
    assert found[Sparse]["weights"] < 0.9 * found[Strategy]["weights"]


@pytest.mark.slow
def test_runs_are_compared_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["strategy=naive", "backbone=gru", "backbone.hidden=8", "scenario=permuted-copy", "scenario.experiences=1"]
    words += ["scenario.samples=64", "scenario.test_samples=32", "trainer.max_epochs=1"]
    for seed in (0, 1):
        harness.make(tmp_path / str(seed), [*words, f"seed={seed}"])
        assert harness.run(tmp_path / str(seed)).codes == [0]
    run, other = (str(tmp_path / str(seed)) for seed in (0, 1))
    argv = ["probe", "solution-degeneracy", run, f"runs=[{other}]", "shift={length: 8}", "--json"]
    assert main(argv) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["networks"] == 2
    assert found["behaviour_shifted"] >= 0
    assert found["dynamics"] > 0
    assert found["weights"] > 0
    assert main(["probe", "solution-degeneracy", run]) == 2
    assert "name the others" in capsys.readouterr().err


def test_what_it_refuses() -> None:
    one = built("naive", "backbone=mlp", "scenario=permuted-digits")
    with pytest.raises(UsageError, match="reads a sequence"):
        base.take(make("solution-degeneracy", runs=("x",)), one.learner, one.scenario)
    with pytest.raises(UsageError, match="rank=0"):
        SolutionDegeneracy(rank=0)
