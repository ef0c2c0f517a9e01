"""Prefix linear attention: features, the loop, and what the beginning of a sequence sees."""

from __future__ import annotations

import pytest
import torch

from clplat.backbones.base import reference_form
from clplat.backbones.linear.jrt_rnn import JRTRNN, PrefixLinearAttention, taylor
from clplat.backbones.ops.prefix import prefix_attention, prefix_attention_loop
from clplat.errors import UsageError

from .helpers import TOLERANCE, assert_close, inputs
from .test_decay import resets, results

B, T, D, H, F, M = 2, 13, 8, 2, 3, 5


def mixer(prefix: int = M) -> PrefixLinearAttention:
    torch.manual_seed(0)
    return PrefixLinearAttention(D, H, F, prefix, chunk=4).double()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["fp64", "fp32"])
@pytest.mark.parametrize("probability", [None, 0.0, 0.2, 1.1], ids=["none", "never", "some", "always"])
@pytest.mark.parametrize("steps", [1, 7, 13])
def test_prefix_attention_equals_loop(steps: int, probability: float | None, dtype: torch.dtype) -> None:
    q, k, e = (inputs(B, H, steps, 4, seed=n, dtype=dtype) for n in (1, 2, 3))
    v, u = (inputs(B, H, steps, 5, seed=n, dtype=dtype) for n in (4, 5))
    e = e.masked_fill(torch.rand(B, 1, steps, 1, generator=torch.Generator().manual_seed(6)) < 0.5, 0)
    tensors = [q, k, v, e, u, inputs(B, H, 4, 5, seed=7, dtype=dtype)]
    found = results(lambda *a: prefix_attention(*a, chunk=4), tensors, resets(steps, probability))
    for ours, naive in zip(found, results(prefix_attention_loop, tensors, resets(steps, probability)), strict=True):
        assert_close(ours, naive, TOLERANCE[dtype])


def test_features_are_a_taylor_series() -> None:
    q, k = inputs(4, 6, seed=1), inputs(4, 6, seed=2)
    s = (q * k).sum(-1) / 6**0.5
    assert taylor(q).shape == (4, 1 + 6 + 36)
    assert_close((taylor(q) * taylor(k)).sum(-1), 1 + s + s**2 / 2, 1e-12)


@pytest.mark.parametrize("prefix", [0, M])
def test_layer_is_attention_by_the_series(prefix: int) -> None:
    network, x = mixer(prefix), inputs(B, T, D)
    q, k, e, v, u = (
        part.unflatten(-1, (H, -1)).transpose(1, 2) for part in network.project(x).split(network.sizes, -1)
    )

    def series(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        s = a @ b.mT / F**0.5
        return 1 + s + s**2 / 2

    past, beginning = series(q, k).tril(), series(q, e[:, :, :prefix])
    y = (past @ v + beginning @ u[:, :, :prefix]) / (past.sum(-1, keepdim=True) + beginning.sum(-1, keepdim=True))
    expected = network.out(y.transpose(1, 2).flatten(2))
    assert_close(network(x)[0], expected, 1e-10)
    with reference_form():
        assert_close(network(x)[0], expected, 1e-10)


def test_beginning_sees_all_of_itself_and_nothing_behind() -> None:
    network, x = mixer(), inputs(B, T, D)
    y, _ = network(x)
    for changed_at in (M - 1, M, T - 1):
        changed = x.clone()
        changed[:, changed_at] += 1
        y_changed, _ = network(changed)
        same = [torch.allclose(y_changed[:, t], y[:, t], rtol=0, atol=1e-12) for t in range(changed_at)]
        assert not any(same) if changed_at < M else all(same)


def test_reading_the_beginning_and_then_going_step_by_step_is_reading_all() -> None:
    network, x = mixer(), inputs(B, T, D)
    for start in (M, M + 3):
        y, state = network(x[:, :start])
        outputs = [y]
        for t in range(start, T):
            y, state = network(x[:, t : t + 1], state)
            outputs.append(y)
        assert_close(torch.cat(outputs, 1), network(x)[0], 1e-10)
        assert state["S"].shape == (B, H, 1 + F + F**2, D // H + 1)


def test_each_packed_sequence_has_a_beginning_of_its_own() -> None:
    network, x = mixer(), inputs(B, T, D)
    reset_BT = torch.zeros(B, T, dtype=torch.bool)
    reset_BT[:, 6] = True
    y, _ = network(x, reset_BT=reset_BT)
    assert_close(y, torch.cat([network(x[:, :6])[0], network(x[:, 6:])[0]], 1), 1e-10)


def test_options_are_checked() -> None:
    with pytest.raises(UsageError, match="prefix must be"):
        JRTRNN(5, prefix=-1)
    with pytest.raises(UsageError, match="features must be"):
        JRTRNN(5, features=0)
