"""Forecasts in closed loop: of networks that know the system, and of ones that know nothing."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from clplat.backbones.rnn.gru import GRU
from clplat.errors import UsageError
from clplat.metrics.probes import base
from clplat.metrics.probes.valid_prediction_time import ValidPredictionTime, forecast
from clplat.probing import make
from clplat.scenarios.chaos import Lorenz96
from clplat.scenarios.timeseries import Sines
from tests.metrics.probes.streams import made


class Solver(nn.Module):
    """In the place of a head: the system's own step of what the backbone was given."""

    def __init__(self, scenario: Lorenz96, error: float) -> None:
        super().__init__()
        self.scenario, self.error = scenario, error

    def forward(self, x_NTD: Tensor, task_N: Tensor) -> Tensor:
        state = x_NTD.double() * self.scenario.deviation_D + self.scenario.mean_D
        ahead = self.scenario.step(0)(state.flatten(0, 1)).view_as(state)
        return self.scenario.standardised(ahead) + self.error


def through(learner, scenario: Lorenz96, error: float):
    """A learner that answers with the solver."""
    learner.backbone.forward = lambda x_BTD, state=None, **more: (x_BTD, {})
    learner.head = Solver(scenario, error)
    return learner


def test_a_solver_forecasts_to_the_end_and_a_small_error_grows_with_the_lyapunov_exponent() -> None:
    scenario = Lorenz96(0, experiences=1, length=90, samples=40, test_samples=40)
    found = {}
    for error in (0.0, 1e-2, 1e-4):
        learner = through(made(scenario, lambda D: GRU(D, hidden=4)), scenario, error)
        found[error] = base.take(make("valid-prediction-time", warm_up=2), learner, scenario)
    assert found[0.0]["reached"] > 0.9
    gained = found[1e-4]["lyapunov_times"] - found[1e-2]["lyapunov_times"]
    assert 0.5 * math.log(100) < gained < 2 * math.log(100)
    exponent = scenario.lyapunov_exponent(0)
    assert found[1e-2]["lyapunov_times"] == pytest.approx(found[1e-2]["steps"] * 0.05 * exponent)


def test_the_loop_feeds_predictions_and_never_the_truth() -> None:
    scenario = Sines(0, experiences=2, length=12, samples=16, test_samples=6)
    learner = made(scenario, lambda D: GRU(D, hidden=5))
    data = scenario.test_stream[0].dataset
    with torch.no_grad(), learner.evaluating():
        said, true = forecast(learner, data, 4)
        assert torch.equal(true, data.y[:, 3:].double())
        fed = data.x[:, :4]
        for t in range(said.shape[1]):  # the whole history again at each step, instead of the state
            answer = learner.respond(fed, data.task).logits[:, -1:]
            assert torch.allclose(said[:, t], answer[:, 0].double(), atol=1e-5)
            fed = torch.cat([fed, answer], 1)


def test_a_trained_network_holds_longer_than_an_untrained_one() -> None:
    scenario = Sines(0, experiences=1, length=24, samples=256)
    probe = make("valid-prediction-time", threshold=0.5)
    results = [
        base.take(probe, made(scenario, lambda D: GRU(D, hidden=24), epochs=epochs, lr=1e-2), scenario)
        for epochs in (0, 12)
    ]
    assert results[1]["steps"] > results[0]["steps"] + 1
    assert results[0]["lyapunov_times"] is None
    assert probe.figure(results[1])["data"]


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("sines", {"length": 8}, "more than warm_up=8"),
        ("sines", {"horizon": 2}, "next step"),
        ("mqar", {}, "next step of the sample"),
    ],
)
def test_other_streams_are_refused(name: str, options: dict[str, int], words: str) -> None:
    from tests.scenarios.streams import build

    scenario = build(name, **options)
    learner = made(scenario, lambda D: GRU(D, hidden=4))
    with pytest.raises(UsageError, match=words):
        base.check(make("valid-prediction-time"), learner, scenario)


def test_nonsense_is_refused() -> None:
    with pytest.raises(UsageError) as error:
        ValidPredictionTime(warm_up=0, threshold=0, samples=0)
    assert all(word in str(error.value) for word in ("warm_up=0", "threshold=0", "samples=0"))
