"""Algorithms for regression in context, against each prefix solved on its own with numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from clplat.metrics import regression

SOURCE = torch.Generator().manual_seed(0)
X = torch.randn(3, 9, 4, generator=SOURCE)
W = torch.randn(3, 1, 4, generator=SOURCE)
Y = (W * X).sum(-1) + 0.3 * torch.randn(3, 9, generator=SOURCE)


def each_prefix(predict):
    """Predictions (3, 9) of ``predict(points before, values before, point)``."""
    x, y = X.double().numpy(), Y.double().numpy()
    return [[predict(x[n, :i], y[n, :i], x[n, i]) for i in range(9)] for n in range(3)]


def close(found: torch.Tensor, wanted: list[list[float]]) -> None:
    assert torch.allclose(found, torch.tensor(wanted, dtype=torch.float64), atol=1e-8)


@pytest.mark.parametrize("penalty", [0.09, 2.0])
def test_ridge_is_the_closed_form(penalty: float) -> None:
    close(
        regression.ridge(X, Y, penalty),
        each_prefix(lambda x, y, q: float(q @ np.linalg.solve(x.T @ x + penalty * np.eye(4), x.T @ y))),
    )


def test_least_squares_has_least_norm_while_pairs_are_few() -> None:
    close(regression.least_squares(X, Y), each_prefix(lambda x, y, q: float(q @ np.linalg.lstsq(x, y, rcond=None)[0])))


def test_descent_in_batches_and_one_by_one() -> None:
    def batch(x, y, q):
        w = np.zeros(4)
        for _ in range(3):
            w = w - 0.2 * (x.T @ (x @ w - y)) / max(1, len(x))
        return float(q @ w)

    def online(x, y, q):
        w = np.zeros(4)
        for point, value in zip(x, y, strict=True):
            w = w + 0.1 * (value - w @ point) * point
        return float(q @ w)

    close(regression.gradient_descent(X, Y, 0.2, 3), each_prefix(batch))
    close(regression.online_gradient_descent(X, Y, 0.1), each_prefix(online))


def test_neighbours_are_the_nearest_before() -> None:
    def near(x, y, q):
        order = np.argsort(((x - q) ** 2).sum(1))[:3]
        return float(y[order].mean()) if len(x) else 0.0

    close(regression.nearest_neighbours(X, Y, 3), each_prefix(near))


def test_differences_of_predictions_and_of_weights() -> None:
    a, b = regression.ridge(X, Y, 0.1), regression.least_squares(X, Y)
    wanted = sum((a[n] - b[n]) ** 2 for n in range(3)) / 3
    assert torch.allclose(regression.spd(a, b), wanted)
    queries = torch.randn(3, 20, 4, generator=SOURCE)
    assert torch.allclose(regression.implied_weights((W * queries).sum(-1), queries), W[:, 0].double(), atol=1e-5)
