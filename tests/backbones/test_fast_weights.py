"""Memories of fast weights: their gradients, their loop, their dual form, and what they become in special cases."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from clplat import registry
from clplat.backbones.base import State, map_state, reference_form, state_tensors
from clplat.backbones.fastweights.memory import FastMemory
from clplat.backbones.fastweights.monomials import Monomials
from clplat.backbones.fastweights.titans import LongTermMemory
from clplat.backbones.ops import miras
from clplat.backbones.ops.by_chunk import by_chunk
from clplat.backbones.ops.delta_rule import delta_rule_loop
from clplat.backbones.ops.fast_net import Norm, gelu_slope, gradients, read
from clplat.backbones.ops.fast_weights import Rule, Steps, learn

B, H, T, K, V = 2, 2, 11, 4, 3


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def memory(depth: int, seed: int = 50) -> list[Tensor]:
    widths = [K, *[6] * (depth - 1), V]
    return [randn(B, H, i, o, seed=seed + n) / i**0.5 for n, (i, o) in enumerate(pairwise(widths))]


def norm_of(there: bool) -> Norm | None:
    return (1 + 0.1 * randn(H, 1, V, seed=60), 0.1 * randn(H, 1, V, seed=61)) if there else None


def steps_of(rule: Rule, momentum: bool = True, keep: bool = True, T: int = T) -> Steps:
    def gate(seed: int, width: int = 1) -> Tensor:
        return randn(B, H, T, width, seed=seed)

    q, k = (torch.nn.functional.normalize(gate(seed, K), dim=-1) for seed in (1, 2))
    return Steps(
        q,
        k,
        gate(3, V),
        gate(4).sigmoid() if rule.forgets else gate(4, V).sigmoid(),
        torch.nn.functional.logsigmoid(gate(5)) if keep else None,
        torch.nn.functional.logsigmoid(gate(6)) if momentum else None,
        0.3 * gate(7).sigmoid() if rule.window > 1 else None,
        gate(8).exp() if rule.bias is miras.huber else None,
    )


def run(
    rule: Rule, steps: Steps, weights: list[Tensor], chunk: int, state: State = None, loop: bool = False, **flags: Any
) -> tuple[Tensor, State]:
    """Outputs (B, H, T, V) and the last state."""
    packed, widths = steps.pack()

    def empty() -> Tensor:
        return packed.new_zeros(B, H, rule.window - 1, packed.shape[-1])

    first = rule.begin(weights, empty if rule.window > 1 else None, steps.inertia is not None)
    first = {**first, "position": torch.zeros(B, dtype=torch.long)}

    def advance(x: Tensor, live: Tensor, slot: Tensor, state: State) -> tuple[Tensor, State]:
        y, state = learn(rule, x.transpose(1, 2), widths, live, state)
        return y.transpose(1, 2), state

    def go() -> tuple[Tensor, State]:
        before = first if state is None else state
        return by_chunk(advance, rule.close, packed.transpose(1, 2), before, first, chunk, **flags)

    if loop:
        with reference_form():
            y, after = go()
    else:
        y, after = go()
    return y.transpose(1, 2), after


RULES = {
    "linear": (1, Rule()),
    "mlp": (2, Rule()),
    "deep": (3, Rule(norm=norm_of(True))),
    "l_p": (2, Rule(bias=miras.power(3), norm=norm_of(True))),
    "l_1": (1, Rule(bias=miras.absolute)),
    "dot": (1, Rule(bias=miras.product)),
    "huber": (2, Rule(bias=miras.huber)),
    "l_q": (2, Rule(link=miras.length_power(4))),
    "kl": (2, Rule(link=miras.simplex, norm=norm_of(True))),
    "elastic": (1, Rule(link=miras.sparse(0.1))),
    "omega": (2, Rule(window=3)),
    "wide omega": (1, Rule(window=7)),
    "muon": (2, Rule(muon=True, window=2)),
    "lazy": (2, Rule(lazy=True)),
    "forgets": (2, Rule(forgets=True, norm=norm_of(True))),
}
rules = pytest.mark.parametrize(("depth", "rule"), RULES.values(), ids=RULES.keys())


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("bias", ["l2", "l_3", "huber", "dot"])
def test_gradients_are_those_of_autograd(depth: int, normed: bool, bias: str) -> None:
    weights, norm, k, v = memory(depth), norm_of(normed), randn(B, H, 1, K), randn(B, H, 1, V, seed=3)
    limit = torch.tensor(0.7, dtype=torch.float64)
    e_of = {
        "l2": lambda e: e.square().sum() / 2,
        "l_3": lambda e: e.abs().pow(3).sum(),
        "huber": lambda e: sum(
            r.square() / 2 if r <= limit else limit * (r - limit / 2) for r in e.norm(dim=-1).flatten()
        ),
        "dot": lambda e: -((e + v) * v).sum(),
    }[bias]
    slope = {"l2": miras.squares, "l_3": miras.power(3), "huber": miras.huber, "dot": miras.product}[bias]
    leaves = [W.clone().requires_grad_() for W in weights]
    expected = torch.autograd.grad(e_of(read(leaves, k, norm) - v), leaves)
    inputs, deltas = gradients(weights, k, lambda y: slope(y, v, limit), norm)
    tolerance = {"l2": 1e-12, "dot": 1e-12}.get(bias, 1e-4)  # the others smooth the sign and the size
    for z, d, gradient in zip(inputs, deltas, expected, strict=True):
        error = (z.mT @ d - gradient).abs().max()
        assert error <= (0.2 if bias == "l_3" else tolerance) * gradient.abs().max() + 1e-12


def test_smoothed_slopes_are_close_to_the_true_ones() -> None:
    e = torch.tensor([-3.0, -1.0, -0.5, 0.5, 1.0, 3.0], dtype=torch.float64)
    zero = torch.zeros_like(e)
    assert torch.allclose(miras.power(3)(e, zero, None), 3 * e.sign() * e.square(), rtol=1e-3)
    assert torch.allclose(miras.absolute(e, zero, None), e.sign(), atol=1e-3)
    x = torch.linspace(-4, 4, 50, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(torch.nn.functional.gelu(x).sum(), x)
    assert torch.allclose(gelu_slope(x), slope, atol=1e-12)


@rules
@pytest.mark.parametrize("chunk", [1, 4, 64])
@pytest.mark.parametrize(("momentum", "keep"), [(True, True), (False, False)])
def test_chunks_equal_the_loop_with_all_gradients(
    depth: int, rule: Rule, chunk: int, momentum: bool, keep: bool
) -> None:
    steps = steps_of(rule, momentum, keep)
    flags = {
        "reset_BT": torch.rand(B, T, generator=torch.Generator().manual_seed(1)) < 0.2,
        "mask_BT": torch.rand(B, T, generator=torch.Generator().manual_seed(2)) < 0.8,
    }
    _, carried = run(rule, steps_of(rule, momentum, keep, 3), memory(depth), chunk)
    found = []
    for loop in (False, True):
        leaves = Steps(*(None if x is None else x.clone().requires_grad_() for x in steps))
        weights = [W.clone().requires_grad_() for W in memory(depth)]
        state = map_state(lambda s: s.detach().clone().requires_grad_(s.is_floating_point()), carried)
        y, after = run(rule, leaves, weights, chunk, state, loop, **flags)
        y = y * flags["mask_BT"][:, None, :, None]
        outputs = [y, *(s for s in state_tensors(after) if s.is_floating_point())]
        loss = sum((out * randn(*out.shape, seed=9 + n)).sum() for n, out in enumerate(outputs))
        wanted = [x for x in leaves if x is not None] + weights + [s for s in state_tensors(state) if s.requires_grad]
        found.append(outputs + list(torch.autograd.grad(loss, wanted)))
    for ours, theirs in zip(*found, strict=True):
        assert (ours - theirs).abs().max() <= 1e-10 * max(1.0, theirs.abs().max().item())


@pytest.mark.parametrize("depth", [1, 2])
def test_titans_equations_with_autograd(depth: int) -> None:
    """Chunks of one step are equations 10 to 15 of Titans, written down with autograd."""
    rule = Rule(norm=norm_of(depth == 2))
    steps, W = steps_of(rule), memory(depth)
    S = [torch.zeros_like(w) for w in W]
    y_expected = []
    for t in range(T):
        leaves = [w.detach().requires_grad_() for w in W]
        e = read(leaves, steps.k[:, :, t : t + 1], rule.norm) - steps.v[:, :, t : t + 1]
        loss = (steps.weight[:, :, t : t + 1] * e.square()).sum() / 2
        eta, keep = steps.inertia[:, :, t, :, None].exp(), steps.keep[:, :, t, :, None].exp()
        S = [eta * s - g for s, g in zip(S, torch.autograd.grad(loss, leaves), strict=True)]
        W = [keep * w + s for w, s in zip(W, S, strict=True)]
        y_expected.append(read(W, steps.q[:, :, t : t + 1], rule.norm))
    y, _ = run(rule, steps, memory(depth), chunk=1)
    assert (y - torch.cat(y_expected, 2)).abs().max() < 1e-9  # large steps make rounding grow


def test_linear_memory_is_the_gated_delta_rule() -> None:
    """Which decays before it corrects: so v / a, and the step a b, for b."""
    for keep in (False, True):
        steps = steps_of(Rule(), momentum=False, keep=keep)
        weight = steps.weight[..., :1]
        log_a = torch.zeros_like(weight) if steps.keep is None else steps.keep
        given = steps._replace(v=steps.v / log_a.exp(), weight=weight * log_a.exp())
        y, after = run(Rule(), given, memory(1), chunk=1)
        decay = {"g_BHT": log_a[..., 0]} if keep else {}
        y_expected, S = delta_rule_loop(steps.q, steps.k, steps.v, weight[..., 0], memory(1)[0], **decay)
        assert (y - y_expected).abs().max() < 1e-12
        assert (after["memory"][0] - S).abs().max() < 1e-12


def test_second_derivatives_through_the_inner_steps() -> None:
    """What meta-learning needs, also where a chunk's matrices are made again for the gradient."""
    for rule in (Rule(), Rule(link=miras.simplex)):
        steps = steps_of(rule, T=3)

        def function(q: Tensor, k: Tensor, W: Tensor, rule: Rule = rule, steps: Steps = steps) -> Tensor:
            return run(rule, steps._replace(q=q, k=k), [W], chunk=2)[0].square().sum()

        leaves = [x.clone().requires_grad_() for x in (steps.q, steps.k, memory(1)[0])]
        assert torch.autograd.gradcheck(function, leaves, fast_mode=True)
        assert torch.autograd.gradgradcheck(function, leaves, fast_mode=True)


