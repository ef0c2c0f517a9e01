"""The memories behind networks over segments: each against its loop, by hand, and for what it is good for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from clplat.backbones.ops.associative_memory import dpfp, recall, store, store_loop
from clplat.backbones.ops.engrams import LONG, NONE, SHORT, WORKING, Engrams, add, remind, settle
from clplat.backbones.ops.relative_attention import relative_attention, relative_attention_loop, sinusoids
from clplat.backbones.ops.retrieval import best, retrieve, retrieve_loop

from .helpers import TOLERANCE, assert_close, inputs

B, H, K, V = 2, 3, 4, 5
dtypes = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["fp64", "fp32"])


def assert_equal_forms(forms: list[Callable[..., Any]], tensors: list[Tensor], dtype: torch.dtype) -> None:
    """The same outputs and gradients."""
    results = []
    for form in forms:
        leaves = [tensor.clone().requires_grad_() for tensor in tensors]
        outputs = form(*leaves)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        loss = sum((out * inputs(*out.shape, seed=7 + i, dtype=dtype)).sum() for i, out in enumerate(outputs))
        results.append([*outputs, *torch.autograd.grad(loss, leaves)])
    for ours, naive in zip(*results, strict=True):
        assert_close(ours, naive, TOLERANCE[dtype])


# associative memory


@dtypes
@pytest.mark.parametrize("M", [1, 6])
def test_storing_at_once_equals_one_at_a_time(M: int, dtype: torch.dtype) -> None:
    k = dpfp(inputs(B, M, K, seed=1, dtype=dtype), 3)
    b, A = inputs(B, M, seed=2, dtype=dtype).sigmoid(), inputs(B, 6 * K, V, seed=3, dtype=dtype)
    z = dpfp(inputs(B, K, seed=4, dtype=dtype), 3)
    assert_equal_forms([store, store_loop], [k, inputs(B, M, V, dtype=dtype), b, A, z], dtype)


def test_dpfp_by_hand() -> None:
    x = torch.tensor([2.0, -3.0], dtype=torch.float64)  # r = 2, 0, 0, 3
    products = torch.tensor([6.0, 0, 0, 0, 0, 0, 0, 0], dtype=torch.float64)  # r_0 r_3; then r_i r_{i-2}: none
    assert_close(dpfp(x, 2), products / 6, 1e-12)
    assert_close(dpfp(inputs(7, 3), 3).norm(dim=-1), torch.ones(7, dtype=torch.float64), 1e-12)


def test_a_pair_that_is_known_changes_nothing_and_a_new_value_replaces_the_old() -> None:
    k, v, other = dpfp(inputs(1, 1, K), 3), inputs(1, 1, V, seed=2), inputs(1, 1, V, seed=3)
    one, nothing = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, 6 * K, V, dtype=torch.float64)
    A, z = store(k, v, one, nothing, nothing[..., 0])
    assert_close(recall(k, A, z), v, 1e-4)
    A_again, z_again = store(k, v, one, A, z)
    assert_close(A_again, A, 1e-4)
    assert_close(z_again, z, 1e-4)
    A_new, z_new = store(k, other, one, A, z)
    assert_close(recall(k, A_new, z_new), other, 1e-4)
    assert recall(k, nothing, nothing[..., 0]).count_nonzero() == 0


# attention with relative positions


@dtypes
@pytest.mark.parametrize("P", [0, 3])
def test_relative_attention_equals_loop(P: int, dtype: torch.dtype) -> None:
    T, S = 4, 4 + P
    shapes = [(B, H, T, K), (B, H, S, K), (B, H, S, V), (H, S, K), (H, K), (H, K)]
    tensors = [inputs(*shape, seed=i, dtype=dtype) for i, shape in enumerate(shapes)]
    visible = torch.ones(B, T, S, dtype=torch.bool).tril(P)
    visible[0, :, :P] = False

    def form(kernel: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda *a: kernel(*a, visible)

    assert_equal_forms([form(relative_attention), form(relative_attention_loop)], tensors, dtype)


def test_sinusoids_by_hand() -> None:
    found = sinusoids(3, 4, torch.device("cpu"), torch.float64)
    two = torch.tensor([2.0, 0.02], dtype=torch.float64)
    assert_close(found[2], torch.cat([two.sin(), two.cos()]), 1e-12)
    assert sinusoids(3, 5, torch.device("cpu"), torch.float64).shape == (3, 5)


# stored blocks


@dtypes
@pytest.mark.parametrize("heads", [1, H])
def test_retrieval_equals_loop(heads: int, dtype: torch.dtype) -> None:
    N, C, T = 3, 2, 4
    weights = inputs(B, heads, T, N, seed=4, dtype=dtype).softmax(-1)
    tensors = [inputs(B, H, T, K, dtype=dtype), inputs(B, H, N, C, K, seed=2, dtype=dtype)]
    tensors += [inputs(B, H, N, C, V, seed=3, dtype=dtype), weights]
    assert_equal_forms([retrieve, retrieve_loop], tensors, dtype)


def test_best_by_hand() -> None:
    scores = torch.tensor([[3.0, 9.0, 1.0, 2.0]]).expand(2, 1, 1, 4)
    live = torch.tensor([[1, 0, 1, 1], [0, 0, 0, 1]]).bool()
    assert best(scores, live, 2)[:, 0, 0].int().tolist() == [[1, 0, 0, 1], [0, 0, 0, 1]]
    assert best(scores, live, 9)[:, 0, 0].equal(live)


# engrams


def line(*rows: list[float]) -> Tensor:
    """Vectors of one number each, (B, E, 1)."""
    return torch.tensor(rows, dtype=torch.float64)[..., None]


def test_engrams_by_hand() -> None:
    """Two engrams of working memory for each of three segments; one of each two is kept in mind."""
    there = torch.tensor([True])
    store = Engrams(
        line([0.0] * 4), *(torch.zeros(1, 4, dtype=t) for t in (torch.long, torch.float64)), torch.zeros(1, 4, 4).long()
    )

    store = add(store, line([1.0, 5.0]), there, 2.0)
    assert store.kind.tolist() == [[0, 0, 0, 0, WORKING, WORKING]]
    seen, store = remind(store, 1, 1, 1)
    assert not seen.any()
    assert store.counts[0, 4:, 4:].tolist() == [[1, 1], [1, 1]]
    store = settle(store, torch.zeros(1, 6), short=2, keep=4)
    assert store.kind.tolist() == [[0, 0, SHORT, SHORT]]
    assert store.lifespan.tolist() == [[0, 0, 1, 1]]
    assert store.data[0, :, 0].tolist() == [0, 0, 1, 5]

    store = add(store, line([5.5, 9.0]), there, 2.0)
    seen, store = remind(store, 1, 1, 1)  # 5 is nearest; there is nothing in the long term
    assert seen.int().tolist() == [[0, 0, 0, 1, 0, 0]]
    assert store.counts[0, 3].tolist() == [0, 0, 1, 2, 1, 1]  # it fired with 1 before, and now with the new ones
    store = settle(store, 3.0 * seen, short=2, keep=4)  # 1 dies, 5 gains and moves on
    assert store.kind.tolist() == [[NONE, LONG, SHORT, SHORT]]
    assert store.lifespan.tolist() == [[0, 3, 1, 1]]
    assert store.data[0, 1:, 0].tolist() == [5, 5.5, 9]
    assert store.counts[0, 1].tolist() == [0, 2, 1, 1]

    store = add(store, line([8.0, 7.0]), there, 2.0)
    seen, store = remind(store, 1, 1, 3)  # 9 is nearest, and 5 fired with it
    assert seen.int().tolist() == [[0, 1, 0, 1, 0, 0]]
    store = settle(store, 0.5 * seen, short=2, keep=4)
    assert store.data[0, :, 0].tolist() == [5, 9, 8, 7]  # 5.5 has died
    assert store.lifespan.tolist() == [[2.5, 0.5, 1, 1]]
    assert store.kind.tolist() == [[LONG, LONG, SHORT, SHORT]]


def by_walking(store: Engrams, b: int, short: int, long: int, depth: int) -> set[int]:
    """What one sample is reminded of, with lists and loops."""
    data, kind, counts = store.data[b], store.kind[b].tolist(), store.counts[b].tolist()
    working, places = [e for e, k in enumerate(kind) if k == WORKING], range(len(kind))
    near = {e: sum(float((-(data[w] - data[e]).square().sum()).exp()) for w in working) for e in places}
    starts = sorted((e for e in places if kind[e] == SHORT), key=lambda e: -near[e])[:short]
    walkers, found = list(starts), set()
    for _ in range(depth + 1):
        left = [e for e in places if kind[e] == LONG and e not in found]
        walkers = [max(left, key=lambda e: counts[w][e]) for w in walkers] if left else []
        found |= set(walkers)
    return set(starts) | set(sorted(found, key=lambda e: -near[e])[:long])


@pytest.mark.parametrize("depth", [0, 2, 9])
@pytest.mark.parametrize("short", [1, 2, 9])
def test_reminding_is_walking(short: int, depth: int) -> None:
    E, source = 14, torch.Generator().manual_seed(depth)
    # distinct counts: no ties
    counts = torch.stack([torch.randperm(E * E, generator=source).unflatten(0, (E, E)) for _ in range(4)])
    kind = torch.tensor([LONG] * 6 + [NONE] * 2 + [SHORT] * 4 + [WORKING] * 2).expand(4, -1)
    kind = kind.gather(1, torch.rand(4, E, generator=source).argsort(1))
    store = Engrams(0.5 * inputs(4, E, 2), kind, torch.ones(4, E), counts)
    seen, after = remind(store, short, 3, depth)
    for b in range(4):
        expected = by_walking(store, b, short, 3, depth)
        assert set(seen[b].nonzero().flatten().tolist()) == expected
        fired = [e in expected or kind[b, e] == WORKING for e in range(E)]
        together = torch.tensor([[one and other for one in fired] for other in fired]).long()
        assert torch.equal(after.counts[b] - counts[b], together)


def test_a_store_of_engrams_stays_bounded() -> None:
    store = Engrams(
        torch.zeros(2, 5, 3),
        *(torch.zeros(2, 5, dtype=t) for t in (torch.long, torch.float32)),
        torch.zeros(2, 5, 5).long(),
    )
    for n in range(9):
        store = add(
            store, torch.randn(2, 2, 3, generator=torch.Generator().manual_seed(n)), torch.tensor([True, n > 4]), 100.0
        )
        _, store = remind(store, 2, 2, 2)
        store = settle(store, torch.zeros(2, 7), short=2, keep=5)
        assert store.data.shape == (2, 5, 3)
        assert (store.kind == SHORT).sum(1).max() <= 2
    assert store.kind.tolist() == [[LONG, LONG, LONG, SHORT, SHORT]] * 2
