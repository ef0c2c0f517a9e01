"""The recurrent networks are torch's own, weight by weight."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from clplat.backbones.base import reference_form
from clplat.backbones.rnn.gru import GRU
from clplat.backbones.rnn.lstm import LSTM
from clplat.backbones.rnn.recurrent import Recurrent
from clplat.backbones.rnn.rnn import RNN

from .helpers import assert_close, inputs

Pair = tuple[type[Recurrent], type[nn.RNNBase]]
pairs = pytest.mark.parametrize("kinds", [(RNN, nn.RNN), (GRU, nn.GRU), (LSTM, nn.LSTM)], ids=["rnn", "gru", "lstm"])


def pair(kinds: Pair, layers: int) -> tuple[Recurrent, nn.RNNBase]:
    """Ours and torch's with the same weights."""
    ours = kinds[0](5, hidden=6, layers=layers).double()
    theirs = kinds[1](5, 6, layers, batch_first=True).double()
    with torch.no_grad():
        for layer in range(layers):
            for ours_layer, name in ((ours.ih[layer], "ih"), (ours.hh[layer], "hh")):
                ours_layer.weight.copy_(getattr(theirs, f"weight_{name}_l{layer}"))
                ours_layer.bias.copy_(getattr(theirs, f"bias_{name}_l{layer}"))
    return ours, theirs


@pairs
@pytest.mark.parametrize("layers", [1, 3])
def test_equals_torch(kinds: Pair, layers: int) -> None:
    ours, theirs = pair(kinds, layers)
    x = inputs(3, 9, 5)
    state = {name: inputs(3, layers, 6, seed=2 + i) for i, name in enumerate(ours.parts)}
    given = tuple(part.transpose(0, 1).contiguous() for part in state.values())
    y_torch, last = theirs(x, given if len(given) > 1 else given[0])
    last_torch = last if isinstance(last, tuple) else (last,)
    y, after = ours(x, state)
    assert torch.equal(y, y_torch)
    assert all(torch.equal(a.transpose(0, 1), b) for a, b in zip(after.values(), last_torch, strict=True))
    with reference_form():
        y, after = ours(x, state)
    assert_close(y, y_torch, 1e-12)
    for ours_part, part in zip(after.values(), last_torch, strict=True):
        assert_close(ours_part, part.transpose(0, 1), 1e-12)


@pairs
def test_construction_has_the_range_of_torch(kinds: Pair) -> None:
    for parameter in kinds[0](5, hidden=64).parameters():
        assert 0.1 < parameter.abs().max() <= 64**-0.5


@pairs
def test_loop_calls_its_linear_modules_at_each_step(kinds: Pair) -> None:
    """What the Fisher's hooks rely on."""
    network, calls = kinds[0](5, hidden=6), []
    network.hh[0].register_forward_hook(lambda *_: calls.append("hh"))
    network.ih[0].register_forward_hook(lambda *_: calls.append("ih"))
    x = inputs(2, 4, 5, dtype=torch.float32)
    with reference_form():
        network(x)
    assert calls.count("hh") == 4
    assert calls.count("ih") == 1
    network(x)
    assert len(calls) == 5


def test_a_cell_keeps_what_its_gates_say() -> None:
    """An open forget gate and a closed input gate keep the cell; a closed output gate shows nothing of it."""
    network = LSTM(5, hidden=1).double()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        network.ih[0].bias.copy_(torch.tensor([-100.0, 100.0, 0.0, -100.0]))  # input, forget, new, output
    cell = torch.full((2, 1, 1), 0.7, dtype=torch.float64)
    y, state = network(inputs(2, 4, 5), {"hidden": torch.zeros_like(cell), "cell": cell})
    assert_close(state["cell"], cell, 1e-12)
    assert_close(y, torch.zeros_like(y), 1e-12)
