"""Boolean functions in context, each found again among all functions of its kind."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterator

import pytest

from clplat.backbones.attention.transformer import Transformer
from clplat.errors import UsageError
from clplat.scenarios.boolean import FUNCTIONS, BooleanICL
from tests.scenarios.training import trained

Table = tuple[int, ...]  # the value of each point, in the order of POINTS
DIM = 4
POINTS = list(itertools.product([-1, 1], repeat=DIM))


def tables(function: Callable[[Table], bool]) -> Table:
    return tuple(1 if function(point) else -1 for point in POINTS)


def literals() -> Iterator[Table]:
    return (w for w in itertools.product([-1, 0, 1], repeat=DIM) if any(w))


def holding(whole: Callable[[Iterator[bool]], bool]) -> set[Table]:
    """All conjunctions or disjunctions."""
    return {tables(lambda x, w=w: whole(a == b for a, b in zip(x, w, strict=True) if b)) for w in literals()}


def three(terms: set[Table], join: Callable[[int, int], int]) -> set[Table]:
    """All normal forms of up to three terms."""
    two = {tuple(map(join, a, b)) for a in terms for b in terms}
    return {tuple(map(join, a, b)) for a in two for b in terms}


def subsets(sizes: range) -> Iterator[Table]:
    return (chosen for size in sizes for chosen in itertools.combinations(range(DIM), size))


def every(kind: str) -> set[Table]:
    """All functions of a kind, in words rather than sums."""
    if kind in ("conjunction", "disjunction"):
        return holding(all if kind == "conjunction" else any)
    if kind in ("dnf", "cnf"):
        return three(holding(all), max) if kind == "dnf" else three(holding(any), min)
    if kind == "majority":
        return {tables(lambda x, c=c: sum(x[i] > 0 for i in c) * 2 > len(c)) for c in subsets(range(1, DIM + 1, 2))}
    if kind in ("parity", "sparse-parity"):
        sizes = range(DIM + 1) if kind == "parity" else range(2, 3)
        return {tables(lambda x, c=c: sum(x[i] < 0 for i in c) % 2 == 0) for c in subsets(sizes)}
    if kind == "halfspace":
        whole = itertools.product(range(-3, 4), repeat=DIM)
        return {tables(lambda x, w=w: sum(a * b for a, b in zip(x, w, strict=True)) >= 1) for w in whole}
    return {
        tables(lambda x, w=w, k=k: sum(a * b for a, b in zip(x, w, strict=True)) > k)
        for w in literals()
        for k in (-2.5, -1.5, -0.5, 0.5, 1.5, 2.5)
    }


def shown(scenario: BooleanICL, e: int = 0) -> Iterator[tuple[list[Table], list[int]]]:
    """Points and values of each training sequence, whose form is checked on the way."""
    data = scenario.train_stream[e].dataset
    D = data.x.shape[2] - 1
    for x, y in zip(data.x.int().tolist(), data.y[..., 0].tolist(), strict=True):
        points, values = [tuple(row[:D]) for row in x[::2]], [row[D] for row in x[1::2]]
        assert all(row[D] == 0 for row in x[::2])
        assert all(row[:D] == [0] * D for row in x[1::2])
        assert y[::2] == [(value + 1) // 2 for value in values]
        assert set(y[1::2]) == {-100}
        yield points, values


def consistent(functions: Collection[Table], points: list[Table], values: list[int]) -> int:
    """How many functions have these values at these points."""
    asked = [(POINTS.index(point), value) for point, value in zip(points, values, strict=True)]
    return sum(all(table[place] == value for place, value in asked) for table in functions)


@pytest.mark.parametrize("kind", sorted(set(FUNCTIONS) - {"nearest-neighbour"}))
def test_each_sequence_shows_and_asks_one_function_of_its_kind(kind: str) -> None:
    scenario = BooleanICL(1, experiences=1, stream="same", function=kind, dim=DIM, samples=40, test_samples=2)
    functions = every(kind)
    assert all(consistent(functions, points, values) for points, values in shown(scenario))


def test_neighbours_lend_their_values() -> None:
    scenario = BooleanICL(1, experiences=1, stream="same", function="nearest-neighbour", samples=60, test_samples=2)
    firsts = []
    for points, values in shown(scenario):
        for t in range(1, 16):
            apart = [sum(a != b for a, b in zip(points[t], points[s], strict=True)) for s in range(t)]
            if t >= 4 or min(apart) == 0:
                assert values[t] == values[apart.index(min(apart))]
        firsts += values[:4]
    assert abs(sum(firsts) / len(firsts)) < 0.25


@pytest.mark.parametrize("kind", ["conjunction", "disjunction"])
def test_a_teaching_sequence_leaves_one_function_and_less_of_it_leaves_several(kind: str) -> None:
    scenario = BooleanICL(
        1, experiences=1, stream="same", function=kind, teaching=True, dim=DIM, samples=60, test_samples=2
    )
    functions = every(kind)
    for points, values in shown(scenario):
        taught = range(3, DIM + 3)  # two points, and one for each literal
        enough = next(k for k in taught if consistent(functions, points[:k], values[:k]) == 1)
        size = sum(a == b for a, b in zip(points[0], points[1], strict=True))
        assert enough == 2 + size
        assert values[:2] == [values[0]] * 2
        assert values[2 : 2 + size] == [-values[0]] * size


def test_values_are_balanced_enough_to_be_worth_asking() -> None:
    for kinds, dim in ((FUNCTIONS[:5], 10), (FUNCTIONS, 28)):
        scenario = BooleanICL(0, experiences=len(kinds), dim=dim, samples=1000, test_samples=2)
        for experience in scenario.train_stream:
            y = experience.dataset.y
            assert 0.3 < (y == 1).sum() / (y >= 0).sum() < 0.7


def late_accuracy(function: str, samples: int) -> tuple[float, float]:
    """Share of right values at the last three points after training, and that of the more frequent value."""
    scenario = BooleanICL(0, experiences=1, stream="same", function=function, dim=5, points=14, samples=samples)
    network = trained(scenario, lambda D: Transformer(D, dim=32, layers=2, heads=2), epochs=5, batch=64, lr=3e-3)
    data = scenario.test_stream[0].dataset
    wanted = data.y[:, ::2, 0][:, -3:] == 1
    found = network.answers(data.x)[:, ::2, 0][:, -3:] > 0
    usual = wanted.float().mean().item()
    return (found == wanted).float().mean().item(), max(usual, 1 - usual)


@pytest.mark.slow
def test_a_small_transformer_learns_to_learn_conjunctions_and_not_parities() -> None:
    """The seed's check for five variables. Measured: 0.92 against 0.55 for the more frequent value; with 8 variables
    and 20 points 0.88 after as many steps, still rising."""
    right, usual = late_accuracy("conjunction", 6144)
    assert right > 0.87 > usual + 0.2
    assert late_accuracy("parity", 1024)[0] < 0.6


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"experiences": 0, "points": 0, "dim": 1, "samples": 0, "test_samples": 0},
            ["experiences=0", "points=0", "dim=1", "samples=0", "test_samples=0"],
        ),
        ({"teaching": True, "points": 10}, ["teaching=true", "not majority", "points=10", "up to 10"]),
        ({"teaching": True, "stream": "same", "function": "parity"}, ["not parity"]),
    ],
)
def test_nonsense_is_refused(options: dict, words: list[str]) -> None:
    with pytest.raises(UsageError) as error:
        BooleanICL(0, **options)
    assert all(word in str(error.value) for word in words)
