"""The Sinkhorn divergence, against assignments that are solved exactly and against what theory says of it."""

from __future__ import annotations

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from clplat.metrics.transport import sinkhorn_divergence


def points(n: int, seed: int, dim: int = 3) -> Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("seed", range(3))
def test_with_a_small_blur_it_is_the_cost_of_the_best_assignment(seed: int) -> None:
    x, y = points(8, seed), points(8, 10 + seed) + 0.5
    cost = torch.cdist(x, y).square() / 2
    rows, columns = linear_sum_assignment(cost.numpy())
    exact = cost[rows, columns].mean().item()
    assert sinkhorn_divergence(x, y, blur=0.02, scaling=0.9).item() == pytest.approx(exact, rel=0.01)
    assert sinkhorn_divergence(x, y, blur=3.0).item() < 0.8 * exact  # much blur sees little


def test_a_shift_costs_half_its_square_whatever_the_blur() -> None:
    x, shift = points(20, 0), torch.tensor([1.0, -2.0, 0.5]).double()
    for blur in (0.2, 1.0, 3.0):
        found = sinkhorn_divergence(x, x + shift, blur=blur, scaling=0.9).item()
        assert found == pytest.approx(shift.square().sum().item() / 2, rel=1e-3)


def test_it_is_zero_for_equal_sets_in_any_order_and_symmetric() -> None:
    x, y = points(12, 0), points(9, 1)
    assert sinkhorn_divergence(x, x.flip(0)).item() == pytest.approx(0, abs=1e-6)
    assert sinkhorn_divergence(x, y).item() == pytest.approx(sinkhorn_divergence(y, x).item(), rel=1e-9)
    assert sinkhorn_divergence(x, y).item() > 0.01


def test_its_gradient_is_that_of_finite_differences_in_both_sets() -> None:
    x, y = points(5, 0, 2).requires_grad_(), points(6, 1, 2).requires_grad_()

    def value(x: Tensor, y: Tensor) -> Tensor:
        return sinkhorn_divergence(x, y, blur=1.0, scaling=0.99)

    found = torch.autograd.grad(value(x, y), (x, y))
    for which, gradient in enumerate(found):
        for place in ((0, 0), (3, 1)):
            step = torch.zeros_like(gradient)
            step[place] = 1e-4
            moved = [value(*((x + s * step, y) if which == 0 else (x, y + s * step))).item() for s in (1, -1)]
            assert (moved[0] - moved[1]) / 2e-4 == pytest.approx(gradient[place].item(), abs=1e-4)
