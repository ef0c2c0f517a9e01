"""The pendulum against scipy's solver, its energy, and what was found of it with the paper's own method."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

import clplat
from clplat import optim
from clplat.backbones.mlp import MLP
from clplat.errors import UsageError
from clplat.scenarios.pendulum import Pendulum, PendulumForecast
from clplat.settings import TrainerSettings
from tests.scenarios.streams import build


def field(t: float, state: np.ndarray, damping: float, gravity: float) -> list[float]:
    return [state[1], -damping * state[1] - gravity * math.sin(state[0])]


@pytest.mark.parametrize("setting", ["task", "domain"])
def test_targets_are_the_motion_at_their_times(setting: str) -> None:
    scenario = Pendulum(0, setting=setting, samples=50, test_samples=20)  # type: ignore[arg-type]
    for stream in (scenario.train_stream, scenario.test_stream):
        for e, experience in enumerate(stream):
            t = (experience.dataset.x[:, 0].double().numpy() + 1) * 5
            assert t.min() > 2 * e - 1e-6
            assert t.max() < 2 * (e + 1) + 1e-6
            order = np.argsort(t)
            true = solve_ivp(field, (0, 10), [1, 1], t_eval=t[order], args=(0.05, 9.81), rtol=1e-9, atol=1e-9).y.T
            ours = experience.dataset.y.double().numpy()[order] * [1, math.sqrt(9.81)]
            assert np.abs(true - ours).max() < 1e-4
            assert experience.task_label == (e if setting == "task" else 0)


def test_what_the_parameters_say() -> None:
    scenario = Pendulum(0, experiences=2, time=3.0, damping=0.4, angle=-0.5, velocity=0.0, samples=30, test_samples=5)
    data = scenario.train_stream[0].dataset
    t = (data.x[:, 0].double().numpy() + 1) * 1.5
    order = np.argsort(t)
    true = solve_ivp(field, (0, 3), [-0.5, 0], t_eval=t[order], args=(0.4, 9.81), rtol=1e-9, atol=1e-9).y.T
    assert np.abs(true[:, 0] - data.y[order, 0].numpy()).max() < 1e-4


@pytest.mark.parametrize("change", ["gravity", "damping"])
def test_forecasts_are_of_the_equation(change: str) -> None:
    scenario = PendulumForecast(1, change=change, samples=8, test_samples=4)  # type: ignore[arg-type]
    for regime, experience in enumerate(scenario.train_stream):
        args = scenario.dampings[regime], scenario.gravities[regime]
        deviation, mean = scenario.deviation_D.numpy(), scenario.mean_D.numpy()
        for x, y in zip(experience.dataset.x.double().numpy(), experience.dataset.y.double().numpy(), strict=True):
            times = np.arange(33) * 0.1
            true = solve_ivp(
                field, (0, 3.2), x[0] * deviation + mean, t_eval=times, args=args, rtol=1e-9, atol=1e-9
            ).y.T
            assert np.abs(true[:-1] - (x * deviation + mean)).max() < 1e-3
            assert np.abs(true[1:] - (y * deviation + mean)).max() < 1e-3
    assert len(set(scenario.gravities)) == (3 if change == "gravity" else 1)
    assert len(set(scenario.dampings)) == (3 if change == "damping" else 1)


def test_without_damping_the_energy_stays_and_with_it_falls() -> None:
    scenario = PendulumForecast(0, experiences=2, change="damping", damping=0.0, last_damping=0.5, length=60)
    for regime in (0, 1):
        paths = scenario.simulate(regime, 20, 60, torch.Generator().manual_seed(0))
        energy = 0.5 * paths[..., 1].square() + 9.81 * (1 - paths[..., 0].cos())
        if regime == 0:
            assert torch.allclose(energy, energy[:, :1].expand_as(energy), rtol=1e-4)
        else:
            assert (energy.diff(dim=1) < 1e-6).all()
            assert (energy[:, -1] < 0.3 * energy[:, 0]).all()
        assert paths[..., 0].abs().max() < math.pi  # never over the top


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("pendulum", {"experiences": 0, "samples": 0, "time": 0.0}, ["experiences=0", "samples=0", "time=0.0"]),
        ("pendulum", {"damping": -0.1}, ["damping=-0.1"]),
        ("pendulum-forecast", {"gravity": 0.0, "length": 0}, ["gravity=0.0", "length=0"]),
        ("pendulum-forecast", {"change": "damping", "last_damping": -1.0}, ["-1.0"]),
    ],
)
def test_nonsense_is_refused_all_at_once(name: str, options: dict[str, object], words: list[str]) -> None:
    with pytest.raises(UsageError) as error:
        build(name, **options)
    assert all(word in str(error.value) for word in words)


@pytest.mark.slow
def test_the_papers_method_keeps_more_of_the_motion_than_plain_training() -> None:
    """One function over four consecutive intervals: the mean error over all of them at the end."""
    found = {}
    for strategy in ("naive", "mfcl"):
        results = clplat.fit(
            strategy, Pendulum(0, experiences=4, time=8.0), lambda D: MLP(D, hidden=64),
            optimizer=functools.partial(optim.adam, lr=5e-3),
            trainer=TrainerSettings(max_epochs=40, progress="none", accelerator="cpu"),
        )  # fmt: skip
        R = results["matrix"]
        assert R[0][0] < 0.2
        found[strategy] = results["summary"]["ACC"]
    assert found["mfcl"] < 0.5 * found["naive"]
