"""Regression in context: the sequences, what is attainable on them, and which algorithm a network becomes."""

from __future__ import annotations

import pytest
import torch

from clplat.backbones.attention.transformer import Transformer
from clplat.errors import UsageError
from clplat.metrics import regression
from clplat.scenarios.regression import LinearRegression
from tests.scenarios.streams import build
from tests.scenarios.training import trained


@pytest.mark.parametrize("form", ["pairs", "joined"])
def test_sequences_hold_pairs_of_one_linear_function(form: str) -> None:
    scenario = LinearRegression(1, form=form, samples=30, test_samples=20, stream="same", pairs=7)
    for e, experience in enumerate(scenario.test_stream):
        x, y = scenario.problems(e)
        for n, (row, asked) in enumerate(zip(experience.dataset.x, experience.dataset.y[..., 0], strict=True)):
            w = torch.linalg.lstsq(x[n, :6].double(), y[n, :6, None].double()).solution[:, 0]
            assert float(x[n, 6].double() @ w) == pytest.approx(float(y[n, 6]), abs=1e-4)
            for i in range(7):
                last = i == 6
                if form == "pairs":
                    assert row[2 * i].tolist() == [*x[n, i].tolist(), 0.0]
                    assert row[2 * i + 1].tolist() == [0.0] * 4 + [float(y[n, i])]
                    assert float(asked[2 * i]) == float(y[n, i])
                    assert asked[2 * i + 1].isnan()
                else:
                    assert row[i].tolist() == [*x[n, i].tolist(), 0.0 if last else float(y[n, i])]
                    assert asked[i].isnan() or last
            assert form == "pairs" or float(asked[6]) == float(y[n, 6])


def test_errors_of_known_algorithms_are_those_of_theory() -> None:
    scenario = LinearRegression(0, stream="noise", noise=0.5, samples=1, test_samples=4000, pairs=12, spread=1.5)
    for e, noise in enumerate([0.0, 0.25, 0.5]):
        x, y = scenario.problems(e)
        best, ols = regression.ridge(x, y, noise**2 / 1.5**2), regression.least_squares(x, y)
        error = (best - y).square().mean(0)
        assert abs(error[0] - (1.5**2 * 4 + noise**2)) < 0.6
        if noise:
            assert error[-1] < (ols - y).square().mean(0)[-1]
            assert noise**2 < error[-1] < 2 * noise**2
        else:
            assert error[4:].max() < 1e-6
            assert error[3] > 0.1


@pytest.mark.parametrize("stream", ["noise", "covariance", "weights"])
def test_the_optimum_errs_as_much_as_its_own_posterior_says(stream: str) -> None:
    """With pairs X before x the posterior of the weights has covariance ``S = (X^T X / noise^2 + I / spread^2)^-1``,
    whatever their mean, and the prediction errs by ``x^T S x + noise^2`` in the mean."""
    scenario = LinearRegression(0, stream=stream, noise=0.5, spread=1.5, samples=1, test_samples=6000, pairs=6)
    for e in range(1, 3):
        x, y = (part.double() for part in scenario.problems(e))
        error = (scenario.optimum(e) - y).square().mean(0)
        noise = 0.25 * e if stream == "noise" else 0.5
        for i in range(6):
            precision = x[:, :i].mT @ x[:, :i] / noise**2 + torch.eye(4).double() / 1.5**2
            wanted = (x[:, i] * torch.linalg.solve(precision, x[:, i])).sum(-1).mean() + noise**2
            assert abs(error[i] / wanted - 1) < 0.1
        assert error[5] < (regression.least_squares(x, y) - y).square().mean(0)[5]


def test_experiences_differ_in_covariance_or_weights() -> None:
    scenario = LinearRegression(0, samples=1, test_samples=8000, condition=10.0)
    values = [torch.linalg.eigvalsh(torch.cov(scenario.problems(e)[0].flatten(0, 1).T)) for e in range(3)]
    assert (values[0] - 1).abs().max() < 0.05
    for found in values[1:]:
        assert abs(found[-1] / found[0] - 10) < 1
        assert abs(found.mean() - 1) < 0.05
    scenario = LinearRegression(0, stream="weights", samples=1, test_samples=4000)
    for e, length in enumerate([0, 4, 4]):
        x, y = scenario.problems(e)
        mean = torch.linalg.lstsq(x[:, :6], y[:, :6, None]).solution[..., 0].mean(0)
        assert abs(mean.norm() - length) < 0.15


def test_the_second_form_is_the_published_one() -> None:
    scenario = build("icl-linreg", samples=5)
    assert scenario.spec.shape == (41, 6)
    _, y = scenario.problems(0)
    assert abs(y.square().mean() - (5 * 0.2 + 0.01)) < 0.1


@pytest.mark.slow
def test_a_small_transformer_is_nearer_to_least_squares_than_to_a_step_of_descent() -> None:
    """The seed's check without noise, for two dimensions. Measured from four pairs on: squared difference 0.28 to least
    squares, 0.59 to the best of four steps."""
    scenario = LinearRegression(0, experiences=1, stream="same", dim=2, pairs=6, samples=8192)
    network = trained(scenario, lambda D: Transformer(D, dim=32, layers=2, heads=2), epochs=10)
    found = network.answers(scenario.test_stream[0].dataset.x)[:, ::2, 0]
    x, y = scenario.problems(0)
    steps = [regression.gradient_descent(x, y, rate) for rate in (0.25, 0.5, 0.75, 1.0)]
    to_ols = regression.spd(found, regression.least_squares(x, y))[4:].mean()
    assert to_ols < 0.7 * min(regression.spd(found, step)[4:].mean() for step in steps)


@pytest.mark.slow
def test_with_noise_a_small_transformer_is_nearer_to_ridge_than_to_least_squares() -> None:
    """The seed's check with noise as large as the weights, for two dimensions. Measured from four pairs
    on: squared difference 0.33 to ridge, 1.65 to least squares, 1.59 from ridge to 0 (and 0.28 to the best of four
    steps of descent, which shrink as well)."""
    scenario = LinearRegression(0, experiences=1, stream="same", dim=2, pairs=6, noise=1.0, samples=6144)
    network = trained(scenario, lambda D: Transformer(D, dim=32, layers=2, heads=2), epochs=5, batch=64, lr=3e-3)
    found = network.answers(scenario.test_stream[0].dataset.x)[:, ::2, 0]
    best = scenario.optimum(0)
    to_best = regression.spd(found, best)[4:].mean()
    assert to_best < 0.5 * regression.spd(found, regression.least_squares(*scenario.problems(0)))[4:].mean()
    assert to_best < 0.5 * best.square()[:, 4:].mean()  # who always says 0 is further away


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"stream": "noise"}, ["noise=0", "growing noise"]),
        ({"pairs": 1, "dim": 0, "spread": 0}, ["pairs=1", "dim=0", "spread=0"]),
        ({"condition": 0.5, "noise": -1}, ["condition=0.5", "noise=-1"]),
        ({"experiences": 0, "samples": 0, "test_samples": 0}, ["experiences=0", "samples=0", "test_samples=0"]),
    ],
)
def test_nonsense_is_refused(options: dict, words: list[str]) -> None:
    with pytest.raises(UsageError) as error:
        LinearRegression(0, **options)
    assert all(word in str(error.value) for word in words)