def test_a_memory_recalls_what_it_has_read() -> None:
    k = torch.nn.functional.normalize(randn(1, 1, 16, 64), dim=-1)
    v = torch.nn.functional.normalize(randn(1, 1, 16, 64, seed=1), dim=-1)
    first = {**Rule().begin([torch.zeros(1, 1, 64, 64, dtype=torch.float64)]), "position": torch.zeros(1).long()}
    for rate, least, most in ((1.0, 0.9, 1.0), (0.0, -0.1, 0.1)):
        packed, widths = Steps(k, k, v, torch.full((1, 1, 16, 1), rate, dtype=torch.float64)).pack()

        def advance(
            x: Tensor, live: Tensor, slot: Tensor, state: State, widths: list[int] = widths
        ) -> tuple[Tensor, State]:
            return learn(Rule(), x.transpose(1, 2), widths, live, state)

        _, after = by_chunk(advance, Rule().close, packed.transpose(1, 2), first, first, 1)
        cosine = torch.nn.functional.cosine_similarity(read(after["memory"], k), v, dim=-1).mean().item()
        assert least <= cosine <= most


def test_forgetting_takes_away_along_the_key() -> None:
    """``W = W (alpha I - eta k k') - eta grad``, as in self-modifying Titans."""
    steps, A = steps_of(Rule(forgets=True), momentum=False, T=1), memory(1)[0]
    _, after = run(Rule(forgets=True), steps, [A], chunk=1)
    k, eta, alpha = steps.k.mT, steps.weight, steps.keep.exp()
    expected = alpha * A - eta * k @ (k.mT @ A) - eta * k @ (k.mT @ A - steps.v)
    assert (after["memory"][0] - expected).abs().max() < 1e-12


