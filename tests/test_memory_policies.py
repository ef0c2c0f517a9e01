"""Memories that share their slots among classes: no class is lost, and within a class the policy holds."""

from __future__ import annotations

import io

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clplat.errors import UsageError
from clplat.memory import BalancedMemory, HerdingMemory, Memory, herding
from clplat.memory import memory as make_memory
from clplat.randomness import generator

KEEPS = ("sample", "first", "last")


def _feed(memory: Memory, labels: list[int], *, chunk: int = 7, trial: int = 0) -> list[tuple[int, int]]:
    """Offer rows x = 0, 1, ... with these labels; returns (x, y) of what is held."""
    x, y = torch.arange(len(labels)), torch.tensor(labels)
    for start in range(0, len(labels), chunk):
        rows = {"x": x[start : start + chunk], "y": y[start : start + chunk], "task": torch.zeros_like(y)[:chunk]}
        rows["task"] = rows["task"][: len(rows["x"])]
        memory.add(rows, generator(trial, "feed", start))
    held = memory.rows(memory.slots())
    return list(zip(held["x"].tolist(), held["y"].tolist(), strict=True))


def _counts(held: list[tuple[int, int]]) -> dict[int, int]:
    return {label: sum(y == label for _, y in held) for label in sorted({y for _, y in held})}


@settings(max_examples=60)
@given(
    size=st.integers(1, 12),
    labels=st.lists(st.integers(0, 4), min_size=1, max_size=60),
    keep=st.sampled_from(KEEPS),
)
def test_what_is_held_was_offered_once_and_no_slot_is_idle(size: int, labels: list[int], keep: str) -> None:
    held = _feed(BalancedMemory(size, keep=keep), labels)  # type: ignore[arg-type]
    assert len(held) == min(size, len(labels))
    assert len({x for x, _ in held}) == len(held)
    assert all(labels[x] == y for x, y in held)
    if size >= len(set(labels)):
        assert {y for _, y in held} == set(labels)


@pytest.mark.parametrize("keep", KEEPS)
@pytest.mark.parametrize("size", [20, 21, 7])
@pytest.mark.parametrize("order", ["one after another", "mixed"])
def test_classes_share_the_slots_evenly_whatever_the_remainder(keep: str, size: int, order: str) -> None:
    labels = [label for label in range(6) for _ in range(30 + 20 * label)]  # the last class is four times the first
    if order == "mixed":
        labels = [labels[i] for i in torch.randperm(len(labels), generator=generator(0, "mix")).tolist()]
    counts = _counts(_feed(BalancedMemory(size, keep=keep), labels))  # type: ignore[arg-type]
    assert len(counts) == 6
    assert sum(counts.values()) == size
    if order == "one after another":
        assert max(counts.values()) - min(counts.values()) <= 1
    else:  # in a mixed stream early luck may leave a class a slot short
        assert max(counts.values()) - min(counts.values()) <= 2


def test_a_class_is_a_uniform_sample_of_its_rows() -> None:
    labels = [0] * 30 + [1] * 10 + [0] * 20 + [2] * 30
    chances = torch.zeros(len(labels))
    trials = 2000
    for trial in range(trials):
        for x, _ in _feed(BalancedMemory(12), labels, trial=trial):
            chances[x] += 1
    chances /= trials
    labels_N = torch.tensor(labels)
    for label, n in ((0, 50), (1, 10), (2, 30)):
        own = chances[labels_N == label]
        # Four of n are held: standard deviation of a frequency below 0.011; five of them.
        assert (own - 4 / n).abs().max() < 0.056, label


def test_first_keeps_the_earliest_and_last_the_latest() -> None:
    labels = [0, 1] * 20
    assert sorted(x for x, _ in _feed(BalancedMemory(6, keep="first"), labels)) == [0, 1, 2, 3, 4, 5]
    assert sorted(x for x, _ in _feed(BalancedMemory(6, keep="last"), labels)) == [34, 35, 36, 37, 38, 39]


def test_a_ring_gives_up_its_oldest() -> None:
    held = _feed(BalancedMemory(4, keep="last"), [0] * 8 + [1] * 2)
    assert sorted(held) == [(6, 0), (7, 0), (8, 1), (9, 1)]


