"""Transformers with a window, with Hopfield retrieval, and with one block applied again and again."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from clplat.backbones.attention.depth_recurrent import DepthRecurrentTransformer
from clplat.backbones.attention.hopfield import Hopfield
from clplat.backbones.attention.transformer import SelfAttention, Transformer
from clplat.backbones.ops.attention import attention, visibility
from clplat.backbones.ops.hopfield import energy, hopfield, hopfield_loop

from .helpers import TOLERANCE, assert_close, inputs

B, H, K, V, T, D = 2, 3, 4, 5, 7, 5
dtypes = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["fp64", "fp32"])
rests = pytest.mark.parametrize("rest", [False, True], ids=["softmax", "softmax_1"])


def some_visible() -> Tensor:
    source = torch.Generator().manual_seed(8)
    live, reset_BT, mask_BT = (torch.rand(B, n, generator=source) < p for n, p in ((3, 0.7), (T, 0.2), (T, 0.8)))
    return visibility(live, reset_BT, mask_BT)[0]


def everything(q: Tensor, k: Tensor) -> Tensor:
    return torch.ones(len(q), q.shape[2], k.shape[2], dtype=torch.bool)


# window


def test_a_window_that_covers_everything_is_no_window() -> None:
    x, outputs = inputs(2, 9, D), {}
    for window in (0, 9, 20, 3):
        torch.manual_seed(0)
        outputs[window] = Transformer(D, dim=8, heads=2, window=window).double()(x)[0]
    for window in (9, 20):
        assert_close(outputs[window], outputs[0], 1e-12)
    assert_close(outputs[3][:, :3], outputs[0][:, :3], 1e-12)
    assert not torch.allclose(outputs[3][:, 3:], outputs[0][:, 3:])


def test_the_reach_of_two_blocks_is_two_windows() -> None:
    network, x = Transformer(D, dim=8, heads=2, layers=2, window=3).double(), inputs(1, 9, D).requires_grad_()
    (gradient,) = torch.autograd.grad(network(x)[0][:, -1].sum(), x)
    assert gradient.abs().sum(-1).gt(0).flatten().tolist() == [False] * 4 + [True] * 5
    assert network.state_size(9) == network.state_size(1000)


# Hopfield networks


@dtypes
@rests
@pytest.mark.parametrize("updates", [0, 1, 3])
def test_hopfield_equals_loop(updates: int, rest: bool, dtype: torch.dtype) -> None:
    tensors = [
        inputs(B, H, n, k, seed=n + k + i, dtype=dtype) for i, (n, k) in enumerate(((T, K), (3 + T, K), (3 + T, V)))
    ]
    visible_BTS, results = some_visible(), []
    for form in (hopfield, hopfield_loop):
        leaves = [tensor.clone().requires_grad_() for tensor in tensors]
        y = form(*leaves, visible_BTS, 1.5, updates, rest)
        results.append([y, *torch.autograd.grad((y * inputs(*y.shape, seed=9, dtype=dtype)).sum(), leaves)])
    for ours, naive in zip(*results, strict=True):
        assert_close(ours, naive, TOLERANCE[dtype])


def test_a_step_without_updates_is_attention() -> None:
    q, k, v = (inputs(B, H, n, K, seed=n) for n in (T, T + 3, T + 3))
    visible_BTS = some_visible()
    assert_close(hopfield(q, k, v, visible_BTS, K**-0.5), attention(q, k, v, visible_BTS), 1e-12)


@dtypes
def test_softmax_1_is_softmax_with_a_zero_that_says_nothing(dtype: torch.dtype) -> None:
    scores = inputs(1, 1, 1, 6, dtype=dtype) * 3
    one = torch.eye(6, dtype=dtype)[None, None]
    for scale in (1.0, 1e4, -1e4):
        for form in (hopfield, hopfield_loop):
            found = form(scale * scores, one, one, everything(scores, one), 1.0, 0, True)
            expected = torch.nn.functional.pad(scale * scores, (0, 1)).softmax(-1)[..., :-1]
            assert_close(found, expected, 1e-6)
    # nothing fits: nothing is read, where softmax must read something
    away = torch.full((1, 1, 1, 6), -50.0, dtype=dtype)
    assert hopfield(away, one, one, everything(away, one), 1.0, 0, True).norm() < 1e-9
    assert hopfield(away, one, one, everything(away, one), 1.0, 0, False).norm() > 0.4


@rests
@pytest.mark.parametrize("beta", [0.1, 1.0, 8.0])
def test_energy_never_rises(beta: float, rest: bool) -> None:
    q, k = inputs(B, H, T, K), inputs(B, H, 9, K, seed=2)
    before = energy(q, k, beta, rest)
    for _ in range(20):
        q = hopfield(q, k, k, everything(q, k), beta, 0, rest)
        after = energy(q, k, beta, rest)
        assert (after <= before + 1e-10).all()
        before = after
    assert_close(
        hopfield(q, k, k, everything(q, k), beta, 1000, rest),
        hopfield(q, k, k, everything(q, k), beta, 1001, rest),
        1e-6,
    )


@rests
def test_corrupted_patterns_are_recovered(rest: bool) -> None:
    patterns = inputs(1, 1, 20, 64).sign()
    damage = torch.ones(64, dtype=torch.float64)
    damage[:16] = -1  # a quarter of the numbers
    found = hopfield(patterns * damage, patterns, patterns, everything(patterns, patterns), 1.0, 1, rest)
    assert_close(found, patterns, 1e-3)


def test_a_hopfield_layer_without_updates_and_slots_is_attention_without_positions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    small: dict[str, Any] = {"dim": 8, "heads": 2}
    network, x = Hopfield(D, **small, updates=0, slots=0).double(), inputs(2, 9, D)
    plain = Transformer(D, **small).double()
    plain.load_state_dict({k: v for k, v in network.state_dict().items() if not k.endswith("patterns")})
    assert not torch.allclose(plain(x)[0], network(x)[0])
    monkeypatch.setattr(SelfAttention, "rotary", False)
    assert_close(network(x)[0], plain(x)[0], 1e-12)


# depth


def recurrent(iterations: int, **options: Any) -> DepthRecurrentTransformer:
    torch.manual_seed(0)
    return DepthRecurrentTransformer(D, dim=16, heads=2, iterations=iterations, **options).double()


def test_an_untrained_network_hardly_moves() -> None:
    x = inputs(2, 9, D)
    network = recurrent(20)
    start = network.norm(network.embed(x))
    assert (network(x)[0] - start).norm() < 0.01 * start.norm()
    loud = recurrent(20, scale=1.0, gate_bias=2.0)
    assert (loud(x)[0] - loud.norm(loud.embed(x))).norm() > 0.5 * start.norm()


def test_gradients_survive_depth() -> None:
    x, norms = inputs(2, 9, D), {}
    for iterations in (1, 20):
        network = recurrent(iterations)
        leaf = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad((network(leaf)[0] * inputs(2, 9, 16, seed=3)).sum(), leaf)
        norms[iterations] = gradient.norm()
    assert norms[1] / 10 < norms[20] < 10 * norms[1]


def test_more_depth_needs_no_more_parameters() -> None:
    x, network, deep = inputs(2, 9, D), recurrent(2, scale=1.0), recurrent(5, scale=1.0)
    deep.load_state_dict(network.state_dict())
    assert not torch.allclose(network(x)[0], deep(x)[0])
    network.iterations = 5
    assert_close(network(x)[0], deep(x)[0], 1e-12)


def test_an_open_gate_is_a_stack_of_one_block() -> None:
    x, network = inputs(2, 9, D), recurrent(3, scale=1.0, gate_bias=100.0)
    h = network.embed(x)
    for _ in range(3):
        h, _ = network.block(h, None, None, None)
    assert_close(network(x)[0], network.norm(h), 1e-12)