def test_omega_sums_the_window() -> None:
    """Chunks of one step: the gradients of the last c steps at the weights before the step (Atlas, the Omega rule)."""
    rule = Rule(window=3)
    steps, A = steps_of(rule, momentum=False), memory(1)[0]
    for t in range(T):
        change = torch.zeros_like(A)
        for i in range(max(0, t - 2), t + 1):
            k, v, gamma = (x[:, :, i : i + 1] for x in (steps.k, steps.v, steps.weight))
            change = change + k.mT @ (gamma * (k @ A - v))
        A = steps.keep[:, :, t, :, None].exp() * A - steps.rate[:, :, t, :, None] * change
    _, after = run(rule, steps, memory(1), chunk=1)
    assert (after["memory"][0] - A).abs().max() < 1e-12


@pytest.mark.parametrize("name", ["miras-memora", "miras-moneta", "miras-yaad"])
def test_the_usual_step_is_large_enough_to_store_something(name: str) -> None:
    """Eight pairs of random unit keys and values, written at half of the largest step as untrained gates do."""
    torch.manual_seed(0)
    network = registry.find("backbone", name).build(16, dim=64, heads=4, layers=1).double()
    (mixer,) = (part for part in network.modules() if isinstance(part, FastMemory))
    rule, weights = mixer.rule(torch.float64), [W.detach().expand(5, *W.shape) for W in mixer.weights]
    k, v = torch.nn.functional.normalize(randn(5, 4, 8, 16), dim=-1), randn(5, 4, 8, 16, seed=1)
    steps = Steps(k, k, v - k, torch.full_like(k, mixer.rate / 2), limit=torch.ones_like(k[..., :1]))
    state = {**rule.begin(weights), "position": torch.zeros(5, dtype=torch.long)}
    packed, widths = steps.pack()
    for t in range(8):
        _, state = learn(rule, packed[:, :, t : t + 1], widths, torch.ones(5, 1, dtype=torch.bool), state)
        state = rule.close(state)
    read_before, read_after = (read(W, k, rule.norm) for W in (rule.begin(weights)["frozen"], state["frozen"]))
    before, after = ((y + k - v).square().mean().item() for y in (read_before, read_after))
    assert after < 0.85 * before


