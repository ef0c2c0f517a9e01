"""Valid prediction time and Lyapunov exponents where both can be worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from clplat.metrics.dynamics import largest_lyapunov_exponent, valid_prediction_time


def by_hand(predicted, true, deviation, interval, lyapunov, threshold) -> list[float]:
    found = []
    for one, other in zip(predicted.tolist(), true.tolist(), strict=True):
        steps = 0
        for a, b in zip(one, other, strict=True):
            squares = [((p - q) / d) ** 2 for p, q, d in zip(a, b, deviation.tolist(), strict=True)]
            if not math.sqrt(sum(squares) / len(squares)) < threshold:
                break
            steps += 1
        found.append(steps * interval * lyapunov)
    return found


def test_vpt_counts_the_steps_before_the_first_failure() -> None:
    source = torch.Generator().manual_seed(0)
    true = torch.randn(20, 15, 3, generator=source)
    grows = torch.linspace(0, 1.5, 15)[:, None]
    predicted = true + grows * torch.randn(20, 15, 3, generator=source)
    deviation = torch.tensor([1.0, 2.0, 0.5])
    found = valid_prediction_time(predicted, true, deviation, interval=0.1, lyapunov=2.0, threshold=0.5)
    expected = by_hand(predicted, true, deviation, 0.1, 2.0, 0.5)
    assert found.tolist() == pytest.approx(expected)
    assert len(set(expected)) > 3


def test_a_forecast_that_comes_back_is_over_and_one_that_is_no_number_never_valid() -> None:
    true = torch.zeros(3, 4, 1)
    predicted = torch.tensor([[0.0, 0.9, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0], [math.nan, 0.0, 0.0, 0.0]])[..., None]
    found = valid_prediction_time(predicted, true, torch.ones(1), interval=1, lyapunov=1, threshold=0.5)
    assert found.tolist() == [1, 4, 0]


def test_the_exponent_of_linear_maps_is_that_of_their_largest_eigenvalue() -> None:
    turned = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64))[0]
    matrix = turned @ torch.diag(torch.tensor([0.5, 1.2, 0.9], dtype=torch.float64)) @ turned.T
    source = torch.Generator().manual_seed(0)
    begin = torch.zeros(4, 3, dtype=torch.float64)
    found = largest_lyapunov_exponent(lambda x: x @ matrix, begin, interval=0.5, steps=200, source=source)
    assert found == pytest.approx(math.log(1.2) / 0.5, rel=1e-6)


def test_the_exponent_of_the_doubling_map_is_ln_2() -> None:
    begin = torch.rand(50, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    logistic = lambda x: 4 * x * (1 - x)  # noqa: E731 - conjugate to the doubling map
    found = largest_lyapunov_exponent(logistic, begin, interval=1, steps=2000, source=torch.Generator().manual_seed(1))
    assert found == pytest.approx(math.log(2), abs=0.02)
