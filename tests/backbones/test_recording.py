"""Layers of attention that are watched, and heads that are switched off."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from clplat import registry
from clplat.backbones.attention.gtrxl import GatedLayer
from clplat.backbones.attention.landmark import LandmarkLayer
from clplat.backbones.attention.segments import SegmentRecurrent
from clplat.backbones.attention.transformer import Transformer
from clplat.backbones.base import reference_form
from clplat.backbones.block import join_heads
from clplat.backbones.ops.attention import attention_loop, attention_weights
from clplat.backbones.recording import watched, without_heads
from clplat.build import backbone_maker

KINDS = [{}, {"window": 4}, {"keys_at_once": 3}, {"conv": 3}, {"weighing": "sigmoid"}, {"weighing": "relu"}]


def network(**options: object) -> Transformer:
    torch.manual_seed(0)
    return Transformer(5, dim=12, heads=3, layers=2, **options).double()


@pytest.mark.parametrize("options", KINDS, ids=str)
@pytest.mark.parametrize("carried", [False, True])
def test_weights_times_values_are_what_the_layer_gives(options: dict[str, object], carried: bool) -> None:
    """The layer's own output, which is computed in another way, is ``out(weights values)``."""
    net = network(**options)
    x = torch.randn(2, 7, 5, dtype=torch.float64)
    state = net(torch.randn(2, 6, 5, dtype=torch.float64))[1] if carried else None
    reset = torch.zeros(2, 7, dtype=torch.bool)
    reset[0, 3] = True
    mask = torch.ones(2, 7, dtype=torch.bool)
    mask[1, 5:] = False
    found = []
    handles = [layer.register_forward_hook(lambda m, a, out: found.append(out[0])) for layer in net.attention_layers]
    with watched(net) as seen:
        net(x, state, reset_BT=reset, mask_BT=mask)
    for handle in handles:
        handle.remove()
    assert len(seen) == len(found) == 2
    for layer, look, output in zip(net.attention_layers, seen, found, strict=True):
        made = layer.out(join_heads(look.weights @ look.value))
        torch.testing.assert_close(made[mask], output[mask])
        assert look.own_weights.shape == (2, 3, 7, 7)
        assert not look.own_weights.triu(1).any()
        if options.get("weighing", "softmax") == "softmax":
            torch.testing.assert_close(look.weights.sum(-1), torch.ones_like(look.weights[..., 0]))


@pytest.mark.parametrize("weighing", ["softmax", "sigmoid", "relu"])
def test_weighing_equals_its_loop(weighing: str) -> None:
    generator = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(2, 3, 6, 4, generator=generator, dtype=torch.float64) for _ in range(3))
    visible = torch.rand(2, 6, 6, generator=generator) < 0.5
    visible |= torch.eye(6, dtype=torch.bool)
    for given in (None, visible):
        expected = attention_loop(q, k, v, given, weighing)
        torch.testing.assert_close(attention_weights(q, k, given, weighing) @ v, expected)
    x = torch.randn(2, 6, 5, generator=generator, dtype=torch.float64)
    net = network(weighing=weighing)
    with reference_form():
        expected = net(x)[0]
    torch.testing.assert_close(net(x)[0], expected)


def test_nothing_is_left_behind_and_nothing_changes() -> None:
    net, x = network(), torch.randn(2, 7, 5, dtype=torch.float64)
    before = net(x)[0]
    with watched(net) as seen:
        assert torch.equal(net(x)[0], before)
    assert torch.equal(net(x)[0], before)
    assert len(seen) == 2
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_a_head_that_is_off_gives_nothing() -> None:
    net, x = network(), torch.randn(2, 7, 5, dtype=torch.float64)
    layer = net.attention_layers[1]
    with torch.no_grad():
        twin = network()
        twin.load_state_dict(net.state_dict())
        twin.attention_layers[1].out.weight[:, 4:8] = 0  # head 1 of 3, four wide
        assert not torch.equal(twin(x)[0], net(x)[0])
        with without_heads(net, [(1, 1)]):
            torch.testing.assert_close(net(x)[0], twin(x)[0])
        with without_heads(net, [(0, h) for h in range(3)] + [(1, 2), (1, 0)]):
            net(x)
    assert not layer.out._forward_pre_hooks


def test_refusals_name_the_option() -> None:
    with pytest.raises(Exception, match="window"):
        Transformer(5, window=3, weighing="relu")
    with pytest.raises(Exception, match="keys_at_once"):
        Transformer(5, keys_at_once=3, weighing="relu")


@pytest.mark.parametrize("name", registry.names("backbone"))
def test_every_layer_that_tells_weights_tells_the_right_ones(name: str) -> None:
    net = backbone_maker(registry.find("backbone", name))(64, (1, 8, 8)).eval()
    if "attention" not in net.gives():
        assert not net.attention_layers
        return
    T = 37 if net.sequential else 1
    joined: dict[nn.Module, list[torch.Tensor]] = {layer: [] for layer in net.attention_layers}
    for layer, given in joined.items():
        layer.out.register_forward_pre_hook(lambda m, a, given=given: given.append(a[0]))
    with torch.no_grad(), watched(net) as seen:
        net(torch.randn(2, T, 64))
    assert len(seen) == len(net.attention_layers)
    if isinstance(net, SegmentRecurrent):  # of each segment's places, its steps
        L = net.segment
        joined = {
            layer: [torch.cat([p[:, net.lead : net.lead + L] for p in given], 1)[:, :T]]
            for layer, given in joined.items()
        }
    for layer, look in zip(net.attention_layers, seen, strict=True):
        expected = joined[layer].pop(0)
        made = join_heads(look.weights @ look.value)
        made = made if look.gate is None else look.gate * made
        torch.testing.assert_close(made, expected, rtol=1e-4, atol=1e-5)
        steps = look.x.shape[1]
        assert look.own_weights.shape == (2, layer.heads, steps, steps)
        assert look.own_key.shape[:3] == look.own_value.shape[:3] == (2, layer.heads, steps)
        if net.causal:
            assert not look.own_weights.triu(1).any()
        if isinstance(layer, (GatedLayer, LandmarkLayer)):  # whose memory is steps: 32 before a segment, 8 blocks of 16
            torch.testing.assert_close(look.own_weights.sum(-1), torch.ones(2, layer.heads, T))
