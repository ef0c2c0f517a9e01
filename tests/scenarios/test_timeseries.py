"""Autoregressive moving averages and sums of sines: their known moments, and the best forecast there can be."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest
import torch

import clplat
from clplat import optim
from clplat.backbones.rnn.gru import GRU
from clplat.errors import UsageError
from clplat.scenarios.timeseries import ArmaRegimes, Sines
from clplat.settings import TrainerSettings
from tests.scenarios.streams import build


def nrmse(predicted: np.ndarray, y: np.ndarray) -> float:
    return math.sqrt(((predicted - y) ** 2).sum() / ((y - y.mean()) ** 2).sum())


def lagged(data, order: int) -> tuple[np.ndarray, np.ndarray]:
    """For each step from the ``order``-th on: the last ``order`` inputs, and the target."""
    x, y = data.x[..., 0].double().numpy(), data.y[..., 0].double().numpy()
    rows = np.stack([x[:, t - order + 1 : t + 1] for t in range(order - 1, x.shape[1])], 1)
    return rows.reshape(-1, order), y[:, order - 1 :].reshape(-1)


def linear_forecast(train, test, order: int) -> float:
    """nrmse on one experience of the best linear forecast of another from its last values."""
    weights = np.linalg.lstsq(*lagged(train, order), rcond=None)[0]
    past, y = lagged(test, order)
    return nrmse(past @ weights, y)


def autocovariance(phi: list[float], theta: list[float], lags: int) -> list[float]:
    """Of an ARMA process with unit noise, from its power spectrum on a fine grid of frequencies."""
    w = np.linspace(0, 2 * np.pi, 4096, endpoint=False)
    ar = 1 - sum(c * np.exp(-1j * w * (k + 1)) for k, c in enumerate(phi))
    ma = 1 + sum(c * np.exp(-1j * w * (k + 1)) for k, c in enumerate(theta))
    spectrum = np.abs(ma / ar) ** 2
    return [float((spectrum * np.cos(w * lag)).mean()) for lag in range(lags)]


@pytest.mark.parametrize(("p", "q"), [(2, 1), (1, 0), (0, 2), (3, 3)])
def test_arma_has_the_autocovariance_of_its_coefficients(p: int, q: int) -> None:
    scenario = ArmaRegimes(
        2, experiences=3, autoregressive=p, moving_average=q, strength=0.7, samples=800, length=100, test_samples=4
    )
    for regime, experience in enumerate(scenario.train_stream):
        phi, theta = (row[0].tolist() for row in scenario.coefficients[regime])
        expected = autocovariance(phi, theta, 5)
        z = scenario.simulate(regime, 3000, 40, torch.Generator().manual_seed(regime))[..., 0]
        for lag in range(5):
            found = float((z[:, : 40 - lag] * z[:, lag:]).mean())
            assert abs(found - expected[lag] / expected[0]) < 0.05
        assert abs(float(experience.dataset.x.std()) - 1) < 0.1


def test_arma_steps_obey_their_equation() -> None:
    """What is left of z after its own past is a moving average of white noise: nothing beyond q steps."""
    scenario = ArmaRegimes(0, experiences=2, samples=2000, length=40, test_samples=4)
    for regime, experience in enumerate(scenario.train_stream):
        phi = scenario.coefficients[regime][0][0].numpy()
        z = experience.dataset.x[..., 0].double().numpy()
        rest = z[:, 2:] - phi[0] * z[:, 1:-1] - phi[1] * z[:, :-2]
        variance = (rest**2).mean()
        assert abs((rest[:, 1:] * rest[:, :-1]).mean()) / variance < 0.6
        for lag in (2, 3, 7):
            assert abs((rest[:, lag:] * rest[:, :-lag]).mean()) / variance < 0.02


@pytest.mark.parametrize("horizon", [1, 3])
def test_a_long_linear_forecast_comes_to_the_floor_and_not_below(horizon: int) -> None:
    scenario = ArmaRegimes(3, experiences=3, samples=1500, test_samples=1500, strength=0.8, horizon=horizon)
    for regime, floor in enumerate(scenario.floors):
        assert floor is not None
        train, test = scenario.train_stream[regime].dataset, scenario.test_stream[regime].dataset
        assert floor - 0.02 < linear_forecast(train, test, 24) < floor + 0.04


def test_another_regime_needs_another_forecast() -> None:
    scenario = ArmaRegimes(0, experiences=3)
    own, others = [], []
    for i, train in enumerate(scenario.train_stream):
        for j, test in enumerate(scenario.test_stream):
            (own if i == j else others).append(linear_forecast(train.dataset, test.dataset, 8))
    assert np.mean(others) > np.mean(own) + 0.2


def test_hidden_states_switch_as_often_as_they_are_asked_to() -> None:
    scenario = ArmaRegimes(0, experiences=1, states=2, stay=0.9, autoregressive=1, moving_average=0, samples=2000)
    phi = scenario.coefficients[0][0][:, 0].numpy()
    scale = scenario.scales[0].numpy()
    z = scenario.simulate(0, 2000, 60, torch.Generator().manual_seed(0))[..., 0].numpy()
    # Which state a step was in shows where the two noises, seen from either state, are of very different likelihood.
    left = [-0.5 * ((z[:, 1:] - phi[s] * z[:, :-1]) / scale[s]) ** 2 - np.log(scale[s]) for s in (0, 1)]
    sure = np.abs(left[0] - left[1]) > 3
    state = (left[1] > left[0]).astype(int)
    both = sure[:, 1:] & sure[:, :-1]
    assert both.sum() > 500
    stays = (state[:, 1:] == state[:, :-1])[both].mean()
    assert 0.75 < stays < 0.99
    assert 0.05 < state[sure].mean() < 0.95
    assert scenario.floors == [None]


def test_strength_keeps_processes_stationary() -> None:
    scenario = ArmaRegimes(
        5, experiences=20, autoregressive=4, moving_average=3, strength=0.95, samples=2, test_samples=2
    )
    for phi, theta in scenario.coefficients:
        for row, sign in ((phi[0], 1), (theta[0], -1)):
            roots = np.roots([1, *(-sign * row.numpy())])
            assert np.abs(roots).max() < 1


@pytest.mark.parametrize("waves", [1, 2])
def test_sines_follow_the_recursion_of_their_frequencies(waves: int) -> None:
    scenario = Sines(4, experiences=3, waves=waves)
    assert len(set(scenario.frequencies.flatten().tolist())) == 3 * waves
    assert ((scenario.frequencies > 0) & (scenario.frequencies < math.pi)).all()
    for regime, experience in enumerate(scenario.train_stream):
        factors = [np.array([1, -2 * math.cos(w), 1]) for w in scenario.frequencies[regime].tolist()]
        recursion = functools.reduce(np.convolve, factors)
        # The recursion is of what oscillates; standardising has moved it by a constant.
        level = -float(scenario.mean_D[0] / scenario.deviation_D[0])
        for row in experience.dataset.x[:20, :, 0].double().numpy() - level:
            assert np.abs(np.convolve(row, recursion, "valid")).max() < 1e-4
    assert torch.equal(experience.dataset.y[:, :-1], experience.dataset.x[:, 1:])


def test_a_linear_forecast_is_perfect_in_its_own_experience_and_useless_in_others() -> None:
    scenario = Sines(0, experiences=3)
    for i, train in enumerate(scenario.train_stream):
        for j, test in enumerate(scenario.test_stream):
            error = linear_forecast(train.dataset, test.dataset, 3)
            assert error < 0.01 if i == j else error > 0.1


def test_phases_move_the_wave_by_their_own_angle() -> None:
    scenario = Sines(0, experiences=3, change="phase", setting="task")
    assert scenario.frequencies.shape == (1, 1)
    w = float(scenario.frequencies)
    for regime, experience in enumerate(scenario.train_stream):
        x, y = (t[..., 0].double().numpy() for t in (experience.dataset.x, experience.dataset.y))
        scale_x, scale_y = scenario.deviation_D.tolist()
        shift_x, shift_y = scenario.mean_D.tolist()
        t = np.arange(x.shape[1])
        basis = np.stack([np.sin(w * t), np.cos(w * t)], 1)
        for one, other in zip(x[:10] * scale_x + shift_x, y[:10] * scale_y + shift_y, strict=True):
            (a, b), (c, d) = (np.linalg.lstsq(basis, wave, rcond=None)[0] for wave in (one, other))
            turned = math.remainder(math.atan2(d, c) - math.atan2(b, a) - float(scenario.phases[regime]), 2 * math.pi)
            assert abs(turned) < 1e-3


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("arma-regimes", {"autoregressive": 0, "moving_average": 0}, ["one coefficient"]),
        ("arma-regimes", {"autoregressive": -1, "strength": 1.0}, ["autoregressive=-1", "strength=1.0"]),
        ("arma-regimes", {"states": 0, "stay": 1.5, "samples": 0}, ["states=0", "stay=1.5", "samples=0"]),
        ("sines", {"waves": 0, "length": 0}, ["waves=0", "length=0"]),
        ("sines", {"change": "phase"}, ["scenario.setting=task"]),
        ("sines", {"change": "phase", "setting": "task", "horizon": 2}, ["horizon=2"]),
    ],
)
def test_nonsense_is_refused_all_at_once(name: str, options: dict[str, object], words: list[str]) -> None:
    with pytest.raises(UsageError) as error:
        build(name, **options)
    assert all(word in str(error.value) for word in words)


@pytest.mark.slow
def test_a_network_learns_a_frequency_and_forgets_it_for_another() -> None:
    scenario = Sines(0, experiences=2)
    results = clplat.fit(
        "naive", scenario, lambda D: GRU(D, hidden=32), optimizer=functools.partial(optim.adam, lr=5e-3),
        trainer=TrainerSettings(max_epochs=10, progress="none", accelerator="cpu"),
    )  # fmt: skip
    R = results["matrix"]
    assert R[0][0] < 0.4
    assert R[1][0] > 0.8  # a constant guess has 1
