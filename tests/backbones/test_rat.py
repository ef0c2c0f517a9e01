"""RAT against attention at one end, a recurrent network at the other, and its cache in between."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from clplat.backbones.linear.rat import RAT, SegmentAttention
from clplat.backbones.ops.attention import attention, rotate
from clplat.errors import UsageError

from .helpers import assert_close, inputs

B, T, D, H = 2, 13, 8, 2


def mixer(segment: int, groups: int = 2) -> SegmentAttention:
    torch.manual_seed(0)
    return SegmentAttention(D, H, groups, segment).double()


def parts(network: SegmentAttention, x: Tensor) -> tuple[Tensor, ...]:
    """Output gate (B, T, D); recurrent gate, v, q and k (B, H, T, K)."""
    sizes = [D, D, D, *[network.groups * network.size] * 2]
    z, *others = network.project(x).split(sizes, -1)
    return z.sigmoid(), *(other.unflatten(-1, (-1, network.size)).transpose(1, 2) for other in others)


def test_segments_of_one_step_and_closed_gates_are_causal_attention() -> None:
    network, x = mixer(1), inputs(B, T, D)
    with torch.no_grad():
        network.project.bias[D : 2 * D] = -1e3
    z, _, v, q, k = parts(network, x)
    position_BT = torch.arange(T)[None]
    y = attention(rotate(q, position_BT), rotate(k, position_BT), v)
    assert_close(network(x)[0], network.out(z * y.transpose(1, 2).flatten(2)), 1e-10)


def test_one_long_segment_is_a_gated_recurrent_network() -> None:
    network, x = mixer(100), inputs(B, T, D)
    z, g, v, _, _ = parts(network, x)
    w = torch.zeros_like(v[:, :, 0])
    for t in range(T):
        w = g[:, :, t].sigmoid() * w + (1 - g[:, :, t].sigmoid()) * v[:, :, t]
        assert_close(network(x)[0][:, t], network.out(z[:, t] * w.flatten(1)), 1e-10)


def test_few_heads_of_queries_and_keys_serve_all_heads() -> None:
    one, both = mixer(1, groups=1), mixer(1, groups=2)
    K = one.size
    with torch.no_grad():
        for name in ("weight", "bias"):
            few, many = getattr(one.project, name), getattr(both.project, name)
            q, k = few[3 * D : 3 * D + K], few[3 * D + K :]
            many.copy_(torch.cat([few[: 3 * D], q, q, k, k]))
    both.out = one.out
    x = inputs(B, T, D)
    assert_close(both(x)[0], one(x)[0], 1e-12)


def test_cache_holds_one_key_for_each_segment_that_has_ended() -> None:
    network, x = mixer(4), inputs(B, T, D)
    state = None
    for t in range(T):
        _, state = network(x[:, t : t + 1], state)
        assert state["key"].shape == (B, H, (t + 1) // 4, D // H)
        assert (state["key"].abs().sum((1, 3)) > 0).all()
    # where another sequence began, less is there, in front
    reset_BT = torch.zeros(B, T, dtype=torch.bool)
    reset_BT[0, 7] = True
    _, state = network(x, reset_BT=reset_BT)
    _, alone = network(x[:1, 7:])
    assert state["key"].shape[2] == 3
    assert_close(state["key"][:1, :, :1], alone["key"], 1e-12)
    assert state["key"][0, :, 1:].count_nonzero() == 0
    assert (state["key"][1].abs().sum((0, 2)) > 0).all()


def test_gates_begin_by_remembering_up_to_a_segment() -> None:
    torch.manual_seed(0)
    bias = SegmentAttention(64, 4, 2, 16).project.bias[64:128].exp()
    assert 1 <= bias.min() < 3
    assert 13 < bias.max() <= 15


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UsageError, match="multiple of groups 3"):
        RAT(5, groups=3)
    with pytest.raises(UsageError, match="segment must be"):
        RAT(5, segment=0)
    with pytest.raises(UsageError, match="even multiple"):
        RAT(5, dim=12, heads=4)


@pytest.mark.slow
def test_recall_with_short_segments_where_a_recurrent_network_of_the_same_width_fails() -> None:
    """Six pairs of a key and a value, one after the other, then each key again: what was its value?"""
    pairs, words = 6, 12

    def batch(seed: int) -> tuple[Tensor, Tensor]:
        source = torch.Generator().manual_seed(seed)
        keys = torch.stack([torch.randperm(words, generator=source)[:pairs] for _ in range(32)])
        values = torch.randint(words, (32, pairs), generator=source)
        order = torch.stack([torch.randperm(pairs, generator=source) for _ in range(32)])
        x = torch.zeros(32, 3 * pairs, 2 * words)
        x[:, 0 : 2 * pairs : 2].scatter_(2, keys[..., None], 1.0)
        x[:, 1 : 2 * pairs : 2].scatter_(2, words + values[..., None], 1.0)
        x[:, 2 * pairs :].scatter_(2, keys.gather(1, order)[..., None], 1.0)
        return x, values.gather(1, order)

    def accuracy(segment: int) -> float:
        torch.manual_seed(0)
        network = RAT(2 * words, dim=32, heads=2, groups=2, segment=segment)
        head = torch.nn.Linear(32, words)
        optimiser = torch.optim.Adam([*network.parameters(), *head.parameters()], lr=5e-3)
        for step in range(150):
            x, target = batch(step)
            optimiser.zero_grad()
            logits = head(network(x)[0][:, 2 * pairs :])
            torch.nn.functional.cross_entropy(logits.mT, target).backward()
            optimiser.step()
        x, target = batch(10**6)
        with torch.no_grad():
            return (head(network(x)[0][:, 2 * pairs :]).argmax(-1) == target).float().mean().item()

    assert accuracy(segment=2) > 0.9
    assert accuracy(segment=100) < 0.5
