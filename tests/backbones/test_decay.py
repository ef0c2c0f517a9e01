"""Kernels with decay: chunks against the loops, extreme gates, and the special cases that they share."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from clplat.backbones.ops.channel_decay import channel_decay_chunk, channel_decay_loop, decayed_scores
from clplat.backbones.ops.delta_rule import delta_rule_chunk, delta_rule_loop, unit
from clplat.backbones.ops.flow import before, spans
from clplat.backbones.ops.scalar_decay import scalar_decay_chunk, scalar_decay_loop

from .helpers import TOLERANCE, assert_close, inputs

B, H, K, V = 2, 3, 4, 5
Form = Callable[..., tuple[Tensor, Tensor]]


def gated_delta_loop(q: Tensor, k: Tensor, v: Tensor, g: Tensor, b: Tensor, *rest: Tensor) -> tuple[Tensor, Tensor]:
    return delta_rule_loop(q, k, v, b, *rest, g_BHT=g)


def gated_delta_chunk(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, b: Tensor, *rest: Tensor, chunk: int
) -> tuple[Tensor, Tensor]:
    return delta_rule_chunk(q, k, v, b, *rest, chunk=chunk, g_BHT=g)


KERNELS: dict[str, tuple[Form, Form]] = {
    "scalar": (scalar_decay_loop, scalar_decay_chunk),
    "channel": (channel_decay_loop, channel_decay_chunk),
    "delta": (gated_delta_loop, gated_delta_chunk),
}
kernels = pytest.mark.parametrize("name", KERNELS)


def case(name: str, T: int, dtype: torch.dtype, strength: float = 1.0) -> list[Tensor]:
    """q, k, v, g, (b,) S; a fifth of the steps are padding."""
    padding = torch.rand(B, 1, T, 1, generator=torch.Generator().manual_seed(3)) < 0.2
    q, k = (unit(inputs(B, H, T, K, seed=seed, dtype=dtype)) for seed in (1, 2))
    v, S = inputs(B, H, T, V, seed=3, dtype=dtype), inputs(B, H, K, V, seed=4, dtype=dtype)
    g = -strength * inputs(B, H, T, K, seed=5, dtype=dtype).exp().masked_fill(padding, 0)
    if name == "channel":
        return [q, k.masked_fill(padding, 0), v, g, S]
    if name == "scalar":
        return [q, k.masked_fill(padding, 0), v, g[..., 0], S]
    b = inputs(B, H, T, seed=6, dtype=dtype).sigmoid().mul(2).masked_fill(padding[..., 0], 0)
    return [q, k, v, g[..., 0], b, S]


def results(form: Form, tensors: list[Tensor], reset_BT: Tensor | None) -> list[Tensor]:
    """Outputs and the gradients of a random linear function of them."""
    leaves = [tensor.clone().requires_grad_() for tensor in tensors]
    outputs = form(*leaves, reset_BT)
    loss = sum((out * inputs(*out.shape, seed=7 + i, dtype=out.dtype)).sum() for i, out in enumerate(outputs))
    return [*outputs, *torch.autograd.grad(loss, leaves)]


def resets(T: int, probability: float | None) -> Tensor | None:
    if probability is None:
        return None
    return torch.rand(B, T, generator=torch.Generator().manual_seed(6)) < probability


@kernels
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["fp64", "fp32"])
@pytest.mark.parametrize("probability", [None, 0.0, 0.2, 1.1], ids=["none", "never", "some", "always"])
@pytest.mark.parametrize(("T", "chunk"), [(1, 4), (7, 4), (8, 4), (13, 5), (13, 1), (13, 64), (75, 32)])
def test_chunk_equals_loop(name: str, T: int, chunk: int, probability: float | None, dtype: torch.dtype) -> None:
    loop, chunked = KERNELS[name]
    tensors, reset_BT = case(name, T, dtype), resets(T, probability)
    found = results(lambda *a: chunked(*a, chunk=chunk), tensors, reset_BT)
    for ours, naive in zip(found, results(loop, tensors, reset_BT), strict=True):
        assert_close(ours, naive, TOLERANCE[dtype])


@kernels
@pytest.mark.parametrize("strength", [0.0, 1e-3, 8.0, 1e6])
def test_gates_of_any_strength(name: str, strength: float) -> None:
    loop, chunked = KERNELS[name]
    tensors, reset_BT = case(name, 40, torch.float32, strength), resets(40, 0.1)
    tensors[3][:, :, ::3] *= 1e-6 / max(strength, 1e-6)  # between strong gates weak ones, which must not lose digits
    for ours, naive in zip(
        results(lambda *a: chunked(*a, chunk=16), tensors, reset_BT), results(loop, tensors, reset_BT), strict=True
    ):
        assert_close(ours, naive, 1e-5)


@kernels
def test_a_closed_gate_is_a_reset(name: str) -> None:
    loop, chunked = KERNELS[name]
    tensors = case(name, 13, torch.float64)
    reset_BT = resets(13, 0.2)
    y, S = chunked(*tensors, reset_BT, chunk=5)
    tensors[3] = tensors[3].masked_fill(reset_BT.reshape(B, 1, 13, *[1] * (tensors[3].ndim - 3)), -torch.inf)
    for form in (loop, lambda *a: chunked(*a, chunk=5)):
        found = results(form, tensors, None)
        assert_close(found[0], y, 1e-12)
        assert_close(found[1], S, 1e-12)
        assert all(torch.isfinite(x).all() for x in found)


def test_channel_decay_with_equal_channels_is_scalar_decay() -> None:
    q, k, v, g, S = case("scalar", 21, torch.float64)
    y, last = scalar_decay_chunk(q, k, v, g, S, chunk=8)
    y_channel, last_channel = channel_decay_chunk(q, k, v, g[..., None].expand(-1, -1, -1, K), S, chunk=8)
    assert_close(y_channel, y, 1e-12)
    assert_close(last_channel, last, 1e-12)


def test_without_decay_nothing_is_lost() -> None:
    q, k, v, g, S = case("scalar", 21, torch.float64)
    y, last = scalar_decay_chunk(q, k, v, None, S, chunk=8)
    assert_close(y, (q @ k.mT).tril() @ v + q @ S, 1e-12)
    assert_close(last, S + k.mT @ v, 1e-12)
    y_zero, last_zero = scalar_decay_chunk(q, k, v, 0 * g, S, chunk=8)
    assert_close(y_zero, y, 1e-12)
    assert_close(last_zero, last, 1e-12)


def test_gated_delta_rule_is_the_papers_recurrence() -> None:
    q, k, v, g, b, S = case("delta", 6, torch.float64)
    y, last = gated_delta_loop(q, k, v, g, b, S)
    one = torch.eye(K, dtype=torch.float64)
    for t in range(6):
        key, weight = k[:, :, t, :, None], b[:, :, t, None, None]
        S = g[:, :, t, None, None].exp() * (one - weight * key @ key.mT) @ S + weight * key @ v[:, :, t, None]
        assert_close(y[:, :, t], (q[:, :, t, None] @ S).squeeze(-2), 1e-12)
    assert_close(last, S, 1e-12)


@kernels
def test_chunks_do_not_look_ahead(name: str) -> None:
    _, chunked = KERNELS[name]
    tensors = case(name, 100, torch.float32)
    y, _ = chunked(*tensors, chunk=32)
    for t in (1, 31, 32, 40, 99):
        changed = [x.clone() for x in tensors]
        for x in changed[:-1]:
            x[:, :, t:] *= 3
        changed[2][:, :, t:] *= 1e4
        y_changed, _ = chunked(*changed, chunk=32)
        assert torch.equal(y_changed[:, :, :t], y[:, :, :t])
        assert not torch.equal(y_changed[:, :, t:], y[:, :, t:])


@pytest.mark.parametrize("C", [1, 2, 3, 5, 8, 12])
def test_decayed_scores_are_those_of_each_pair(C: int) -> None:
    q, k, _, g, _ = case("channel", C, torch.float64)
    between = spans(g).exp()
    expected = torch.einsum("bhtk,bhjk,bhtjk->bhtj", q, k, between).tril()
    assert_close(decayed_scores(q, k, g), expected, 1e-12)


def test_spans_by_hand() -> None:
    g = torch.tensor([[1.0], [10.0], [100.0]])
    assert spans(g)[..., 0].tolist() == [[0, 0, 0], [10, 0, 0], [110, 100, 0]]
    assert before(g)[..., 0].tolist() == [110, 100, 0]
