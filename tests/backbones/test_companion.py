"""Companion systems: the form by FFT against the loop, the loop against matrices, and autoregressions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from clplat.backbones.ops.companion import advance, companion_fft, companion_loop, reciprocal, reciprocal_loop
from clplat.backbones.ops.linear_system import system_loop

from .helpers import TOLERANCE, assert_close, inputs

B, D = 2, 3
dtypes = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["fp64", "fp32"])


def case(N: int, T: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """u, x, a, B, C with |a|_1 = 1."""
    shapes = [(B, T, D), (B, D, N), (D, N), (D, N), (D, N)]
    u, x, a, write, read = (inputs(*shape, seed=seed, dtype=dtype) for seed, shape in enumerate(shapes))
    return [u, x, a / a.abs().sum(-1, keepdim=True), write, read]


def matrix(a_DN: Tensor) -> Tensor:
    """The companion matrices (D, N, N), entry by entry."""
    D, N = a_DN.shape
    A = torch.zeros(D, N, N, dtype=a_DN.dtype)
    for i in range(N):
        A[:, i, N - 1] = a_DN[:, i]
        if i:
            A[:, i, i - 1] += 1
    return A


@dtypes
@pytest.mark.parametrize("T", [1, 2, 5, 8, 40])
@pytest.mark.parametrize("N", [1, 2, 5, 8])
def test_fft_equals_loop(N: int, T: int, dtype: torch.dtype) -> None:
    results = []
    for form in (companion_fft, companion_loop):
        leaves = [leaf.clone().requires_grad_() for leaf in case(N, T, dtype)]
        outputs = form(*leaves)
        loss = sum((out * inputs(*out.shape, seed=7 + i, dtype=dtype)).sum() for i, out in enumerate(outputs))
        results.append([*outputs, *torch.autograd.grad(loss, leaves)])
    for ours, naive in zip(*results, strict=True):
        assert_close(ours, naive, TOLERANCE[dtype])


@pytest.mark.parametrize("N", [1, 2, 5])
def test_loop_is_the_system_with_the_companion_matrix(N: int) -> None:
    u, x, a, write, read = case(N, 9)
    assert_close(advance(x, a), torch.einsum("dij,bdj->bdi", matrix(a), x), 1e-12)
    y, last = companion_loop(u, x, a, write, read)
    y_dense, last_dense = system_loop(u, x, matrix(a), write, read[:, None])
    assert_close(y, y_dense.squeeze(-1), 1e-12)
    assert_close(last, last_dense, 1e-12)


@pytest.mark.parametrize("T", [1, 2, 7, 64])
def test_reciprocal_equals_loop(T: int) -> None:
    _, _, a, _, _ = case(4, T)
    assert_close(reciprocal(a.T, T), reciprocal_loop(a.T, T), 1e-12)
    golden = reciprocal(torch.ones(2, 1, dtype=torch.float64), 10).flatten()
    assert_close(golden, torch.tensor([1.0, 1, 2, 3, 5, 8, 13, 21, 34, 55]).double(), 1e-10)


def test_a_shift_holds_the_last_inputs_and_is_an_autoregression() -> None:
    u = inputs(1, 12, 1)
    first = torch.tensor([[1.0, 0, 0, 0]], dtype=torch.float64)
    weights = torch.tensor([[0.5, -0.2, 0.1, 0.3]], dtype=torch.float64)
    y, last = companion_fft(u, torch.zeros(1, 1, 4).double(), 0 * first, first, weights)
    assert_close(last.flatten(), u[0, -4:, 0].flip(0), 1e-12)
    for t in range(4, 12):
        assert_close(y[0, t, 0], (weights[0] * u[0, t - 3 : t + 1, 0].flip(0)).sum(), 1e-12)


def test_long_sequences_stay_accurate() -> None:
    """|a|_1 = 1 keeps the series of the reciprocal at most 1, so rounding does not grow with T."""
    u, x, a, write, read = case(16, 2000, torch.float32)
    y, last = companion_fft(u, x, a, write, read)
    y_exact, last_exact = companion_loop(*(v.double() for v in (u, x, a, write, read)))
    assert_close(y.double(), y_exact, 1e-5)
    assert_close(last.double(), last_exact, 1e-5)
    assert reciprocal(a.T, 2000).abs().max() <= 1 + 1e-5
