"""Multi-query associative recall against its definition."""

from __future__ import annotations

import pytest
import torch

from clplat.errors import UsageError
from clplat.scenarios.generated import BLANK
from clplat.scenarios.recall import MQAR


def answers(x: list[int], shown: int) -> dict[int, int]:
    """The latest value of each key among the first ``shown`` pairs."""
    return dict(zip(x[0 : 2 * shown : 2], x[1 : 2 * shown : 2], strict=True))


@pytest.mark.parametrize("stream", ["same", "disjoint", "pairs", "length", "updated"])
@pytest.mark.parametrize("noise", [False, True])
def test_each_key_is_asked_once_and_has_its_latest_value(stream: str, noise: bool) -> None:
    scenario = MQAR(1, stream=stream, noise=noise, pairs=6, length=72, samples=60, test_samples=20)
    for number, experience in enumerate(scenario.train_stream):
        pairs = 2 * (number + 1) if stream == "pairs" else 6
        shown = pairs + (number if stream == "updated" else 0)
        for x, y in zip(experience.dataset.x.tolist(), experience.dataset.y.tolist(), strict=True):
            known = answers(x, shown)
            asked = {position: value for position, value in enumerate(y) if value >= 0}
            assert sorted(x[position] for position in asked) == sorted(known)
            assert len(known) == pairs
            assert all(value == known[x[position]] for position, value in asked.items())
            assert all(position >= 2 * shown and position % 2 == 0 for position in asked)
            assert all(1 <= key < 64 <= value < 128 for key, value in known.items())
            others = {x[position] for position in range(2 * shown, len(x)) if position not in asked}
            assert others <= ({BLANK, *range(64, 128)} if noise else {BLANK})


def test_streams_differ_in_what_they_say() -> None:
    tokens = [set(e.dataset.x.unique().tolist()) - {BLANK} for e in MQAR(0, stream="disjoint").train_stream]
    assert not tokens[0] & tokens[1]
    assert not tokens[1] & tokens[2]
    lengths = [int((e.dataset.y >= 0).any(0).nonzero().max()) for e in MQAR(0, stream="length", length=96).train_stream]
    assert lengths[0] < 32 <= lengths[1] < 64 <= lengths[2]
    last = MQAR(0, stream="updated", length=40).train_stream[2].dataset.x
    again = [len(set(row[0:20:2])) for row in last.tolist()]
    assert set(again) == {8}  # ten pairs, two of them of keys shown before


def test_near_slots_are_favoured_by_the_power() -> None:
    def mean(power: float) -> float:
        y = MQAR(0, experiences=1, length=64, samples=2000, power=power, pairs=4).train_stream[0].dataset.y
        return float((y >= 0).nonzero()[:, 1].float().mean())

    assert mean(0.01) < mean(0.5) < mean(1)
    assert abs(mean(1) - (8 + 62) / 2) < 1  # even positions from 8 to 62


def test_train_and_test_differ_and_depend_on_the_seed() -> None:
    one, same, other = MQAR(0), MQAR(0), MQAR(1)
    assert torch.equal(one.train_stream[0].dataset.x, same.train_stream[0].dataset.x)
    assert not torch.equal(one.train_stream[0].dataset.x, other.train_stream[0].dataset.x)
    train = {tuple(row) for row in one.train_stream[0].dataset.x.tolist()}
    assert not train & {tuple(row) for row in one.test_stream[0].dataset.x.tolist()}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vocabulary": 30}, "50 at least"),
        ({"vocabulary": 129}, "even number"),
        ({"length": 30}, "need 32 positions"),
        ({"length": 64, "stream": "length"}, "the first experience has 20"),
        ({"power": 0}, "must be positive"),
        ({"pairs": 0}, "at least one"),
        ({"stream": "updated", "experiences": 12, "length": 80}, "only 8 keys"),
    ],
)
def test_impossible_sizes_are_refused(options: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        MQAR(0, **options)
