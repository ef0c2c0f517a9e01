"""The delta rule: chunks against the loop, the loop against the matrix form of the paper, and what it is good for."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from clplat.backbones.ops.chunks import cut, join, keep, segments, states
from clplat.backbones.ops.delta_rule import delta_rule_chunk, delta_rule_loop, unit

from .helpers import TOLERANCE, assert_close, inputs

B, H, K, V = 2, 3, 4, 5


def case(T: int, dtype: torch.dtype, reset: str = "none") -> tuple[list[Tensor], Tensor | None]:
    """q, k, v, b, S with some padded steps (b = 0) and some full ones (b = 1), and the resets."""
    q, k = (unit(inputs(B, H, T, K, seed=seed, dtype=dtype)) for seed in (1, 2))
    v, S = inputs(B, H, T, V, seed=3, dtype=dtype), inputs(B, H, K, V, seed=4, dtype=dtype)
    b = inputs(B, H, T, seed=5, dtype=dtype).mul(2).add(0.5).clamp(0, 1)
    probability = {"none": None, "never": 0.0, "some": 0.2, "always": 1.1}[reset]
    if probability is None:
        return [q, k, v, b, S], None
    return [q, k, v, b, S], torch.rand(B, T, generator=torch.Generator().manual_seed(6)) < probability


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["fp64", "fp32"])
@pytest.mark.parametrize("reset", ["none", "never", "some", "always"])
@pytest.mark.parametrize(("T", "chunk"), [(1, 4), (7, 4), (8, 4), (13, 5), (13, 1), (13, 64), (75, 32)])
def test_chunk_equals_loop(T: int, chunk: int, reset: str, dtype: torch.dtype) -> None:
    tensors, reset_BT = case(T, dtype, reset)
    results = []
    for form in (delta_rule_loop, lambda *a: delta_rule_chunk(*a, chunk=chunk)):
        leaves = [tensor.clone().requires_grad_() for tensor in tensors]
        outputs = form(*leaves, reset_BT)
        loss = sum((out * inputs(*out.shape, seed=7 + i, dtype=dtype)).sum() for i, out in enumerate(outputs))
        results.append([*outputs, *torch.autograd.grad(loss, leaves)])
    assert len(results[0]) == 7
    for ours, naive in zip(results[1], results[0], strict=True):
        assert_close(ours, naive, TOLERANCE[dtype])


def test_loop_is_the_papers_recurrence() -> None:
    (q, k, v, b, S), _ = case(6, torch.float64)
    y, last = delta_rule_loop(q, k, v, b, S)
    one = torch.eye(K, dtype=torch.float64)
    for t in range(6):
        key, weight = k[:, :, t, :, None], b[:, :, t, None, None]
        S = (one - weight * key @ key.mT) @ S + weight * key @ v[:, :, t, None]
        assert_close(y[:, :, t], (q[:, :, t, None] @ S).squeeze(-2), 1e-12)
    assert_close(last, S, 1e-12)


def test_a_full_correction_replaces_what_a_key_held() -> None:
    """Two values in turn under one key: the sum of linear attention would mix them, here the last one is read."""
    k = torch.tensor([1.0, 0, 0, 0], dtype=torch.float64).expand(1, 1, 3, K)
    v = inputs(1, 1, 3, V)
    y, _ = delta_rule_chunk(k, k, v, torch.ones(1, 1, 3, dtype=torch.float64), torch.zeros(1, 1, K, V).double())
    assert_close(y, v, 1e-12)


def test_chunks_do_not_look_ahead() -> None:
    (q, k, v, b, S), _ = case(150, torch.float32)
    y, _ = delta_rule_chunk(q, k, v, b, S, chunk=64)
    for t in (1, 40, 64, 100, 149):
        changed = [x.clone() for x in (q, k, v, b)]
        for x in changed:
            x[:, :, t:] = -x[:, :, t:]
        changed[2][:, :, t:] *= 1e4
        y_changed, _ = delta_rule_chunk(*changed, S, chunk=64)
        assert torch.equal(y_changed[:, :, :t], y[:, :, :t])
        assert not torch.equal(y_changed[:, :, t], y[:, :, t])


def test_unit_is_smooth_at_zero() -> None:
    x = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(unit(x).sum(), x)
    assert torch.isfinite(gradient).all()
    assert_close(unit(inputs(4, 3)).norm(dim=-1), torch.ones(4, dtype=torch.float64), 1e-5)
    assert unit(1e-6 * inputs(4, 3)).norm(dim=-1).max() < 0.01


def test_segments_by_hand() -> None:
    # two chunks of 3 and a last one of 1; sequences begin at steps 1, 3 and 6
    reset_BT = torch.tensor([[0, 1, 0, 1, 0, 0, 1]]).bool()
    found = segments(reset_BT, 7, 3, reset_BT.device)
    assert found.seen[0, 0].int().tolist() == [
        [[1, 0, 0], [0, 1, 0], [0, 1, 1]],
        [[1, 0, 0], [1, 1, 0], [1, 1, 1]],
        [[1, 0, 0], [1, 1, 0], [1, 1, 1]],  # what is added behind goes with the last sequence
    ]
    assert found.entering is not None
    assert found.entering.flatten().int().tolist() == [1, 0, 0, 0, 0, 0, 0, 0, 0]
    assert found.leaving is not None
    assert found.leaving.flatten().int().tolist() == [0, 1, 1, 1, 1, 1, 1, 1, 1]
    assert found.through is not None
    assert not found.through.any()
    S = inputs(1, 2, 3)
    assert not found.kept().any()
    assert (found.kept(torch.full((1, 2, 3, 1, 1), 0.5)) == 0).all()
    plain = segments(None, 7, 3, reset_BT.device)
    assert plain.seen.int().tolist() == [[1, 0, 0], [1, 1, 0], [1, 1, 1]]
    assert plain.kept() is None
    added = torch.stack([S, 2 * S], 2)
    before, last = states(S, added, torch.full((1, 1, 2, 1), 0.5))
    assert_close(before, torch.stack([S, 1.5 * S], 2), 1e-12)
    assert_close(last, 2.75 * S, 1e-12)
    assert keep(S, plain.entering) is S


@pytest.mark.parametrize(("T", "C", "N"), [(7, 3, 3), (6, 3, 2), (1, 1, 1)])
def test_cut_and_join(T: int, C: int, N: int) -> None:
    x = inputs(2, 3, T, 4)
    chunks = cut(x, C)
    assert chunks.shape == (2, 3, N, C, 4)
    assert torch.equal(join(chunks, T), x)
    assert chunks.flatten(2, 3)[:, :, T:].count_nonzero() == 0
