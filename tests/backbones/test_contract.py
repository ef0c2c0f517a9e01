"""The contract that every backbone in conf/backbone keeps, eleven points. A new entry is tested by existing."""

from __future__ import annotations

import copy
import io
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from clplat import registry
from clplat.backbones.base import Backbone, map_state, reference_form
from clplat.randomness import Noise, Rows, noise

from .helpers import (
    ENTRIES,
    FLAGS,
    NONE_AND_BOTH,
    TOLERANCE,
    B,
    D,
    T,
    assert_close,
    assert_states_close,
    at,
    batch_norms,
    build,
    each_entry,
    flags,
    floats,
    inputs,
    options,
)

entries = pytest.mark.parametrize("entry", each_entry())
kinds = pytest.mark.parametrize("kind", FLAGS)
none_and_both = pytest.mark.parametrize("kind", NONE_AND_BOTH)


def test_registry_has_backbones() -> None:
    assert {"mlp", "gru", "transformer", "linear-transformer", "resnet18[group]"} <= set(ENTRIES)


@entries
def test_declares(entry: registry.Entry) -> None:
    network = build(entry)
    assert isinstance(network, Backbone)
    assert network.input_size == D
    assert network(inputs())[0].shape == (B, T, network.output_size)
    assert entry.info["encoder"] in ("rows", "vectors", "image")
    assert entry.info["readout"] in ("last", "mean", "flatten")
    assert bool(batch_norms(network)) == entry.info.get("batch_norm", False)


# 1


@entries
@kinds
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["fp64", "fp32"])
def test_parallel_equals_loop(entry: registry.Entry, kind: str, dtype: torch.dtype) -> None:
    network, x, arguments = build(entry, dtype=dtype), inputs(dtype=dtype), flags(kind)
    _, carried = network(inputs(B, 4, D, seed=3, dtype=dtype))
    for state in (None, carried):
        y, after = network(x, state, **arguments)
        with reference_form():
            y_loop, after_loop = network(x, state, **arguments)
            exact = copy.deepcopy(network).double()(x.double(), map_state(as_double, state), **arguments)[0]
        assert y.dtype == dtype
        # A norm of nearly nothing blows rounding up, in the loop as well.
        scale = max(1.0, exact.abs().max().item())
        tolerance = max(TOLERANCE[dtype], 4 * (y_loop - exact).abs().max().item() / scale)
        assert tolerance < 1e-3
        assert_close(y, y_loop, tolerance)
        assert_states_close(after, after_loop, tolerance)


