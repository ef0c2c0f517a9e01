"""Newton's method over time: equal to the loop with all gradients, exact when it must be, and quick when it can be."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.autograd.functional import jacobian

from clplat.backbones.ops.newton import blocks, blocks_loop, newton, newton_loop
from clplat.backbones.rnn.diagonal import DiagonalCell, DiagonalGRU, DiagonalLEM, DiagonalLSTM
from clplat.backbones.rnn.lem import LEM

from .helpers import TOLERANCE, assert_close, inputs

B, D = 2, 3
cells = pytest.mark.parametrize("kind", [DiagonalGRU, DiagonalLSTM, DiagonalLEM])
dtypes = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["fp64", "fp32"])


def case(
    kind: type[DiagonalCell], T: int, dtype: torch.dtype, size: float = 1.0
) -> tuple[DiagonalCell, Tensor, Tensor, Tensor, Tensor]:
    """A cell, x, h_0, resets and padding."""
    torch.manual_seed(0)
    cell = kind(D).to(dtype)
    with torch.no_grad():
        cell.weight.copy_(size * inputs(cell.own, D, seed=1, dtype=dtype))
    source = torch.Generator().manual_seed(4)
    reset_BT, mask_BT = (torch.rand((B, T), generator=source) < p for p in (0.2, 0.8))
    x, h = inputs(B, T, cell.gates, D, seed=2, dtype=dtype), inputs(B, cell.states, D, seed=3, dtype=dtype)
    return cell, x, h, reset_BT, mask_BT


@cells
def test_jacobians_are_the_derivatives(kind: type[DiagonalCell]) -> None:
    cell, x, h, _, _ = case(kind, 1, torch.float64)
    found = cell.jacobian(x[0, 0], h[0])
    expected = jacobian(lambda h: cell.step(x[0, 0], h), h[0])  # (S', D', S, D)
    for unit in range(D):
        assert_close(found[..., unit], expected[:, unit, :, unit], 1e-12)
        others = [n for n in range(D) if n != unit]
        assert (expected[:, unit, :, others] == 0).all()


@dtypes
@cells
@pytest.mark.parametrize("kinds", ["", "reset", "mask", "reset+mask"])
@pytest.mark.parametrize(("T", "chunk"), [(1, 4), (7, 4), (13, 5), (13, 1), (75, 32)])
def test_newton_equals_loop(kind: type[DiagonalCell], T: int, chunk: int, kinds: str, dtype: torch.dtype) -> None:
    cell, x, h, reset_BT, mask_BT = case(kind, T, dtype)
    flags = {"reset_BT": reset_BT if "reset" in kinds else None, "mask_BT": mask_BT if "mask" in kinds else None}
    results = []
    for loop in (True, False):
        leaves = [tensor.clone().requires_grad_() for tensor in (x, h)]
        if loop:
            outputs = newton_loop(cell.step, *leaves, **flags)
        else:
            outputs = newton(cell.step, cell.jacobian, *leaves, **flags, chunk=chunk)
        loss = sum((out * inputs(*out.shape, seed=7 + i, dtype=dtype)).sum() for i, out in enumerate(outputs))
        results.append([*outputs, *torch.autograd.grad(loss, [*leaves, cell.weight])])
    for ours, naive in zip(results[1], results[0], strict=True):
        assert_close(ours, naive, TOLERANCE[dtype])


@cells
@pytest.mark.parametrize("size", [5.0, 30.0])
def test_strong_weights_take_more_rounds_and_not_another_result(kind: type[DiagonalCell], size: float) -> None:
    """Where the first guesses are useless: still the loop's states, which the weights make sensitive to any error."""
    T = 40
    cell, x, h, _, _ = case(kind, T, torch.float64, size)
    y, last = newton(cell.step, cell.jacobian, x, h)
    y_loop, last_loop = newton_loop(cell.step, x, h)
    assert_close(y, y_loop, 1e-7)
    assert_close(last, last_loop, 1e-7)


@cells
def test_weak_weights_take_few_rounds(kind: type[DiagonalCell]) -> None:
    T, rounds = 200, 0
    cell, x, h, _, _ = case(kind, T, torch.float64)

    def counted(x: Tensor, h: Tensor) -> Tensor:
        nonlocal rounds
        rounds += 1
        return cell.jacobian(x, h)

    with torch.no_grad():
        cell.weight.clamp_(-0.5, 0.5)
    y, _ = newton(cell.step, counted, x, h)
    assert rounds <= 8  # the last two to see that nothing changes, and for the gradient
    assert_close(y, newton_loop(cell.step, x, h)[0], 1e-12)


@cells
def test_a_state_beyond_the_bound_is_not_cut(kind: type[DiagonalCell]) -> None:
    cell, x, h, _, _ = case(kind, 9, torch.float64)
    y, _ = newton(cell.step, cell.jacobian, x, 50 * h)
    assert y.abs().max() > 2
    assert_close(y, newton_loop(cell.step, x, 50 * h)[0], 1e-10)


def test_second_derivatives_are_refused() -> None:
    cell, x, h, _, _ = case(DiagonalGRU, 5, torch.float64)
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(newton(cell.step, cell.jacobian, x, h)[0].square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@dtypes
@pytest.mark.parametrize("S", [1, 2, 3])
@pytest.mark.parametrize(("T", "chunk"), [(1, 4), (7, 4), (13, 5), (13, 64)])
def test_blocks_equal_loop(T: int, chunk: int, S: int, dtype: torch.dtype) -> None:
    A, b, h = (inputs(B, *shape, D, seed=i, dtype=dtype) for i, shape in enumerate(((T, S, S), (T, S), (S,))))
    reset_BT = torch.rand((B, T), generator=torch.Generator().manual_seed(4)) < 0.2
    for reset in (None, reset_BT):
        results = []
        for form in (blocks_loop, lambda *a: blocks(*a, chunk=chunk)):
            leaves = [tensor.clone().requires_grad_() for tensor in (A, b, h)]
            outputs = form(*leaves, reset)
            loss = sum((out * inputs(*out.shape, seed=7 + i, dtype=dtype)).sum() for i, out in enumerate(outputs))
            results.append([*outputs, *torch.autograd.grad(loss, leaves)])
        for ours, naive in zip(results[1], results[0], strict=True):
            assert_close(ours, naive, TOLERANCE[dtype])


def test_diagonal_lem_is_lem_with_diagonal_matrices() -> None:
    full, cell = LEM(3, hidden=D).double(), DiagonalLEM(D).double()
    with torch.no_grad():
        full.hh[0].weight.copy_(torch.cat([row.diag() for row in cell.weight[:3]]))
        full.hh[0].bias.zero_()
        full.cells[0].read.weight.copy_(cell.weight[3].diag())
        full.cells[0].read.bias.zero_()
    x = inputs(B, 9, 3)
    maps = full.ih[0](x).unflatten(-1, (4, D))
    y, _ = newton(cell.step, cell.jacobian, maps, torch.zeros(B, 2, D).double())
    assert_close(y[:, :, 0], full(x)[0], 1e-12)
