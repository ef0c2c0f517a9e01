"""Kernels against their naive loops and against independent formulas."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from clplat.backbones.ops.attention import attention, attention_loop, positions, rotate, visibility
from clplat.backbones.ops.linear_attention import feature, linear_attention_chunk, linear_attention_loop

from .helpers import TOLERANCE, assert_close, inputs

B, H, K, V = 2, 3, 4, 5
dtypes = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["fp64", "fp32"])


def linear_case(T: int, dtype: torch.dtype, reset: str) -> tuple[list[Tensor], Tensor | None]:
    """q, k, v, S, z with some padded steps (k = 0), and the resets."""
    q, k = (feature(inputs(B, H, T, K, seed=seed, dtype=dtype)) for seed in (1, 2))
    k = k.masked_fill(torch.rand(B, 1, T, 1, generator=torch.Generator().manual_seed(3)) < 0.2, 0)
    v, S = inputs(B, H, T, V, seed=3, dtype=dtype), inputs(B, H, K, V, seed=4, dtype=dtype)
    z = feature(inputs(B, H, K, seed=5, dtype=dtype))
    probability = {"none": None, "never": 0.0, "some": 0.2, "always": 1.1}[reset]
    if probability is None:
        return [q, k, v, S, z], None
    return [q, k, v, S, z], torch.rand(B, T, generator=torch.Generator().manual_seed(6)) < probability


@dtypes
@pytest.mark.parametrize("reset", ["none", "never", "some", "always"])
@pytest.mark.parametrize(("T", "chunk"), [(1, 4), (7, 4), (8, 4), (13, 5), (13, 1), (13, 64)])
def test_linear_attention_chunk_equals_loop(T: int, chunk: int, reset: str, dtype: torch.dtype) -> None:
    tensors, reset_BT = linear_case(T, dtype, reset)
    results = []
    for form in (linear_attention_loop, lambda *a: linear_attention_chunk(*a, chunk=chunk)):
        leaves = [tensor.clone().requires_grad_() for tensor in tensors]
        outputs = form(*leaves, reset_BT)
        loss = sum((out * inputs(*out.shape, seed=7 + i, dtype=dtype)).sum() for i, out in enumerate(outputs))
        results.append([*outputs, *torch.autograd.grad(loss, leaves)])
    assert len(results[0]) == 8
    for ours, naive in zip(results[1], results[0], strict=True):
        assert_close(ours, naive, TOLERANCE[dtype])


def test_linear_attention_is_the_papers_equation_9() -> None:
    (q, k, v, S, z), _ = linear_case(6, torch.float64, "none")
    y, _, _ = linear_attention_loop(q, k, v, 0 * S, 0 * z)
    weights = (q @ k.mT).tril()
    assert_close(y, weights @ v / (weights.sum(-1, keepdim=True) + 1e-6), 1e-12)
    # rows of attention sum to 1: constant values come out as they are
    ones, _, _ = linear_attention_chunk(q, k + 1, torch.ones_like(v), 0 * S, 0 * z, chunk=4)
    assert_close(ones, torch.ones_like(v), 1e-5)


def test_feature_is_positive_with_the_slope_of_elu() -> None:
    x = torch.tensor([-3.0, 0.0, 2.0], dtype=torch.float64, requires_grad=True)
    y = feature(x)
    assert_close(y, torch.tensor([-3.0, 0.0, 1.0986122886681098], dtype=torch.float64).exp(), 1e-12)
    assert_close(torch.autograd.grad(y.sum(), x)[0], x.clamp(max=0).exp(), 1e-12)


@dtypes
@pytest.mark.parametrize("carried", [None, 0, 3])
def test_attention_equals_loop(carried: int | None, dtype: torch.dtype) -> None:
    T, S = 7, 7 + (carried or 0)
    tensors = [inputs(B, H, n, K, seed=n + i, dtype=dtype) for i, n in enumerate((T, S, S))]
    visible_BTS = None
    if carried is not None:
        source = torch.Generator().manual_seed(8)
        live, reset_BT, mask_BT = (
            torch.rand(B, n, generator=source) < p for n, p in ((carried, 0.7), (T, 0.2), (T, 0.8))
        )
        visible_BTS, _ = visibility(live, reset_BT, mask_BT)
    results = []
    for form in (attention, attention_loop):
        leaves = [tensor.clone().requires_grad_() for tensor in tensors]
        y = form(*leaves, visible_BTS)
        results.append([y, *torch.autograd.grad((y * inputs(*y.shape, seed=9, dtype=dtype)).sum(), leaves)])
    for ours, naive in zip(*results, strict=True):
        assert_close(ours, naive, TOLERANCE[dtype])


def test_visibility_and_positions_by_hand() -> None:
    # carried: a live and a dead key. New: step, padding, reset, step, reset on padding, step
    live = torch.tensor([[True, False]])
    reset_BT = torch.tensor([[0, 0, 1, 0, 1, 0]]).bool()
    mask_BT = torch.tensor([[1, 0, 1, 1, 0, 1]]).bool()
    visible_BTS, live_after = visibility(live, reset_BT, mask_BT)
    assert [row.nonzero().flatten().tolist() for row in visible_BTS[0]] == [
        [0, 2],
        [0, 2, 3],  # padding: itself, so that the softmax is over something
        [4],
        [4, 5],
        [6],
        [7],
    ]
    assert live_after[0].nonzero().flatten().tolist() == [7]
    position_BT, next_B = positions(torch.tensor([5]), reset_BT, mask_BT)
    assert position_BT[mask_BT].tolist() == [5, 0, 1, 0]
    assert next_B.tolist() == [1]


def test_rotation_keeps_length_and_sees_differences_only() -> None:
    q, k = inputs(1, 1, 1, 6, seed=1), inputs(1, 1, 1, 6, seed=2)

    def product(at_q: int, at_k: int) -> Tensor:
        return (rotate(q, torch.tensor([[at_q]])) * rotate(k, torch.tensor([[at_k]]))).sum()

    assert_close(product(9, 4), product(1005, 1000), 1e-10)
    assert not torch.allclose(product(9, 4), product(9, 5))
    assert_close(rotate(q, torch.tensor([[7]])).norm(), q.norm(), 1e-12)
    assert torch.equal(rotate(q, torch.tensor([[0]])), q)
    # by hand: the pair (x_0, x_3) turns by 2 radians at position 2
    turned = rotate(torch.tensor([[[[1.0, 0, 0, 0, 0, 0]]]], dtype=torch.float64), torch.tensor([[2]])).flatten()
    expected = torch.tensor([2.0, 0, 0, 0, 0, 0], dtype=torch.float64)
    expected[0], expected[3] = torch.tensor(2.0).double().cos(), torch.tensor(2.0).double().sin()
    assert_close(turned, expected, 1e-12)