def as_double(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


# 2


@entries
@none_and_both
def test_chunk_size_does_not_matter(entry: registry.Entry, kind: str) -> None:
    if "chunk" not in entry.defaults:
        pytest.skip("no chunks")
    x, arguments = inputs(), flags(kind)
    y, after = build(entry, chunk=1)(x, **arguments)
    y_one = y
    for chunk in (2, 3, T, 64):
        network = build(entry, chunk=chunk)
        y_other, after_other = network(x, **arguments)
        if not entry.info.get("chunk_invariant", True):  # chunks are part of the model: each size is a loop of its own
            assert not torch.allclose(y_other, y_one, atol=1e-8)
            with reference_form():
                y, after = network(x, **arguments)
        assert_close(y_other, y, 1e-10)
        assert_states_close(after_other, after, 1e-10)


# 3


def gradients(network: Backbone, x: Tensor, arguments: dict[str, Tensor]) -> list[Tensor | None]:
    """Of a random linear function of the output and the last state, by the inputs, initial state and parameters."""
    _, state = network(inputs(B, 4, D, seed=3))
    state = map_state(lambda s: s.detach().requires_grad_(s.is_floating_point()), state)
    x = x.detach().requires_grad_()
    y, after = network(x, state, **arguments)
    loss = sum((out * inputs(*out.shape, seed=9 + i)).sum() for i, out in enumerate([y, *floats(after)]))
    wanted = [x, *floats(state), *network.parameters()]
    return list(torch.autograd.grad(loss, wanted, allow_unused=True))


@entries
@kinds
def test_gradients_equal(entry: registry.Entry, kind: str) -> None:
    network, arguments = build(entry), flags(kind)
    found = gradients(network, inputs(), arguments)
    with reference_form():
        expected = gradients(network, inputs(), arguments)
    assert sum(gradient is not None for gradient in expected) >= 1 + len(list(network.parameters()))
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None and theirs is not None:
            assert_close(ours, theirs, 1e-9)


@entries
def test_gradients_are_those_of_the_function(entry: registry.Entry) -> None:
    if entry.info.get("stops_gradient"):
        pytest.skip("declared to stop gradients on their way")
    network = build(entry)
    _, state = network(inputs(2, 2, D, seed=3))
    arguments = {"reset_BT": torch.tensor([[0, 0, 0], [0, 1, 0]]).bool(), "mask_BT": torch.ones(2, 3).bool()}
    for keywords in ({}, arguments):

        def function(x: Tensor, *leaves: Tensor, keywords: dict[str, Tensor] = keywords) -> tuple[Tensor, ...]:
            given = iter(leaves)
            y, after = network(x, map_state(lambda s: next(given) if s.is_floating_point() else s, state), **keywords)
            return y, *floats(after)

        leaves = [leaf.detach().requires_grad_() for leaf in floats(state)]
        torch.autograd.gradcheck(function, (inputs(2, 3, D).requires_grad_(), *leaves), fast_mode=True)


# 4


@entries
@none_and_both
def test_cut_anywhere_and_carry_the_state(entry: registry.Entry, kind: str) -> None:
    network, x, arguments = build(entry), inputs(), flags(kind)
    if network.sequential and not network.causal:
        pytest.skip("declared not to be causal: what a step sees depends on the cut")
    y, after = network(x, **arguments)
    for cuts in [[0, cut, T] for cut in range(1, T)] + [[0, 2, 5, T], list(range(T + 1))]:
        state, parts = None, []
        for start, stop in pairwise(cuts):
            part, state = network(x[:, start:stop], state, **at(arguments, (slice(None), slice(start, stop))))
            parts.append(part)
        assert_close(torch.cat(parts, 1), y, 1e-10)
        assert_states_close(state, after, 1e-10)


@entries
def test_initial_state_is_none(entry: registry.Entry) -> None:
    network, x = build(entry), inputs()
    y, after = network(x)
    y_given, after_given = network(x, network.init_state(B))
    assert_close(y_given, y, 1e-12)
    assert_states_close(after_given, after, 1e-12)


# 5


@entries
@pytest.mark.parametrize("carried", [False, True], ids=["fresh", "carried"])
def test_packed_sequences_equal_separate_ones(entry: registry.Entry, carried: bool) -> None:
    network, x, more = build(entry), inputs(), inputs(B, 3, D, seed=4)
    _, state = network(inputs(B, 4, D, seed=3)) if carried else (None, None)
    starts = [[0, 4], [3, 4, 8], []]  # of each sample
    reset_BT = torch.zeros(B, T, dtype=torch.bool)
    for b, steps in enumerate(starts):
        reset_BT[b, steps] = True
    y, after = network(x, state, reset_BT=reset_BT)
    y_more, _ = network(more, after)
    for b, steps in enumerate(starts):
        bounds = sorted({0, *steps, T})
        for start, stop in pairwise(bounds):
            begins = reset_BT[b, start].item() or state is None
            alone = None if begins else map_state(lambda s, b=b: s[b : b + 1], state)
            y_alone, last = network(x[b : b + 1, start:stop], alone)
            assert_close(y[b : b + 1, start:stop], y_alone, 1e-10)
        assert_close(y_more[b : b + 1], network(more[b : b + 1], last)[0], 1e-10)


@entries
@pytest.mark.parametrize("poison", [0.0, 1e6, float("nan")])
@pytest.mark.parametrize("carried", [False, True], ids=["fresh", "carried"])
def test_padding_equals_removed_steps(entry: registry.Entry, poison: float, carried: bool) -> None:
    network, x, more = build(entry), inputs(), inputs(B, 3, D, seed=4)
    _, state = network(inputs(B, 4, D, seed=3)) if carried else (None, None)
    state = map_state(Tensor.detach, state)
    mask_BT = flags("mask")["mask_BT"]
    mask_BT[0] = False  # a sample that is all padding
    x = x.masked_fill(~mask_BT[..., None], poison)
    y, after = network(x, state, mask_BT=mask_BT)
    assert (y[~mask_BT] == 0).all()
    y_more, _ = network(more, after)
    for b in range(B):
        alone = None if state is None else map_state(lambda s, b=b: s[b : b + 1], state)
        if mask_BT[b].any():
            y_alone, alone = network(x[b : b + 1, mask_BT[b]], alone)
            assert_close(y[b : b + 1, mask_BT[b]], y_alone, 1e-10)
        assert_close(y_more[b : b + 1], network(more[b : b + 1], alone)[0], 1e-10)
    for form in ("parallel", "loop"):
        x_leaf = x.clone().requires_grad_()
        with reference_form() if form == "loop" else torch.enable_grad():
            network(x_leaf, state, mask_BT=mask_BT)[0].square().sum().backward()
        assert (x_leaf.grad[~mask_BT] == 0).all()
        reached = [p.grad for p in network.parameters() if p.grad is not None]
        assert carried or len(reached) == len(list(network.parameters()))  # a learned initial state is not reached
        assert all(torch.isfinite(gradient).all() for gradient in reached)


@entries
def test_reset_holds_on_padding(entry: registry.Entry) -> None:
    network, x = build(entry), inputs()
    _, state = network(inputs(B, 4, D, seed=3))
    reset_BT, mask_BT = torch.zeros(B, T, dtype=torch.bool), torch.ones(B, T, dtype=torch.bool)
    reset_BT[:, 0], mask_BT[:, 0] = True, False
    y, _ = network(x, state, reset_BT=reset_BT, mask_BT=mask_BT)
    assert_close(y[:, 1:], network(x[:, 1:])[0], 1e-10)


# 6


@entries
@none_and_both
@pytest.mark.parametrize("size", [1.0, 1e4])
def test_causal(entry: registry.Entry, kind: str, size: float) -> None:
    network, x, arguments = build(entry, dtype=torch.float32), inputs(dtype=torch.float32), flags(kind)
    if not network.causal:
        pytest.skip("declared not to be causal")
    y, _ = network(x, **arguments)
    for t in range(T):
        changed = x.clone()
        changed[:, t:] += size * inputs(B, T - t, D, seed=5, dtype=torch.float32)
        y_changed, _ = network(changed, **arguments)
        if entry.info.get("exact_causality", True):
            assert torch.equal(y_changed[:, :t], y[:, :t])
        else:
            assert_close(y_changed[:, :t], y[:, :t], 1e-5 * size)
        if kind == "plain":
            assert not torch.equal(y_changed[:, t], y[:, t])


@entries
def test_order_matters_where_declared(entry: registry.Entry) -> None:
    network, x = build(entry), inputs()
    changed = x.clone()
    changed[:, 0] += 1
    same = torch.equal(network(changed)[0][:, 1:], network(x)[0][:, 1:])
    assert same != network.sequential


# 7


@entries
@pytest.mark.parametrize("weights", [0.0, 1.0, 100.0])
@pytest.mark.parametrize("size", [0.0, 1e4])
@pytest.mark.parametrize("form", ["parallel", "loop"])
def test_extremes_stay_finite(entry: registry.Entry, weights: float, size: float, form: str) -> None:
    network = build(entry, dtype=torch.float32).train()  # evaluation by batch norm takes weights that fit statistics
    # where an output multiplies many weights, it declares how much larger all of them together may be in float32
    weights = min(weights, entry.info.get("extreme_weights", weights))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter *= weights
    x = (inputs(dtype=torch.float32) * size).requires_grad_()
    with reference_form() if form == "loop" else torch.enable_grad():
        y, state = network(x, **flags("reset+mask"))
    outputs = [y, *floats(state)]
    assert all(torch.isfinite(out).all() for out in outputs)
    sum(out.mean() for out in outputs).backward()
    assert torch.isfinite(x.grad).all()
    assert all(torch.isfinite(p.grad).all() for p in network.parameters())


# 8


@entries
@none_and_both
def test_samples_do_not_influence_each_other(entry: registry.Entry, kind: str) -> None:
    network, x, arguments = build(entry), inputs(), flags(kind)
    _, state = network(inputs(B, 4, D, seed=3))
    y, after = network(x, state, **arguments)
    for b in range(B):
        others = torch.arange(B) != b
        changed, changed_state = x.clone(), map_state(Tensor.clone, state)
        changed[others] = 100 * inputs(B - 1, T, D, seed=6)
        for tensor in floats(changed_state):
            tensor[others] *= 3
        y_changed, after_changed = network(changed, changed_state, **arguments)
        assert_close(y_changed[b], y[b], 1e-12)
        assert_states_close(map_state(lambda s, b=b: s[b], after_changed), map_state(lambda s, b=b: s[b], after), 1e-12)
    order = torch.tensor([2, 0, 1])
    y_order, after_order = network(x[order], map_state(lambda s: s[order], state), **at(arguments, order))
    assert_close(y_order, y[order], 1e-12)
    assert_states_close(after_order, map_state(lambda s: s[order], after), 1e-12)


# 9


@entries
@none_and_both
def test_evaluation_is_the_same_function(entry: registry.Entry, kind: str) -> None:
    if entry.info.get("batch_norm"):
        pytest.skip("declared to have batch norm")
    network, x, arguments = build(entry), inputs(), flags(kind)
    y, after = network.train()(x, **arguments)
    network.eval()
    for context in (torch.enable_grad, torch.no_grad, torch.inference_mode):
        with context():
            y_eval, after_eval = network(x, **arguments)
        assert_close(y_eval, y.detach(), 1e-12)
        assert_states_close(after_eval, map_state(Tensor.detach, after), 1e-12)
    network(x, **arguments)[0].sum().backward()  # as the Fisher does, in evaluation mode


@entries
def test_dropout_is_for_training(entry: registry.Entry) -> None:
    if "dropout" not in entry.defaults:
        pytest.skip("no dropout")
    x, network = inputs(), build(entry, dropout=0.5)
    y, _ = build(entry)(x)
    assert torch.equal(network.eval()(x)[0], y)
    assert not torch.equal(network.train()(x)[0], y)
    with noise(Noise(1, Rows([(B, 0, B)]), 2)):
        whole, _ = network(x)
    for start, stop in ((0, 2), (2, B)):
        with noise(Noise(1, Rows([(B, start, stop)]), 2)):
            assert_close(network(x[start:stop])[0], whole[start:stop], 1e-12)


# 10


@entries
def test_weights_and_states_travel(entry: registry.Entry) -> None:
    network, x = build(entry), inputs()
    y, state = network(x)
    file = io.BytesIO()
    torch.save({"weights": network.state_dict(), "state": map_state(Tensor.detach, state)}, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    other = build(entry, seed=7)
    assert not torch.equal(other(x)[0], y)
    other.load_state_dict(loaded["weights"])
    copied = copy.deepcopy(network)
    for twin in (other, copied):
        assert torch.equal(twin(x)[0], y)
        assert torch.equal(twin(x, loaded["state"])[0], network(x, state)[0])
    with torch.no_grad():
        next(copied.parameters()).add_(1)
    assert torch.equal(network(x)[0], y)


@entries
@none_and_both
def test_bf16_autocast(entry: registry.Entry, kind: str) -> None:
    network, x, arguments = build(entry, dtype=torch.float32), inputs(dtype=torch.float32), flags(kind)
    x.requires_grad_()
    _, state = network(x, **arguments)
    expected, _ = network(x, state, **arguments)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, state = network(x, **arguments)
        found, _ = network(x, state, **arguments)
    found.float().sum().backward()
    assert (found.float() - expected).norm() <= 0.06 * expected.norm()  # a digit of 0.004 lost in each of many layers
    assert all(torch.isfinite(p.grad).all() for p in network.parameters())


# 11


@entries
@pytest.mark.parametrize("input_size", [1, 7])
def test_parameter_count(entry: registry.Entry, input_size: int) -> None:
    doubled = [options(entry, **{name: 2 * size}) for name, size in options(entry).items() if type(size) is int]
    for chosen in [entry.defaults, options(entry), *doubled]:
        network = entry.build(input_size, **chosen)
        known = {**chosen, "input_size": input_size, "channels": 1}
        expected = eval(entry.info["params"], {"__builtins__": {}, "int": int}, known)
        assert sum(p.numel() for p in network.parameters()) == expected
