"""The reservoir: equal to algorithm R done one by one, and a uniform sample."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clplat.errors import UsageError
from clplat.memory import ReservoirMemory
from clplat.randomness import generator


def _one_by_one(size: int, chunks: list[int]) -> list[int]:
    slots: list[int] = []
    seen = 0
    for number, n in enumerate(chunks):
        draws = torch.rand(n, generator=generator(0, "r", number), dtype=torch.float64).tolist()
        for i in range(n):
            if len(slots) < size:
                slots.append(seen)
            elif (slot := int(draws[i] * (seen + 1))) < size:
                slots[slot] = seen
            seen += 1
    return slots


@settings(max_examples=60)
@given(size=st.integers(1, 9), chunks=st.lists(st.integers(0, 12), max_size=8))
def test_equals_algorithm_r_one_by_one(size: int, chunks: list[int]) -> None:
    memory = ReservoirMemory(size)
    seen = 0
    for number, n in enumerate(chunks):
        memory.add({"x": torch.arange(seen, seen + n)}, generator(0, "r", number))
        seen += n
    expected = _one_by_one(size, chunks)
    assert len(memory) == len(expected) == min(size, seen)
    if expected:
        assert memory.rows(torch.arange(len(memory)))["x"].tolist() == expected


def test_every_row_is_kept_with_the_same_chance() -> None:
    counts = torch.zeros(40)
    for trial in range(3000):
        memory = ReservoirMemory(8)
        for step in range(4):
            memory.add({"x": torch.arange(10 * step, 10 * step + 10)}, generator(trial, "uniform", step))
        counts[memory.rows(torch.arange(8))["x"]] += 1
    # 3000 trials, chance 1/5: standard deviation 22; five of them.
    assert (counts - 600).abs().max() < 110


def test_draws_are_distinct_and_within_what_is_held() -> None:
    memory = ReservoirMemory(10)
    memory.add({"x": torch.arange(4)}, generator(0, "a"))
    drawn = memory.draw(7, generator(0, "b")).tolist()
    assert sorted(drawn) == [0, 1, 2, 3]


def test_state_round_trip_goes_on_as_if_never_saved() -> None:
    first, second = ReservoirMemory(5), ReservoirMemory(5)
    first.add({"x": torch.randn(9, 2), "y": torch.arange(9)}, generator(0, "a"))
    second.load_state_dict(first.state_dict())
    for memory in (first, second):
        memory.add({"x": torch.ones(6, 2), "y": torch.full((6,), 7)}, generator(0, "b"))
    assert torch.equal(first.rows(torch.arange(5))["x"], second.rows(torch.arange(5))["x"])
    assert first.seen == second.seen == 15


def test_holds_no_more_than_its_rows() -> None:
    memory = ReservoirMemory(5)
    memory.add({"x": torch.zeros(1000, 3)}, generator(0, "a"))
    assert sum(t.untyped_storage().nbytes() for t in memory.buffers()) == 5 * 3 * 4


def test_no_room_is_refused() -> None:
    with pytest.raises(UsageError, match="0 samples"):
        ReservoirMemory(0)
