"""Sums and softmax averages over the steps so far, and the layers made of them: lightnet, aaren, gateloop, hgrn2."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from clplat.backbones.base import reference_form
from clplat.backbones.linear.aaren import Aaren, QueryAttention
from clplat.backbones.linear.gateloop import ComplexDecay, GateLoop
from clplat.backbones.linear.hgrn2 import HGRN2, TiedDecay
from clplat.backbones.linear.lightnet import Additive
from clplat.backbones.linear.retnet import Retention
from clplat.backbones.ops.log_sums import LOW, log_sums, log_sums_loop
from clplat.backbones.ops.running_softmax import Average, running_softmax_chunk, running_softmax_loop
from clplat.errors import UsageError

from .helpers import TOLERANCE, assert_close, inputs
from .test_decay import resets
from .test_linear import qkv, read

B, H, V = 2, 3, 5
dtypes = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["fp64", "fp32"])
probabilities = pytest.mark.parametrize("probability", [None, 0.0, 0.2, 1.1], ids=["none", "never", "some", "always"])


def differentiated(
    form: Callable[..., Sequence[Tensor]], leaves: list[Tensor], *arguments: Tensor | None
) -> list[Tensor]:
    """The outputs of a form, and the gradients of a random linear function of them."""
    leaves = [leaf.clone().requires_grad_() for leaf in leaves]
    outputs = form(*leaves, *arguments)
    loss = sum((out * inputs(*out.shape, seed=7 + i, dtype=out.dtype)).sum() for i, out in enumerate(outputs))
    return [*outputs, *torch.autograd.grad(loss, leaves)]


@dtypes
@probabilities
@pytest.mark.parametrize(("T", "size"), [(1, 1.0), (7, 1.0), (8, 50.0), (40, 1.0), (40, 50.0)])
def test_log_sums_equal_loop(T: int, size: float, probability: float | None, dtype: torch.dtype) -> None:
    x, z = size * inputs(B, T, V, dtype=dtype), inputs(B, V, seed=2, dtype=dtype)
    padding = torch.rand(B, T, 1, generator=torch.Generator().manual_seed(3)) < 0.2
    found, naive = (
        differentiated(
            lambda x, *rest, form=form: [form(x.masked_fill(padding, LOW), *rest)], [x, z], resets(T, probability)
        )
        for form in (log_sums, log_sums_loop)
    )
    for ours, theirs in zip(found, naive, strict=True):
        assert_close(ours, theirs, TOLERANCE[dtype])


def test_log_sums_are_logcumsumexp() -> None:
    x = 50 * inputs(B, 40, V)
    assert_close(log_sums(x, torch.full((B, V), LOW).double()), x.logcumsumexp(1), 1e-12)


def flat(form: Callable[..., tuple[Tensor, Average]]) -> Callable[..., list[Tensor]]:
    """A form of the running softmax with the parts of the averages one by one."""

    def call(s: Tensor, v: Tensor, m: Tensor, c: Tensor, a: Tensor, reset_BT: Tensor | None) -> list[Tensor]:
        y, after = form(s, v, Average(m, c, a), reset_BT)
        return [y, *after]

    return call


@dtypes
@probabilities
@pytest.mark.parametrize("size", [1.0, 80.0])
@pytest.mark.parametrize(("T", "chunk"), [(1, 4), (7, 4), (8, 4), (13, 5), (13, 1), (13, 64)])
def test_running_softmax_equals_loop(
    T: int, chunk: int, size: float, probability: float | None, dtype: torch.dtype
) -> None:
    s, v = size * inputs(B, H, T, dtype=dtype), inputs(B, H, T, V, seed=2, dtype=dtype)
    s = s.masked_fill(torch.rand(B, 1, T, generator=torch.Generator().manual_seed(3)) < 0.2, -torch.inf)
    m, c, a = inputs(B, H, seed=3, dtype=dtype), 1 + inputs(B, H, seed=4, dtype=dtype).exp(), inputs(B, H, V, seed=5)
    found, naive = (
        differentiated(flat(form), [s, v, m, c, a.to(dtype)], resets(T, probability))
        for form in (lambda *x: running_softmax_chunk(*x, chunk=chunk), running_softmax_loop)
    )
    for ours, theirs in zip(found, naive, strict=True):
        assert_close(ours, theirs, TOLERANCE[dtype] * size)


@pytest.mark.parametrize("form", ["chunk", "loop", "steps"])
def test_aaren_is_masked_softmax_attention_by_its_query(form: str) -> None:
    torch.manual_seed(0)
    mixer = QueryAttention(8, 2, chunk=4).double()
    with torch.no_grad():
        mixer.query *= 80
    x = inputs(B, 13, 8)
    k, v = (part.unflatten(-1, (2, 4)).transpose(1, 2) for part in mixer.kv(x).chunk(2, -1))
    q = mixer.query[:, None].expand(B, -1, 13, -1)
    scores = (q @ k.mT) / 2
    assert scores.abs().max() > 80
    seen = torch.ones(13, 13, dtype=torch.bool).tril()
    expected = mixer.out((scores.masked_fill(~seen, -torch.inf).softmax(-1) @ v).transpose(1, 2).flatten(2))
    if form == "steps":
        state, parts = None, []
        for start, stop in pairwise(range(14)):
            y, state = mixer(x[:, start:stop], state)
            parts.append(y)
        found = torch.cat(parts, 1)
    elif form == "loop":
        with reference_form():
            found, _ = mixer(x)
    else:
        found, _ = mixer(x)
    assert_close(found, expected, 1e-10)


def test_aaren_keeps_a_state_of_one_size() -> None:
    network = Aaren(5, dim=8, heads=2)
    assert network.state_size(1) == network.state_size(1000) == 2 * 2 * (4 + 2)


def test_lightnet_reads_by_a_softmax_of_the_keys_over_the_past() -> None:
    q, k, v = qkv()
    for size in (1.0, 50.0):
        y, _ = read(Additive(2, 4, 3, chunk=4), q, size * k, v)
        for t in range(k.shape[2]):
            weights = (size * k[:, :, : t + 1]).softmax(2)
            expected = torch.einsum("bhk,bhjk,bhjv->bhv", q[:, :, t] * q[:, :, t].sigmoid(), weights, v[:, :, : t + 1])
            assert_close(y[:, :, t], expected, 1e-10)


def test_lightnet_does_not_mind_the_order_of_the_past() -> None:
    q, k, v = qkv()
    order = torch.tensor([3, 0, 9, 1, 2, 8, 4, 7, 5, 6, 10])
    y, _ = read(Additive(2, 4, 3, chunk=4), q, k, v)
    y_other, _ = read(Additive(2, 4, 3, chunk=4), q[:, :, order], k[:, :, order], v[:, :, order])
    assert_close(y_other[:, :, -1], y[:, :, -1], 1e-12)


def test_gateloop_is_attention_with_complex_ratios() -> None:
    """The surrogate attention form, with ratios of the products of the transitions."""
    q, k, v = qkv()
    B, H, T, K = q.shape
    gates = inputs(B, T, 2 * H * K, seed=4)
    y, _ = read(ComplexDecay(H, K, v.shape[-1], chunk=4), q, k, v, gates)
    magnitude, angle = (part.unflatten(-1, (H, K)).transpose(1, 2) for part in gates.chunk(2, -1))
    product = (magnitude.sigmoid().log() + 1j * angle).cumsum(2)
    ratio = (product[:, :, :, None] - product[:, :, None]).exp()
    scores = torch.einsum("bhtk,bhjk,bhtjk->bhtj", q + 0j, k + 0j, ratio).real.tril()
    assert_close(y, scores @ v, 1e-9)


def test_gateloop_with_a_fixed_rotation_and_decay_is_retention() -> None:
    """A complex channel stands for two real ones: (q_1 + i q_2)* turned, with the products of retention."""
    _, _, v = qkv()
    T = v.shape[2]
    q, k = torch.zeros(2, 2, T, 4).double(), torch.zeros(2, 2, T, 4).double()
    q[..., 0], k[..., 0] = inputs(2, 2, T, seed=1), inputs(2, 2, T, seed=2)  # the real part of the first pair: angle 1
    expected, _ = read(Retention(2, 4, 3, chunk=4), q, k * 2, v)  # which divides keys by sqrt(4)
    kept = torch.tensor([1 - 1 / 32, 1 - 1 / 64]).double()
    gates = torch.cat([kept.logit(), torch.ones(2).double()]).expand(2, T, 4)
    y, _ = read(ComplexDecay(2, 1, 3, chunk=4), q[..., :1], k[..., :1], v, gates)
    assert_close(y, expected, 1e-10)


def test_hgrn2_takes_in_what_it_forgets() -> None:
    q, k, v = qkv()
    for floor in (0.0, 0.75):
        rule = TiedDecay(2, 4, 3, chunk=4, floor=floor)
        y, state = read(rule, q, k, v)
        floor = rule.floor.detach().sigmoid()[0] if floor else floor  # as it is in 32 bits
        S = torch.zeros(2, 2, 4, 3).double()
        for t in range(k.shape[2]):
            f = (floor + (1 - floor) * k[:, :, t].sigmoid())[..., None]
            S = f * S + (1 - f) * v[:, :, t, None]
            assert_close(y[:, :, t], (q[:, :, t, None] * q[:, :, t, None].sigmoid() @ S)[:, :, 0], 1e-10)
        assert_close(state["S"], S, 1e-10)
    # each row is an average of values and so stays within them
    assert state["S"].abs().max() <= v.abs().max()


def test_hgrn2_floors_rise_with_the_layers() -> None:
    rules = [mixer.heads.rule for mixer in HGRN2(5, dim=8, heads=2, layers=4).mixers]
    assert rules[0].floor is None
    for number, rule in enumerate(rules[1:], 1):
        assert_close(rule.floor.sigmoid(), torch.full((8,), number / 4), 1e-6)


@pytest.mark.parametrize("floor", [0.0, 0.9])
def test_hgrn2_floors_start_where_one_says(floor: float) -> None:
    network = HGRN2(5, dim=8, heads=2, layers=3, floor=floor)
    for mixer in network.mixers:
        start = mixer.heads.rule.floor
        assert (0.0 if start is None else float(start.detach().sigmoid().mean())) == pytest.approx(floor)
    with pytest.raises(UsageError, match="floor=1 is not from 0 to below 1"):
        HGRN2(5, floor=1)


@pytest.mark.slow
def test_gateloop_resets_its_memory_where_the_input_says_so() -> None:
    """The sign of the sum since the latest reset token; with a transition that is the same for all inputs it cannot."""

    def batch(seed: int) -> tuple[Tensor, Tensor]:
        source = torch.Generator().manual_seed(seed)
        values = torch.randint(2, (64, 24), generator=source) * 2 - 1
        begins = torch.rand(64, 24, generator=source) < 0.15
        total, signs = torch.zeros(64), []
        for t in range(24):
            total = total.masked_fill(begins[:, t], 0) + values[:, t]
            signs.append(total.sign().long() + 1)
        return torch.stack([values, begins, torch.ones(64, 24)], -1).float(), torch.stack(signs, 1)

    def accuracy(driven: bool) -> float:
        torch.manual_seed(0)
        network, head = GateLoop(3, dim=16, layers=1), torch.nn.Linear(16, 3)
        if not driven:
            weight = network.mixers[0].gates.weight
            weight.data.zero_()
            weight.requires_grad_(False)
        learned = [p for p in [*network.parameters(), *head.parameters()] if p.requires_grad]
        optimiser = torch.optim.Adam(learned, lr=1e-2)
        for step in range(100):
            x, target = batch(step)
            optimiser.zero_grad()
            torch.nn.functional.cross_entropy(head(network(x)[0]).mT, target).backward()
            optimiser.step()
        x, target = batch(10**6)
        with torch.no_grad():
            return (head(network(x)[0]).argmax(-1) == target).float().mean().item()

    assert accuracy(driven=True) > 0.95
    assert accuracy(driven=False) < 0.9
