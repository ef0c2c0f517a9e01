"""The diagonal recurrence: the scan against the loop."""

from __future__ import annotations

import pytest
import torch

from clplat.backbones.ops.scan import diagonal, diagonal_loop

from .helpers import TOLERANCE, assert_close, inputs

B, D = 2, 3


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["fp64", "fp32"])
@pytest.mark.parametrize("values", ["real", "complex"])
@pytest.mark.parametrize("reset", [None, 0.0, 0.2, 1.1])
@pytest.mark.parametrize(("T", "chunk"), [(1, 4), (8, 4), (13, 5), (13, 1), (13, 64)])
def test_scan_equals_loop(T: int, chunk: int, reset: float | None, values: str, dtype: torch.dtype) -> None:
    a, b, h = (
        inputs(B, T, D, seed=1, dtype=dtype),
        inputs(B, T, D, seed=2, dtype=dtype),
        inputs(B, D, seed=3, dtype=dtype),
    )
    if values == "complex":
        a, b, h = (torch.complex(x, inputs(*x.shape, seed=4, dtype=dtype)) for x in (a, b, h))
        a = a / 1.5
    reset_BT = None if reset is None else torch.rand(B, T, generator=torch.Generator().manual_seed(5)) < reset
    results = []
    for form in (diagonal_loop, lambda *given: diagonal(*given, chunk=chunk)):
        leaves = [x.clone().requires_grad_() for x in (a, b, h)]
        outputs = form(*leaves, reset_BT)
        weighed = [(out * inputs(*out.shape, seed=7 + i, dtype=dtype)).sum() for i, out in enumerate(outputs)]
        loss = sum(torch.view_as_real(w).sum() if w.is_complex() else w for w in weighed)
        results.append([*outputs, *torch.autograd.grad(loss, leaves)])
    for ours, naive in zip(results[1], results[0], strict=True):
        as_real = torch.view_as_real if ours.is_complex() else torch.Tensor.clone
        assert_close(as_real(ours), as_real(naive), TOLERANCE[dtype])


def test_extreme_factors() -> None:
    T = 300
    b, h = torch.ones(1, T, 4), torch.zeros(1, 4)
    a = torch.tensor([0.0, 1.0, -1.0, 1e-30]).expand(1, T, 4)
    y, last = diagonal(a, b, h)
    assert_close(last[0], torch.tensor([1.0, T, 0.0, 1.0]), 1e-6)
    assert torch.isfinite(y).all()


def test_factors_are_broadcast_and_dimensions_free() -> None:
    a, b, h = inputs(1, 1, 3, 1), inputs(2, 7, 3, 4), inputs(2, 3, 4, seed=2)
    y, last = diagonal(a, b, h, chunk=3)
    y_loop, _ = diagonal_loop(a, b, h)
    assert_close(y, y_loop, 1e-10)
    assert torch.equal(last, y[:, -1])
