"""Kernels of state spaces: each form against its loop, the loops and matrices against what is known of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from clplat.backbones.ops.fft_convolution import convolution_loop, fft_convolution
from clplat.backbones.ops.hippo import bilinear, diagonal_frequencies, legs, legs_normal, zero_order_hold
from clplat.backbones.ops.linear_system import (
    complexes,
    diagonal_response,
    diagonal_scan,
    diagonal_system_loop,
    in_parts,
    pairs,
    powers,
    powers_loop,
    respond,
    response,
    system_loop,
)
from clplat.backbones.ops.selective_scan import selective_scan, selective_scan_loop

from .helpers import TOLERANCE, assert_close, inputs

B, D, N, M = 2, 3, 4, 2
dtypes = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["fp64", "fp32"])
lengths = pytest.mark.parametrize("T", [1, 2, 7, 8, 33])


def same(forms: list[Callable[..., tuple[Tensor, ...]]], leaves: list[Tensor]) -> None:
    """Both forms give the same values and the same gradients of a random function of them."""
    results = []
    for form in forms:
        given = [leaf.clone().requires_grad_() for leaf in leaves]
        outputs = form(*given)
        loss = sum((out * inputs(*out.shape, seed=70 + i, dtype=out.dtype)).sum() for i, out in enumerate(outputs))
        results.append([*outputs, *torch.autograd.grad(loss, given)])
    for ours, naive in zip(*results, strict=True):
        assert_close(ours, naive, TOLERANCE[leaves[0].dtype])


def resets(T: int, probability: float | None) -> Tensor | None:
    return None if probability is None else torch.rand(B, T, generator=torch.Generator().manual_seed(6)) < probability


# convolution


@dtypes
@lengths
@pytest.mark.parametrize("L", [1, 5, 50])
def test_fft_convolution_equals_loop(T: int, L: int, dtype: torch.dtype) -> None:
    leaves = [inputs(B, T, D, 1, seed=1, dtype=dtype), inputs(L, D, M, seed=2, dtype=dtype)]
    same([lambda *a: (fft_convolution(*a),), lambda *a: (convolution_loop(*a),)], leaves)


def test_convolution_by_hand() -> None:
    u, kernel = torch.tensor([1.0, 2, 3, 4]).double(), torch.tensor([1.0, 10]).double()
    for form in (fft_convolution, convolution_loop):
        y = form(u[None, :, None], kernel[:, None])
        assert_close(y.flatten(), torch.tensor([1.0, 12, 23, 34]).double(), 1e-12)


# matrices


def test_legs_by_hand() -> None:
    A, B_N = legs(3)
    expected = -torch.tensor([[1, 0, 0], [3**0.5, 2, 0], [5**0.5, 15**0.5, 3]], dtype=torch.float64)
    assert_close(A, expected, 1e-12)
    assert_close(B_N, torch.tensor([1, 3**0.5, 5**0.5], dtype=torch.float64), 1e-12)
    # dissipative: the symmetric part is -(I + B B')/2
    assert_close(A + A.mT, -(torch.eye(3) + B_N[:, None] * B_N), 1e-12)


def test_legs_holds_legendre_coefficients_of_the_past() -> None:
    """x' = A x + B u holds u(t - s) against exp(-s) in the polynomials P_n(2 exp(-s) - 1), orthonormal there: of u = t
    the mean is t - 1, since the mean of s is 1, and the next coefficient is that of -s = log(z), by quadrature."""
    A, B_N = legs(6)
    assert_close(torch.linalg.solve(A, -B_N), torch.eye(6, dtype=torch.float64)[0], 1e-10)  # of a constant
    behind = torch.linalg.solve(A, torch.eye(6, dtype=torch.float64)[0])  # of u = t less t
    z = (torch.arange(200000, dtype=torch.float64) + 0.5) / 200000
    assert_close(behind[0], torch.tensor(-1.0).double(), 1e-10)
    assert_close(behind[1], (z.log() * 3**0.5 * (2 * z - 1)).mean(), 1e-4)
    assert_close(behind[2], (z.log() * 5**0.5 * (6 * z * z - 6 * z + 1)).mean(), 1e-4)


def test_normal_part_of_legs() -> None:
    A, B_N = legs(8)
    f, V = legs_normal(8)
    normal = A + B_N[:, None] * B_N / 2
    assert (f > 0).all()
    assert_close(2 * ((V * (-0.5 + 1j * f)) @ V.mH).real, normal, 1e-10)
    assert torch.equal(diagonal_frequencies("legs", 8), f)


def test_frequencies_by_hand() -> None:
    assert_close(diagonal_frequencies("lin", 6), math.pi * torch.tensor([0.0, 1, 2]).double(), 1e-12)
    assert_close(diagonal_frequencies("inv", 4), torch.tensor([3, 1 / 3]).double() * 4 / math.pi, 1e-6)


def test_bilinear_is_the_papers_formula_and_second_order() -> None:
    A, B_N = legs(4)
    dt = torch.tensor([0.1, 0.05], dtype=torch.float64)
    A_d, B_d = bilinear(A, B_N, dt)
    one = torch.eye(4, dtype=torch.float64)
    for d in range(2):
        inverse = torch.linalg.inv(one - dt[d] / 2 * A)
        assert_close(A_d[d], inverse @ (one + dt[d] / 2 * A), 1e-12)
        assert_close(B_d[d], dt[d] * inverse @ B_N, 1e-12)
        assert torch.linalg.matrix_norm(A_d[d], 2) <= 1 + 1e-12
    errors = [(A_d[d] - torch.linalg.matrix_exp(dt[d] * A)).norm() for d in range(2)]
    assert 6 < errors[0] / errors[1] < 10  # halving dt divides the error of one step by 8


@pytest.mark.parametrize("z", [0, 1e-12, 0.9e-3, 1.1e-3, -0.5 + 3j, -100, -1e5])
def test_zero_order_hold_is_the_integral(z: complex) -> None:
    A = torch.tensor(z / 0.1, dtype=torch.complex128, requires_grad=True)
    a, b = zero_order_hold(A, torch.tensor(0.1, dtype=torch.float64))
    s = (torch.arange(200000, dtype=torch.float64) + 0.5) / 200000
    expected = 0.1 * ((z * s).exp().mean() if abs(z) < 10 else torch.tensor(-1 / z, dtype=torch.float64))
    assert abs(a.item() - torch.tensor(z, dtype=torch.complex128).exp().item()) < 1e-12
    assert abs(b.item() - expected.item()) <= 1e-9 * abs(expected.item())
    (gradient,) = torch.autograd.grad(b.real, A)
    assert torch.isfinite(torch.view_as_real(gradient)).all()


# linear systems


def dense(dtype: torch.dtype) -> list[Tensor]:
    """h, A, B, C with A of norm 0.9."""
    A = inputs(D, N, N, seed=3, dtype=dtype)
    A = 0.9 * A / torch.linalg.matrix_norm(A, 2)[:, None, None]
    return [
        inputs(B, D, N, seed=2, dtype=dtype),
        A,
        inputs(D, N, seed=4, dtype=dtype),
        inputs(D, M, N, seed=5, dtype=dtype),
    ]


@dtypes
@lengths
def test_response_equals_loop(T: int, dtype: torch.dtype) -> None:
    leaves = [inputs(B, T, D, dtype=dtype), *dense(dtype)]
    same([lambda u, h, *abc: respond(u, h, response(*abc, T)), system_loop], leaves)
    u, h, *abc = leaves
    for ours, naive in zip(respond(u, None, response(*abc, T)), system_loop(u, 0 * h, *abc), strict=True):
        assert_close(ours, naive, TOLERANCE[dtype])


@pytest.mark.parametrize("part", [1, 4, 64])
def test_parts_equal_the_loop(part: int) -> None:
    leaves = [inputs(B, 13, D), *dense(torch.float64)]
    same([lambda u, h, *abc: in_parts(u, h, partial(response, *abc), part), system_loop], leaves)


@lengths
def test_powers_equal_loop(T: int) -> None:
    _, A, _, C = dense(torch.float64)
    assert_close(powers(A, C.mT, T), powers_loop(A, C.mT, T), 1e-12)


def diagonal_case(dtype: torch.dtype) -> list[Tensor]:
    """h, and real pairs of a, b and c, with |a| < 1."""
    r, angle = inputs(D, N, seed=3, dtype=dtype).sigmoid(), inputs(D, N, seed=4, dtype=dtype)
    a = pairs(torch.polar(r, angle))
    return [inputs(B, D, 2 * N, seed=2, dtype=dtype), a, *(inputs(D, 2 * N, seed=s, dtype=dtype) for s in (5, 6))]


@dtypes
@lengths
def test_diagonal_response_equals_loop(T: int, dtype: torch.dtype) -> None:
    def by_convolution(u: Tensor, h: Tensor, *abc: Tensor) -> tuple[Tensor, Tensor]:
        y, h = respond(u, h, diagonal_response(*map(complexes, abc), T))
        return y.squeeze(-1), h

    def loop(u: Tensor, h: Tensor, *abc: Tensor) -> tuple[Tensor, Tensor]:
        return diagonal_system_loop(u, h, *map(complexes, abc))

    same([by_convolution, loop], [inputs(B, T, D, dtype=dtype), *diagonal_case(dtype)])


@dtypes
@pytest.mark.parametrize("probability", [None, 0.2, 1.1])
@pytest.mark.parametrize(("T", "chunk"), [(1, 4), (7, 4), (8, 4), (13, 1), (13, 64)])
def test_diagonal_scan_equals_loop(T: int, chunk: int, probability: float | None, dtype: torch.dtype) -> None:
    reset_BT, mask_BT = resets(T, probability), torch.rand(B, T, generator=torch.Generator().manual_seed(7)) < 0.7

    def scan(u: Tensor, h: Tensor, *abc: Tensor) -> tuple[Tensor, ...]:
        y, h = diagonal_scan(u, h, *map(complexes, abc), reset_BT, mask_BT, chunk)
        return y[mask_BT], h

    def loop(u: Tensor, h: Tensor, *abc: Tensor) -> tuple[Tensor, ...]:
        y, h = diagonal_system_loop(u, h, *map(complexes, abc), reset_BT, mask_BT)
        return y[mask_BT], h

    same([scan, loop], [inputs(B, T, D, dtype=dtype), *diagonal_case(dtype)])


def test_a_diagonal_system_is_a_system() -> None:
    """The complex diagonal form against real rotations and shrinkings of pairs."""
    h, a, b, c = diagonal_case(torch.float64)
    u = inputs(B, 9, D)
    za, zb, zc = map(complexes, (a, b, c))
    A = torch.cat(
        [
            torch.cat([za.real.diag_embed(), -za.imag.diag_embed()], -1),
            torch.cat([za.imag.diag_embed(), za.real.diag_embed()], -1),
        ],
        -2,
    )
    C = torch.cat([2 * zc.real, -2 * zc.imag], -1)[:, None]
    y, last = system_loop(u, h, A, pairs(zb), C)
    y_diagonal, last_diagonal = diagonal_system_loop(u, h, za, zb, zc)
    assert_close(y_diagonal, y.squeeze(-1), 1e-12)
    assert_close(last_diagonal, last, 1e-12)


# selective scan


def decay_of(A: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda s, k: (s * A).exp()


@dtypes
@pytest.mark.parametrize("probability", [None, 0.0, 0.2, 1.1])
@pytest.mark.parametrize(("T", "chunk"), [(1, 4), (7, 4), (8, 4), (13, 1), (13, 64), (75, 32)])
def test_selective_scan_equals_loop(T: int, chunk: int, probability: float | None, dtype: torch.dtype) -> None:
    reset_BT = resets(T, probability)
    x, s = inputs(B, T, D, dtype=dtype), inputs(B, T, D, seed=2, dtype=dtype).exp()
    s = s.masked_fill(torch.rand(B, T, 1, generator=torch.Generator().manual_seed(7)) < 0.2, 0)
    k, q, h = (inputs(*shape, seed=3, dtype=dtype) for shape in ((B, T, N), (B, T, N), (B, D, N)))
    A = -inputs(D, N, seed=4, dtype=dtype).exp()
    A[0, 0], A[0, 1] = 0, -1e4  # keeps all, forgets all
    same(
        [
            lambda *a: selective_scan(*a[:-1], decay_of(a[-1]), reset_BT, chunk),
            lambda *a: selective_scan_loop(*a[:-1], decay_of(a[-1]), reset_BT),
        ],
        [x, s, k, q, h, A],
    )


def test_selective_scan_keeps_the_memory_of_one_chunk() -> None:
    """The tensors that backward keeps: of all T steps nothing with N states in it."""
    T, D, N, kept = 256, 32, 32, []
    x, s, k, q = (inputs(1, T, size, seed=i).requires_grad_() for i, size in enumerate((D, D, N, N)))

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.untyped_storage().nbytes())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        y, _ = selective_scan(x, s, k, q, torch.zeros(1, D, N).double(), decay_of(torch.tensor(-1.0)), chunk=16)
    assert max(kept) <= T * D * N * 8 / 16
    assert torch.isfinite(torch.autograd.grad(y.sum(), x)[0]).all()