def test_memora_stays_on_the_simplex() -> None:
    rule = Rule(link=miras.simplex, norm=norm_of(True))
    _, after = run(rule, steps_of(rule, momentum=False, T=500), memory(2), chunk=1)
    for W in after["frozen"]:
        assert (W >= 0).all()
        assert torch.allclose(W.sum(-2), torch.tensor(float(W.shape[-2]), dtype=W.dtype))
    # and it is softmax(a log W - eta gradient)
    steps, A = steps_of(rule, momentum=False, T=1), memory(1)[0]
    W = miras.simplex(A)
    _, after = run(Rule(link=miras.simplex), steps, [A], chunk=1)
    g = steps.k.mT @ (steps.weight * (steps.k @ W - steps.v))
    expected = K * (steps.keep.exp() * (W / K).log() - g).softmax(-2)
    assert (after["frozen"][0] - expected).abs().max() < 1e-12


def test_moneta_divides_by_a_power_of_its_length() -> None:
    A = torch.tensor([[1.0, 2.0], [0.0, -1.0]], dtype=torch.float64)
    assert torch.allclose(miras.length_power(4)(A), A / 18**0.5, rtol=1e-5)
    assert torch.allclose(miras.length_power(2)(A), A)


def test_muon_makes_singular_values_alike() -> None:
    values = torch.linalg.svdvals(miras.orthogonal(randn(20, 6, 4)))
    assert values.min() > 0.5
    assert values.max() < 1.3


