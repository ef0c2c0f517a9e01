"""Boolean functions in context, each found again among all functions of its kind."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import pytest

from clplat.errors import UsageError
from clplat.scenarios.boolean import FUNCTIONS, BooleanICL

Values = Callable[[list[int]], int]


def every(kind: str, dim: int) -> Iterator[Values]:
    """All functions of a kind, in words rather than sums."""
    if kind in ("conjunction", "disjunction"):
        whole = all if kind == "conjunction" else any
        for w in itertools.product([-1, 0, 1], repeat=dim):
            if any(w):
                yield lambda x, w=w: 1 if whole(a == b for a, b in zip(x, w, strict=True) if b) else -1
        return
    for size in range(dim + 1):
        for chosen in itertools.combinations(range(dim), size):
            if kind == "majority" and size % 2:
                yield lambda x, c=chosen: 1 if sum(x[i] > 0 for i in c) * 2 > len(c) else -1
            elif kind == "parity" or (kind == "sparse-parity" and size == 2):
                yield lambda x, c=chosen: -1 if sum(x[i] < 0 for i in c) % 2 else 1


@pytest.mark.parametrize("kind", FUNCTIONS)
def test_each_sequence_shows_and_asks_one_function_of_its_kind(kind: str) -> None:
    scenario = BooleanICL(1, experiences=1, stream="same", function=kind, dim=4, samples=40, test_samples=2)
    functions = list(every(kind, 4))
    data = scenario.train_stream[0].dataset
    for x, y in zip(data.x.int().tolist(), data.y[..., 0].tolist(), strict=True):
        points, values = [row[:4] for row in x[::2]], [row[4] for row in x[1::2]]
        assert all(row[4] == 0 for row in x[::2])
        assert all(row[:4] == [0] * 4 for row in x[1::2])
        assert y[::2] == [(value + 1) // 2 for value in values]
        assert y[1::2] == [-100] * 16
        assert any(all(f(point) == v for point, v in zip(points, values, strict=True)) for f in functions)


def test_values_are_balanced_enough_to_be_worth_asking() -> None:
    scenario = BooleanICL(0, experiences=5, dim=10, samples=1000, test_samples=2)
    for experience in scenario.train_stream:
        y = experience.dataset.y
        assert 0.3 < (y == 1).sum() / (y >= 0).sum() < 0.7


def test_nonsense_is_refused() -> None:
    with pytest.raises(UsageError) as error:
        BooleanICL(0, experiences=0, points=0, dim=1, samples=0, test_samples=0)
    for word in ("experiences=0", "points=0", "dim=1", "samples=0", "test_samples=0"):
        assert word in str(error.value)