@pytest.mark.parametrize("policy", ["reservoir", "class-balanced", "experience-balanced", "ring"])
def test_a_policy_goes_on_after_a_safe_load_as_if_never_saved(policy: str) -> None:
    first, second = make_memory(policy, 5), make_memory(policy, 5)  # type: ignore[arg-type]

    def rows(start: int) -> dict[str, torch.Tensor]:
        x = torch.arange(start, start + 9)
        return {"x": x, "y": x % 3, "task": torch.zeros_like(x), "experience": torch.full_like(x, start)}

    first.add(rows(0), generator(0, "a"))
    buffer = io.BytesIO()
    torch.save(first.state_dict(), buffer)
    buffer.seek(0)
    second.load_state_dict(torch.load(buffer, weights_only=True))
    for memory in (first, second):
        memory.add(rows(20), generator(0, "b"))
    index = torch.arange(5)
    assert torch.equal(first.rows(index)["x"], second.rows(index)["x"])
    assert first.get_extra_state() == second.get_extra_state()


def test_experiences_are_balanced_by_their_number() -> None:
    memory = make_memory("experience-balanced", 10)
    for number in range(3):
        x = torch.arange(40)
        rows = {"x": x, "y": x % 2, "task": torch.zeros_like(x), "experience": torch.full_like(x, number)}
        memory.add(rows, generator(0, "e", number))
    counts = torch.bincount(memory.rows(memory.slots())["experience"])
    assert sorted(counts.tolist()) == [3, 3, 4]


def _herding_by_hand(features: list[list[float]], n: int) -> list[int]:
    """iCaRL's algorithm 4 in the form of its authors' code, one number at a time."""
    unit = [[v / sum(w * w for w in row) ** 0.5 for v in row] for row in features]
    mean = [sum(column) / len(unit) for column in zip(*unit, strict=True)]
    w, chosen = list(mean), []
    while len(chosen) < n:
        scores = {i: sum(a * b for a, b in zip(w, row, strict=True)) for i, row in enumerate(unit) if i not in chosen}
        best = max(scores, key=lambda i: scores[i])
        chosen.append(best)
        w = [a + m - d for a, m, d in zip(w, mean, unit[best], strict=True)]
    return chosen


def test_herding_is_the_algorithm_and_beats_chance_at_the_mean() -> None:
    features = torch.randn(40, 6, generator=generator(0, "f"), dtype=torch.float64) + 1.0
    chosen = herding(features, 12)
    assert chosen == _herding_by_hand(features.tolist(), 12)
    assert len(set(chosen)) == 12
    unit = torch.nn.functional.normalize(features, dim=1)
    distance = (unit[chosen].mean(0) - unit.mean(0)).norm()
    for trial in range(20):
        others = torch.randperm(40, generator=generator(trial, "others"))[:12]
        assert distance < (unit[others].mean(0) - unit.mean(0)).norm()
    # The length of a feature does not count.
    assert herding(features * torch.rand(40, 1, generator=generator(0, "s"), dtype=torch.float64), 12) == chosen


def test_older_herded_classes_keep_the_beginning_of_their_lists() -> None:
    memory = HerdingMemory(11)
    x = torch.randn(60, 3, generator=generator(0, "h"))
    y = torch.arange(60) // 15
    zeros = torch.zeros(60, dtype=torch.long)

    def offer(rows: slice) -> None:
        memory.add({"x": x[rows], "y": y[rows], "task": zeros[rows], "features": x[rows]})

    def held(label: int) -> torch.Tensor:
        return memory.rows(torch.tensor(memory.groups[0, label]))["x"]

    offer(slice(0, 15))
    whole = held(0)
    assert len(whole) == 11
    offer(slice(15, 45))
    assert [len(held(label)) for label in range(3)] == [4, 4, 3]
    assert torch.equal(held(0), whole[:4])
    second = held(1)
    offer(slice(45, 60))
    assert [len(held(label)) for label in range(4)] == [3, 3, 3, 2]
    assert torch.equal(held(0), whole[:3])
    assert torch.equal(held(1), second[:3])
    assert torch.equal(held(3), x[45:][herding(x[45:], 2)])
    assert len(memory) == 11
    assert "features" not in memory.recall("rows")


def test_more_classes_than_slots_are_refused_by_herding() -> None:
    memory = HerdingMemory(2)
    x = torch.randn(3, 2)
    with pytest.raises(UsageError, match="one of each of 3 classes"):
        memory.add({"x": x, "y": torch.arange(3), "task": torch.zeros(3, dtype=torch.long), "features": x})
