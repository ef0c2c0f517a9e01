"""Attention by chunks of keys and within a window, against the dense forms and by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from clplat.backbones.ops.attention import (
    attention,
    attention_chunks,
    latest,
    visibility,
    window_attention,
    window_attention_loop,
)

from .helpers import TOLERANCE, assert_close, inputs

B, H, K, V = 2, 3, 4, 5
dtypes = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["fp64", "fp32"])


def chance(*shape: int, p: float, seed: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < p


def with_gradients(form, tensors: list[Tensor], where: Tensor | None = None) -> list[Tensor]:
    """The output and the gradients of a random linear function of it, at some steps (B, T) only."""
    leaves = [tensor.clone().requires_grad_() for tensor in tensors]
    y = form(*leaves)
    y = y if where is None else y.masked_fill(~where[:, None, :, None], 0)
    return [y, *torch.autograd.grad((y * inputs(*y.shape, seed=9, dtype=y.dtype)).sum(), leaves)]


@dtypes
@pytest.mark.parametrize("size", [1.0, 30.0])
@pytest.mark.parametrize("chunk", [1, 3, 64])
@pytest.mark.parametrize("carried", [None, 0, 5])
def test_chunks_of_keys_equal_dense_attention(carried: int | None, chunk: int, size: float, dtype: torch.dtype) -> None:
    T, S = 7, 7 + (carried or 0)
    tensors = [inputs(B, H, n, k, seed=n + k + i, dtype=dtype) for i, (n, k) in enumerate(((T, K), (S, K), (S, V)))]
    tensors[0] *= size  # at 30 most weights are 0 or 1
    visible_BTS = None
    if carried is not None:
        resets, steps = chance(B, T, p=0.2, seed=2), chance(B, T, p=0.8, seed=3)
        visible_BTS, _ = visibility(chance(B, carried, p=0.7, seed=1), resets, steps)
    found = with_gradients(lambda q, k, v: attention_chunks(q, k, v, visible_BTS, chunk), tensors)
    for ours, dense in zip(found, with_gradients(lambda *a: attention(*a, visible_BTS), tensors), strict=True):
        assert_close(ours, dense, TOLERANCE[dtype])


@dtypes
@pytest.mark.parametrize("window", [1, 2, 4, 30])
@pytest.mark.parametrize("block", [1, 4, 64])
@pytest.mark.parametrize("flags", ["plain", "reset", "mask", "reset+mask"])
def test_window_equals_loop(window: int, block: int, flags: str, dtype: torch.dtype) -> None:
    T, P = 13, window - 1
    tensors = [inputs(B, H, n, k, seed=n + k, dtype=dtype) for n, k in ((T, K), (P + T, K), (P + T, V))]
    live_BP = torch.stack([torch.arange(P) >= P, torch.arange(P) >= P // 2])  # none, and the last ones
    reset_BT = chance(B, T, p=0.15 if "reset" in flags else 0, seed=4)
    mask_BT = chance(B, T, p=0.7, seed=5) if "mask" in flags else None
    found = with_gradients(lambda *a: window_attention(*a, live_BP, reset_BT, mask_BT, window, block), tensors, mask_BT)
    naive = with_gradients(lambda *a: window_attention_loop(*a, live_BP, reset_BT, mask_BT, window), tensors, mask_BT)
    for ours, theirs in zip(found, naive, strict=True):
        assert_close(ours, theirs, TOLERANCE[dtype])


def test_visibility_within_a_window_by_hand() -> None:
    # three carried keys, one of them dead. New: step, padding, step, step, reset, step
    live = torch.tensor([[False, True, True]])
    reset_BT = torch.tensor([[0, 0, 0, 0, 1, 0]]).bool()
    mask_BT = torch.tensor([[1, 0, 1, 1, 1, 1]]).bool()
    visible_BTS, _ = visibility(live, reset_BT, mask_BT, window=3)
    assert [row.nonzero().flatten().tolist() for row in visible_BTS[0]] == [
        [1, 2, 3],
        [1, 2, 3, 4],  # padding: itself, and what the softmax is over is thrown away
        [2, 3, 5],  # padding takes no place in the window
        [3, 5, 6],
        [7],
        [7, 8],
    ]


def test_latest_by_hand() -> None:
    live = torch.tensor([[1, 0, 1, 1, 0], [0, 0, 1, 0, 0]]).bool()
    index, found = latest(live, 2)
    assert index[0].tolist() == [2, 3]
    assert index[1, 1] == 2
    assert found.tolist() == [[True, True], [False, True]]
    assert latest(live, 0)[0].shape == (2, 0)
