"""Lorenz 1996 and Kuramoto-Sivashinsky: the solvers against scipy's and against what the equations keep."""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp

import clplat
from clplat import optim
from clplat.backbones.rnn.gru import GRU
from clplat.errors import UsageError
from clplat.metrics.dynamics import largest_lyapunov_exponent
from clplat.scenarios.chaos import KuramotoSivashinsky, Lorenz96, etdrk4, path, rk4
from clplat.settings import TrainerSettings
from tests.scenarios.streams import build

SMALL = {"samples": 6, "test_samples": 4, "length": 10}


def exact(field, begin: torch.Tensor, times: list[float]) -> np.ndarray:
    """scipy's solution at times, one row for each."""
    found = solve_ivp(lambda t, x: field(x), (0, times[-1]), begin.numpy(), t_eval=times, rtol=1e-10, atol=1e-10)
    return found.y.T


def lorenz_by_hand(x: np.ndarray, forcing: float) -> np.ndarray:
    K = len(x)
    return np.array([x[k - 1] * (x[(k + 1) % K] - x[k - 2]) - x[k] + forcing for k in range(K)])


def two_scales_by_hand(state: np.ndarray, forcing: float, K: int, J: int) -> np.ndarray:
    x, y = state[:K], state[K:]
    dx = lorenz_by_hand(x, forcing) - np.array([sum(y[k * J : (k + 1) * J]) for k in range(K)])
    n = K * J
    dy = [-100 * y[(j + 1) % n] * (y[(j + 2) % n] - y[j - 1]) - 10 * y[j] + x[j // J] for j in range(n)]
    return np.concatenate([dx, dy])


@pytest.mark.slow
@pytest.mark.parametrize("fast", [0, 3])
def test_lorenz_paths_are_those_of_another_solver(fast: int) -> None:
    scenario = Lorenz96(1, experiences=2, sites=6, fast=fast, **SMALL)
    times = [0.05, 0.1, 0.15, 0.2]  # any two solvers part, e-fold within 0.2 units at the strongest forcing
    for regime in range(2):
        begin = scenario.begin(regime, 2, torch.Generator().manual_seed(0))
        ours = path(scenario.step(regime), begin, 5)[:, 1:]
        for row in range(2):
            forcing = scenario.forcings[regime]
            field = functools.partial(two_scales_by_hand, forcing=forcing, K=6, J=fast)
            field = field if fast else functools.partial(lorenz_by_hand, forcing=forcing)
            assert np.abs(exact(field, begin[row], times) - ours[row].numpy()).max() < 0.02


def test_lorenz_is_of_its_forcing_and_turns_around_the_circle() -> None:
    scenario = Lorenz96(0, experiences=3, **SMALL)
    assert scenario.forcings == (8.0, 12.0, 16.0)
    assert Lorenz96(0, experiences=1, **SMALL).forcings == (8.0,)
    state = scenario.begin(1, 3, torch.Generator().manual_seed(2))
    step = scenario.step(1)
    assert torch.allclose(step(state.roll(3, 1)), step(state).roll(3, 1), atol=1e-12)
    still = torch.full((1, 8), 12.0, dtype=torch.float64)  # x_k = F is at rest
    assert torch.allclose(step(still), still)


@pytest.mark.parametrize("order", [4])
def test_both_solvers_are_of_fourth_order(order: int) -> None:
    """Half the step has a sixteenth of the error."""
    begin = torch.tensor([[1.0, 0.5, -0.3]], dtype=torch.float64)
    stiff = torch.tensor([-1.0, -20.0, 0.5], dtype=torch.float64)

    def coupling(x: torch.Tensor) -> torch.Tensor:
        return x.roll(1, -1) * x.roll(-1, -1).sin()

    def end(solver: str, steps: int) -> torch.Tensor:
        dt = 1 / steps
        step = etdrk4(stiff, coupling, dt) if solver == "etdrk4" else rk4(lambda x: stiff * x + coupling(x), dt)
        return path(step, begin, steps + 1)[0, -1]

    for solver in ("rk4", "etdrk4"):
        right = end(solver, 1024)
        errors = [float((end(solver, steps) - right).norm()) for steps in (32, 64)]
        assert abs(math.log2(errors[0] / errors[1]) - order) < 0.5


def ks_by_hand(u: np.ndarray, length: float, viscosity: float) -> np.ndarray:
    """The right-hand side with derivatives by a full complex transform, aliases removed."""
    n = len(u)
    k = 2 * np.pi / length * np.fft.fftfreq(n, 1 / n)
    v, square = np.fft.fft(u), np.fft.fft(u * u)
    square[np.abs(np.fft.fftfreq(n, 1 / n)) >= n / 3] = 0
    return np.fft.ifft(k**2 * v - viscosity * k**4 * v - 0.5j * k * square).real


@pytest.mark.parametrize("change", ["domain", "viscosity"])
def test_kuramoto_paths_are_those_of_another_solver(change: str) -> None:
    scenario = KuramotoSivashinsky(0, experiences=2, change=change, points=48, **SMALL)  # type: ignore[arg-type]
    times = [0.5 * t for t in range(1, 7)]
    for regime in range(2):
        begin = scenario.begin(regime, 1, torch.Generator().manual_seed(0))
        ours = path(scenario.step(regime), begin, 7)[0, 1:]
        length, viscosity = scenario.domains[regime], scenario.viscosities[regime]
        field = functools.partial(ks_by_hand, length=length, viscosity=viscosity)
        found = solve_ivp(lambda t, u: field(u), (0, 3), begin[0].numpy(), method="LSODA", t_eval=times, rtol=1e-9)  # noqa: B023
        assert np.abs(found.y.T - ours.numpy()).max() < 0.02


def test_kuramoto_keeps_its_mean_its_energy_law_and_its_symmetries() -> None:
    scenario = KuramotoSivashinsky(3, experiences=1, **SMALL)
    u = scenario.begin(0, 5, torch.Generator().manual_seed(0))
    assert u.mean(1).abs().max() < 1e-10
    states = path(scenario.step(0), u, 3)
    assert states.mean(-1).abs().max() < 1e-10
    # d/dt of u^2/2 on average is u_x^2 - nu u_xx^2: what long waves bring in and short ones take.
    k = scenario.waves(0)
    v = torch.fft.rfft(states)
    power = v.abs().square() * torch.where((k == 0) | (k == k[-1]), 1, 2) / scenario.points**2
    energy, rate = 0.5 * power.sum(-1), ((k**2 - k**4) * power).sum(-1)
    simpson = (rate[:, 0] + 4 * rate[:, 1] + rate[:, 2]) * scenario.interval / 3
    assert torch.allclose(energy[:, 2] - energy[:, 0], simpson, atol=0.02 * float(energy.mean()))
    step = scenario.step(0)
    assert torch.allclose(step(u.roll(7, 1)), step(u).roll(7, 1), atol=1e-9)
    assert torch.allclose(step(-u.flip(1)), -step(u).flip(1), atol=1e-9)


def test_a_finer_grid_gives_the_same_waves() -> None:
    coarse, fine = (KuramotoSivashinsky(0, experiences=1, points=n, **SMALL) for n in (48, 96))
    u = coarse.begin(0, 2, torch.Generator().manual_seed(0))
    waves = torch.fft.rfft(u)
    waves[:, 16:] = 0
    on_fine = torch.fft.irfft(2 * waves, 96)
    on_coarse = torch.fft.irfft(waves, 48)
    for _ in range(4):
        on_fine, on_coarse = fine.step(0)(on_fine), coarse.step(0)(on_coarse)
    assert (on_fine[:, ::2] - on_coarse).abs().max() < 1e-3


def test_lyapunov_exponents_are_those_of_the_literature() -> None:
    """Lorenz 1996 with 40 sites at F = 8: 1.67 (Lorenz and Emanuel 1998 find a doubling time of 2.1 days of 0.2 units,
    which is 1.65); Kuramoto-Sivashinsky at L = 22: 0.043 to 0.048 (Cvitanovic et al. 2010; Edson et al. 2019)."""
    lorenz = Lorenz96(0, experiences=1, sites=40, **SMALL)
    source = torch.Generator().manual_seed(0)
    begin = lorenz.begin(0, 24, source)
    found = largest_lyapunov_exponent(lorenz.step(0), begin, interval=0.05, steps=400, source=source)
    assert 1.5 < found < 1.85
    waves = KuramotoSivashinsky(0, experiences=1, points=40, **SMALL)
    begin = waves.begin(0, 24, source)
    found = largest_lyapunov_exponent(waves.step(0), begin, interval=0.5, steps=600, source=source)
    assert 0.03 < found < 0.065


@pytest.mark.parametrize("name", ["lorenz96", "kuramoto-sivashinsky"])
def test_targets_go_on_where_samples_end(name: str) -> None:
    scenario = build(name, experiences=1, horizon=3, **SMALL)
    data = scenario.train_stream[0].dataset
    assert torch.equal(data.y[:, :-3], data.x[:, 3:])
    joined = build(name, experiences=2, horizon=2, contiguous=True, **SMALL)
    assert joined.spec.contiguous
    for experience in (*joined.train_stream, *joined.test_stream):
        whole_x, whole_y = experience.dataset.x.flatten(0, 1), experience.dataset.y.flatten(0, 1)
        assert torch.equal(whole_y[:-2], whole_x[2:])


def test_values_are_standardised_by_the_first_experience_alone() -> None:
    three = Lorenz96(0, samples=100, test_samples=4)
    one = Lorenz96(0, experiences=1, samples=100, test_samples=4)
    assert torch.equal(three.train_stream[0].dataset.x, one.train_stream[0].dataset.x)
    x = three.train_stream[0].dataset.x
    assert x.mean((0, 1)).abs().max() < 0.02
    assert (x.std((0, 1)) - 1).abs().max() < 0.02
    assert three.train_stream[2].dataset.x.std() > 1.4


def test_regimes_return_and_are_tested_once() -> None:
    scenario = Lorenz96(0, experiences=5, regimes=2, **SMALL)
    assert len(scenario.test_stream) == 2
    assert scenario.tested == (0, 1, 0, 1, 0)
    assert not torch.equal(scenario.train_stream[0].dataset.x, scenario.train_stream[2].dataset.x)
    labels = [e.task_label for e in Lorenz96(0, experiences=5, regimes=2, setting="task", **SMALL).train_stream]
    assert labels == [0, 1, 0, 1, 0]


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("lorenz96", {"experiences": 0, "length": 0, "sites": 3}, ["experiences=0", "length=0", "sites=3"]),
        ("lorenz96", {"fast": -1, "interval": 0.0, "horizon": 0}, ["fast=-1", "interval=0.0", "horizon=0"]),
        ("lorenz96", {"regimes": 4}, ["regimes=4", "experiences=3"]),
        ("lorenz96", {"samples": 0, "test_samples": 0}, ["samples=0", "test_samples=0"]),
        ("kuramoto-sivashinsky", {"points": 20}, ["points=20", "37 resolve"]),
        ("kuramoto-sivashinsky", {"domain": -1.0, "interval": -1.0}, ["domain", "interval"]),
        ("kuramoto-sivashinsky", {"change": "viscosity", "last_viscosity": 0.0}, ["viscosity"]),
    ],
)
def test_nonsense_is_refused_all_at_once(name: str, options: dict[str, object], words: list[str]) -> None:
    with pytest.raises(UsageError) as error:
        build(name, **options)
    assert all(word in str(error.value) for word in words)


@pytest.mark.slow
def test_a_small_network_forecasts_better_than_repeating_and_notices_the_forcing() -> None:
    scenario = Lorenz96(0, experiences=2)
    results = clplat.fit(
        "naive", scenario, lambda D: GRU(D, hidden=32), optimizer=functools.partial(optim.adam, lr=5e-3),
        trainer=TrainerSettings(max_epochs=12, progress="none", accelerator="cpu"),
    )  # fmt: skip
    R = results["matrix"]
    data = scenario.test_stream[0].dataset
    repeat = float(((data.x - data.y).square().sum() / (data.y - data.y.mean()).square().sum()).sqrt())
    assert R[0][0] < 0.75 * repeat
    assert R[0][1] > 2 * R[1][1]  # the stronger forcing is another system
