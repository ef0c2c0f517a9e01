"""Temporal consistency: the penalty is the mean squared step of the outputs over the steps that are meant."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import clplat
from clplat.backbones.rnn.leaky import LeakyRNN
from clplat.batch import Batch, Part
from clplat.build import Built, build
from clplat.config import compose
from clplat.errors import UsageError
from clplat.learner import Output
from clplat.ranks import Ranks
from clplat.scenario import Experience, Scenario, Spec, TensorData
from clplat.settings import EvalSettings, TrainerSettings
from clplat.strategies.temporal_consistency import TemporalConsistency
from tests import cases


def built(scenario: str, *overrides: str) -> Built:
    flags = {"strategy": "temporal-consistency", "scenario": scenario, "backbone": "rnn"}
    return build(compose([*overrides, "trainer.accelerator=cpu", "trainer.max_epochs=2"], flags=flags), Ranks())


def penalty(features: torch.Tensor, y: torch.Tensor, **options: object) -> torch.Tensor:
    learner = cases.built("naive").learner
    learner.steps = type("Standing", (), {"position": 7})()
    learner.target = "bits" if y.ndim == 3 else "token"
    n = len(features)
    batch = Batch([Part("stream", features, y, torch.zeros(n).long(), torch.arange(n), slice(0, n))],
                  experience=0, epoch=0, step=7)  # fmt: skip
    terms = TemporalConsistency(strength=2.0, **options).loss(learner, batch, Output(features, features))
    return terms.get("consistency", torch.zeros(n))


def test_it_is_the_mean_squared_step() -> None:
    r = torch.randn(3, 6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = torch.full((3, 6), -100)
    expected = [2 * sum(((r[n, t + 1] - r[n, t]) ** 2).mean() for t in range(5)) / 5 for n in range(3)]
    assert torch.allclose(penalty(r, y), torch.stack(expected))
    assert (penalty(r[:, :1].expand(-1, 6, -1), y) == 0).all()


@pytest.mark.parametrize("target", ["token", "bits"])
def test_in_a_delay_only_steps_count_at_which_nothing_is_asked(target: str) -> None:
    r = torch.randn(2, 6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    y = torch.full((2, 6), -100)
    y[0, 0], y[0, 5] = 1, 1  # sample 0: pairs (1, 2), (2, 3), (3, 4) are quiet
    y[1] = 1  # sample 1: none
    if target == "bits":
        y = y[..., None].repeat(1, 1, 3)
    found = penalty(r, y, over="quiet")
    assert torch.isclose(found[0], 2 * (r[0, 2:5] - r[0, 1:4]).square().mean(-1).mean())
    assert found[1] == 0


def test_it_ends_where_it_is_told_to() -> None:
    r, y = torch.randn(2, 4, 3), torch.full((2, 4), -100)
    assert (penalty(r, y, until=8) > 0).all()
    assert (penalty(r, y, until=7) == 0).all()


def test_it_slows_the_activity_of_a_network_that_is_trained_with_it() -> None:
    speed = {}
    for strength in (0.0, 3.0):
        one = built("permuted-copy", "backbone.hidden=32", f"strategy.strength={strength}", "scenario.experiences=1")
        cases.run(one)
        data = one.scenario.test_stream[0].dataset
        with torch.no_grad():
            r = one.learner.output(data.x[:64], data.task[:64], predict=True).features
        speed[strength] = float((r[:, 1:] - r[:, :-1]).square().mean())
    assert speed[3.0] < 0.7 * speed[0.0]


def flip_flop(n: int, seed: int) -> TensorData:
    """Three channels of pulses of 1 and -1; each output holds its channel's latest pulse."""
    source = torch.Generator().manual_seed(seed)
    T = 25
    there_NTC = torch.rand(n, T, 3, generator=source) < 0.15
    sign_NTC = (torch.rand(n, T, 3, generator=source) < 0.5).float()
    held_NC, held = torch.full((n, 3), -100.0), []
    for t in range(T):
        held_NC = torch.where(there_NTC[:, t], sign_NTC[:, t], held_NC)
        held.append(held_NC)
    return TensorData(there_NTC * (2 * sign_NTC - 1), torch.stack(held, 1))


def steps_until_solved(strength: float, seed: int, run_dir: Path) -> int:
    """Optimiser steps until 90% of the bits are right, from a chaotic start."""
    train = [Experience(flip_flop(64 * 340, seed), 0, 0, (0, 1))]
    test = [Experience(flip_flop(256, 99), 0, 0, (0, 1), "test")]

    def network(D: int) -> LeakyRNN:
        made = LeakyRNN(D, hidden=64)
        with torch.no_grad():
            made.hh[0].weight.normal_(std=1.5 / 8)
        return made

    clplat.fit(
        TemporalConsistency(strength=strength),
        Scenario(Spec((25, 3), 3, "domain", target="bits"), train, test),
        network,
        trainer=TrainerSettings(max_epochs=1, batch_size=64, progress="none"),
        evaluation=EvalSettings(every=20, batch_size=256),
        seed=seed,
        run_dir=run_dir,
    )
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    solved = [line["step"] for line in lines if line["event"] == "look" and line["accuracy"][0] > 0.9]
    return min(solved, default=10_000)


@pytest.mark.slow
def test_a_flip_flop_is_solved_in_fewer_steps(tmp_path: Path) -> None:
    steps = {
        strength: sorted(steps_until_solved(strength, seed, tmp_path / f"{strength} {seed}") for seed in (1, 2, 3))
        for strength in (0.0, 3.0)
    }
    assert steps[3.0][1] <= steps[0.0][1] - 40


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(UsageError, match="strength"):
        TemporalConsistency(strength=-1)
    with pytest.raises(UsageError, match="needs steps"):
        built("split-digits")
