"""String functions: every composition is tried by a solver of its own."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest

from clplat.errors import UsageError
from clplat.scenarios.patterns import END, GIVES, PatternMachines
from tests.scenarios.streams import build


def solved(name: str, s: tuple[int, ...]) -> tuple[int, ...]:
    """The functions once more, by position."""
    n = len(s)
    places = {
        "reverse": [n - 1 - i for i in range(n)],
        "swap": [(n - 1) if i == 0 else 0 if i == n - 1 else i for i in range(n)],
        "shift": [(i + 1) % n for i in range(n)],
        "echo": [*range(n), n - 1],
        "remove": list(range(n > 2, n)),
        "repeat": [i % n for i in range(2 * n)],
    }
    return tuple(s[i] for i in places[name])


NAMES = ("reverse", "swap", "shift", "echo", "remove", "repeat")


def answers(pairs: list[tuple[tuple[int, ...], tuple[int, ...]]], query: tuple[int, ...], depth: int) -> set[Any]:
    """What all compositions make of the query that agree with the pairs."""
    found = set()
    for names in product(NAMES, repeat=depth):
        made = []
        for given in (*(given for given, _ in pairs), query):
            for name in names:
                given = solved(name, given)
            made.append(given)
        if made[:-1] == [out for _, out in pairs]:
            found.add(made[-1])
    return found


def read(x: list[int]) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Pairs of a sample."""
    found, t = [], 0
    while t < len(x) and x[t]:
        middle, end = x.index(GIVES, t), x.index(END, t)
        found.append((tuple(x[t:middle]), tuple(x[middle + 1 : end])))
        t = end + 1
    assert not any(x[t:])
    return found


@pytest.mark.parametrize("stream", ["depth", "functions"])
def test_a_solver_that_tries_everything_finds_the_answer(stream: Any) -> None:
    scenario = PatternMachines(2, stream=stream, samples=60, test_samples=20)
    for e, experience in enumerate(scenario.train_stream):
        sure = 0
        for x, y in zip(experience.dataset.x.tolist(), experience.dataset.y.tolist(), strict=True):
            *pairs, (query, out) = read(x)
            assert len(pairs) == 4
            assert all(2 <= len(given) == len(set(given)) <= 4 for given, _ in (*pairs, (query, out)))
            possible = answers(pairs, query, 1 + e if stream == "depth" else 1)
            assert out in possible
            sure += len(possible) == 1
            asked = [t for t, label in enumerate(y) if label != -100]
            assert [y[t] for t in asked] == [*out, END]
            assert [x[t + 1] for t in asked] == [*out, END]
            assert x[asked[0]] == GIVES
            if stream == "functions":
                assert all(solved(NAMES[e], given) == made for given, made in (*pairs, (query, out)))
        assert sure >= 50  # four pairs leave a doubt now and then


def test_symbols_that_are_held_back_are_in_their_slice_alone() -> None:
    scenario = PatternMachines(0, held=0.25, samples=300)
    for e in range(3):
        seen, tested, unseen = (
            {token for token in data.x.flatten().tolist() if token > END}
            for data in (
                scenario.train_stream[e].dataset,
                scenario.test_stream[e].dataset,
                scenario.slices["unseen"][e].dataset,
            )
        )
        assert seen == tested == set(range(11, 35))
        assert unseen == set(range(3, 11))
    assert not PatternMachines(0, held=0).slices


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"experiences": 0, "shots": 0, "length": 1}, ["experiences=0", "shots=0", "length=1"]),
        ({"symbols": 8, "held": 0.25}, ["symbols=8", "held=0.25"]),
        ({"stream": "functions", "experiences": 7}, ["experiences=7", "6 functions"]),
    ],
)
def test_nonsense_is_refused(options: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(UsageError) as error:
        build("pattern-machines", **options)
    assert all(word in str(error.value) for word in words)
