"""The GRU is torch's own, weight by weight."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from clplat.backbones.base import reference_form
from clplat.backbones.rnn.gru import GRU
from clplat.errors import UsageError

from .helpers import assert_close, inputs


def pair(layers: int) -> tuple[GRU, nn.GRU]:
    """Ours and torch's with the same weights."""
    ours = GRU(5, hidden=6, layers=layers).double()
    theirs = nn.GRU(5, 6, layers, batch_first=True).double()
    with torch.no_grad():
        for layer in range(layers):
            for ours_layer, name in ((ours.ih[layer], "ih"), (ours.hh[layer], "hh")):
                ours_layer.weight.copy_(getattr(theirs, f"weight_{name}_l{layer}"))
                ours_layer.bias.copy_(getattr(theirs, f"bias_{name}_l{layer}"))
    return ours, theirs


@pytest.mark.parametrize("layers", [1, 3])
def test_equals_torch(layers: int) -> None:
    ours, theirs = pair(layers)
    x, hidden_BLH = inputs(3, 9, 5), inputs(3, layers, 6, seed=2)
    y_torch, last_torch = theirs(x, hidden_BLH.transpose(0, 1).contiguous())
    y, state = ours(x, {"hidden": hidden_BLH})
    assert torch.equal(y, y_torch)
    assert torch.equal(state["hidden"], last_torch.transpose(0, 1))
    with reference_form():
        y, state = ours(x, {"hidden": hidden_BLH})
    assert_close(y, y_torch, 1e-12)
    assert_close(state["hidden"], last_torch.transpose(0, 1), 1e-12)


def test_construction_has_the_range_of_torch() -> None:
    for parameter in GRU(5, hidden=64).parameters():
        assert 0.11 < parameter.abs().max() <= 64**-0.5


def test_loop_calls_its_linear_modules_at_each_step() -> None:
    """What the Fisher's hooks rely on."""
    network, calls = GRU(5, hidden=6), []
    network.hh[0].register_forward_hook(lambda *_: calls.append("hh"))
    network.ih[0].register_forward_hook(lambda *_: calls.append("ih"))
    x = inputs(2, 4, 5, dtype=torch.float32)
    with reference_form():
        network(x)
    assert calls.count("hh") == 4
    assert calls.count("ih") == 1
    network(x)
    assert len(calls) == 5


def test_needs_a_layer() -> None:
    with pytest.raises(UsageError, match="at least one layer"):
        GRU(5, layers=0)
