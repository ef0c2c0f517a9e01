"""What strategies and the engine do with every backbone in conf/backbone: states, empty batches, functional calls."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap

from clplat import registry
from clplat.backbones.base import reference_form, state_tensors

from .helpers import NONE_AND_BOTH, B, D, T, assert_close, build, each_entry, flags, floats, inputs, options

entries = pytest.mark.parametrize("entry", each_entry())
kinds = pytest.mark.parametrize("kind", NONE_AND_BOTH)


def is_tree_of_tensors(state: object) -> bool:
    if isinstance(state, dict):
        return all(isinstance(key, str) and is_tree_of_tensors(part) for key, part in state.items())
    return isinstance(state, Tensor) or (type(state) in (list, tuple) and all(map(is_tree_of_tensors, state)))


@entries
@kinds
def test_states_are_trees_of_tensors_batch_first(entry: registry.Entry, kind: str) -> None:
    network, x = build(entry), inputs()
    first = network.init_state(B)
    _, after = network(x, **flags(kind))
    for state, steps in ((first, 0), (after, T)):
        tensors = state_tensors(state)
        assert is_tree_of_tensors(state)
        assert all(len(tensor) == B for tensor in tensors)
        assert all(tensor.dtype == torch.float64 for tensor in floats(state))
        assert sum(tensor[0].numel() for tensor in tensors) == network.state_size(steps)


@entries
@kinds
def test_empty_batch_and_single_step(entry: registry.Entry, kind: str) -> None:
    network = build(entry)
    for form in ("parallel", "loop"):
        for batch, steps in ((0, T), (0, 1), (2, 1)):
            x, arguments = inputs(batch, steps, D).requires_grad_(), flags(kind, batch, steps)
            with reference_form() if form == "loop" else torch.enable_grad():
                y, state = network(x, **arguments)
                y_more, _ = network(x, state, **arguments)
            assert y.shape == y_more.shape == (batch, steps, network.output_size)
            network.zero_grad()
            (y.sum() + y_more.sum()).backward()
            assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in network.parameters())


@entries
def test_per_sample_gradients_by_functorch(entry: registry.Entry) -> None:
    network, x = build(entry), inputs()
    weights = {name: parameter.detach() for name, parameter in network.named_parameters()}

    def loss(weights: dict[str, Tensor], x_TD: Tensor) -> Tensor:
        y, _ = functional_call(network, weights, (x_TD[None],))
        return y.square().sum()

    with reference_form():
        together = vmap(grad(loss), in_dims=(None, 0))(weights, x)
        stacked = vmap(loss, in_dims=(0, None))({name: torch.stack([w, 2 * w]) for name, w in weights.items()}, x[0])
    for b in range(B):
        network.zero_grad()
        network(x[b : b + 1])[0].square().sum().backward()
        for name, parameter in network.named_parameters():
            assert_close(together[name][b], parameter.grad, 1e-10)
    assert_close(stacked[1], loss({name: 2 * w for name, w in weights.items()}, x[0]), 1e-10)


@entries
def test_weights_from_elsewhere_on_a_skeleton(entry: registry.Entry) -> None:
    network, x, arguments = build(entry), inputs(), flags("reset+mask")
    with torch.device("meta"):
        skeleton = entry.build(D, **options(entry)).train(network.training)
    scale = torch.ones((), dtype=torch.float64, requires_grad=True)
    for keywords in ({}, arguments):
        weights = {name: scale * parameter.detach() for name, parameter in network.named_parameters()}
        weights |= dict(network.named_buffers())
        y, state = functional_call(skeleton, weights, (x,), keywords)
        y_more, _ = functional_call(skeleton, weights, (x, state), keywords)
        expected, expected_state = network(x, **keywords)
        assert_close(y, expected, 1e-12)
        assert_close(y_more, network(x, expected_state, **keywords)[0], 1e-12)
        (gradient,) = torch.autograd.grad(y_more.sum(), scale)
        assert torch.isfinite(gradient)


@entries
def test_construction_is_a_function_of_the_seed(entry: registry.Entry) -> None:
    one, same, other = (build(entry, seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)
