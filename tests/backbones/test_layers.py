"""Backbones taken apart for prompts come to the same as the whole, and a prefix is what it says."""

from __future__ import annotations

import pytest
import torch

from clplat import registry
from clplat.backbones.attention.transformer import Transformer
from clplat.backbones.block import split_heads
from clplat.backbones.ops.attention import rotate
from clplat.errors import UsageError

from .helpers import B, D, assert_close, build, each_entry, inputs


@pytest.mark.parametrize("entry", each_entry())
def test_the_layers_come_to_the_whole(entry: registry.Entry) -> None:
    network = build(entry).eval()
    x = inputs() if network.sequential else inputs(B, 1, D)  # a network that takes images is given one for each sample
    h_BTW = network.enter(x)
    assert h_BTW.shape[-1] == network.layer_width
    for number in range(network.layer_count):
        h_BTW = network.layer(number, h_BTW)
    assert_close(network.leave(h_BTW), network(x)[0], 1e-12)
    if not network.takes_prefix:
        with pytest.raises((UsageError, TypeError), match="prefix"):
            network.layer(0, network.enter(x), (x, x))


def test_a_prefix_is_seen_by_all_steps_and_takes_no_position() -> None:
    torch.manual_seed(0)
    network = Transformer(5, dim=8, heads=2, layers=1).double().eval()
    x, key, value = (torch.randn(3, n, d, dtype=torch.float64) for n, d in ((4, 5), (2, 8), (2, 8)))
    block = network.blocks[0]
    h = network.enter(x)
    q, k, v = (split_heads(part, 2) for part in block.mixer.qkv(block.mixer_norm(h)).chunk(3, -1))
    position = torch.arange(4)[None]
    q, k = rotate(q, position), rotate(k, position)
    outputs = []
    for t in range(4):
        keys = torch.cat([split_heads(key, 2), k[:, :, : t + 1]], 2)
        values = torch.cat([split_heads(value, 2), v[:, :, : t + 1]], 2)
        weights = (keys @ q[:, :, t, :, None] / 2).squeeze(-1).softmax(-1)
        outputs.append((weights[..., None] * values).sum(2).flatten(1))
    mixed = h + block.mixer.out(torch.stack(outputs, 1))
    expected = mixed + block.mlp(block.mlp_norm(mixed))
    assert_close(network.layer(0, h, (key, value)), expected, 1e-12)