def test_yaad_shrugs_off_outliers() -> None:
    """A tenth of the values are a hundred times too large; what is recalled for the others is compared."""
    k = torch.nn.functional.normalize(randn(8, 1, 200, 16), dim=-1)
    true = randn(8, 1, 16, 16, seed=1)
    v, outlier = k @ true, torch.rand(8, 1, 200, generator=torch.Generator().manual_seed(5)) < 0.1
    seen = torch.where(outlier[..., None], 100 * randn(*v.shape, seed=2), v)
    errors = {}
    for name, rule in {"l2": Rule(), "huber": Rule(bias=miras.huber)}.items():
        weight, limit = torch.full_like(k[..., :1], 0.5), torch.ones_like(k[..., :1])
        packed, widths = Steps(k, k, seen, weight, limit=limit).pack()
        first = {**rule.begin([torch.zeros_like(true)]), "position": torch.zeros(8, dtype=torch.long)}

        def advance(
            x: Tensor, live: Tensor, slot: Tensor, state: State, rule: Rule = rule, widths: list[int] = widths
        ) -> tuple[Tensor, State]:
            return learn(rule, x.transpose(1, 2), widths, live, state)

        _, after = by_chunk(advance, rule.close, packed.transpose(1, 2), first, first, 1)
        errors[name] = (read(after["memory"], k) - v)[~outlier].square().mean().item()
    assert errors["huber"] < 0.1 * errors["l2"]


@pytest.mark.parametrize("degree", [1, 2, 3])
def test_monomials_are_powers_of_the_product(degree: int) -> None:
    features = Monomials(K, degree).double()
    q, k = randn(5, K), randn(5, K, seed=1)
    expected = sum((q * k).sum(-1) ** i / math.factorial(i) for i in range(degree + 1))
    found = features(q), features(k)
    assert found[0].shape[-1] == features.size == math.comb(K + degree, degree)
    assert torch.allclose((found[0] * found[1]).sum(-1), expected, rtol=1e-6)


def test_a_deep_memory_learns_to_recall_in_a_stack() -> None:
    """The network alone is no memory: what a step reads depends on what came before through fast weights only."""
    torch.manual_seed(0)
    network = LongTermMemory(4, dim=8, heads=2, layers=1, chunk=2, conv=0).double()
    x = randn(1, 6, 4)
    changed = x.clone()
    changed[:, 0] += 1
    assert (network(x)[0] - network(changed)[0])[:, 1:].abs().min() > 0
    gate = network.blocks[0].mixer.gate
    with torch.no_grad():
        gate.weight.zero_()
        gate.bias[::3], gate.bias[1::3] = -1e4, 1e4  # no step and no decay
    assert torch.equal(network(x)[0][:, 1:], network(changed)[0][:, 1:])


@pytest.mark.parametrize("size", [-1e4, 1e4])
def test_saturated_gates_stay_finite(size: float) -> None:
    rule = Rule(norm=norm_of(True))
    steps = steps_of(rule)
    gates = torch.full((B, H, T, 1), size, dtype=torch.float64, requires_grad=True)
    log = torch.nn.functional.logsigmoid(gates)
    y, _ = run(rule, steps._replace(keep=log, inertia=log), memory(2), chunk=4)
    y.sum().backward()
    assert torch.isfinite(y).all()
    assert torch.isfinite(gates.grad).all()
