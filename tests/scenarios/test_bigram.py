"""Bigram-Backcopy: what follows what."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from clplat.errors import UsageError
from clplat.scenarios.bigram import BigramBackcopy


def sequences(scenario: BigramBackcopy, e: int = 0) -> list[list[int]]:
    data = scenario.train_stream[e].dataset
    return torch.cat([data.x[:, :1], data.y], 1).tolist()


@pytest.mark.parametrize("stream", ["triggers", "bigrams", "same"])
def test_every_trigger_is_followed_by_the_token_before_it(stream: str) -> None:
    scenario = BigramBackcopy(0, stream=stream, samples=200, experiences=3)
    for e, triggers in enumerate(scenario.triggers):
        assert triggers == (list(range(3 * e, 3 * e + 3)) if stream == "triggers" else [0, 1, 2])
        seen = 0
        for row in sequences(scenario, e):
            assert row[0] == 32
            assert 32 not in row[1:]
            assert row[1] not in triggers
            for t in range(2, len(row) - 1):
                if row[t] in triggers:
                    assert row[t + 1] == row[t - 1]
                    seen += 1
        assert seen > 1000
    x, y, _ = scenario.test_stream[0].dataset.rows(slice(None))
    assert torch.equal(x[:, 1:], y[:, :-1])


def test_what_follows_other_tokens_is_what_differs_between_experiences() -> None:
    """Frequencies of pairs, of two halves of an experience and of two experiences."""

    def table(rows: list[list[int]]) -> torch.Tensor:
        found = torch.zeros(32, 32)
        for row in rows:
            for a, b in pairwise(row[1:]):
                if a == 5:
                    found[a, b] += 1
        return found / found.sum()

    def apart(a: torch.Tensor, b: torch.Tensor) -> float:
        return float((a - b).abs().sum())

    for stream, differs in (("bigrams", True), ("same", False)):
        scenario = BigramBackcopy(0, stream=stream, samples=2000, test_samples=1, vocabulary=32)
        one, two = sequences(scenario, 0), sequences(scenario, 1)
        within = apart(table(one[:1000]), table(one[1000:]))
        assert (apart(table(one), table(two)) > 2 * within) == differs


def test_frequent_tokens_are_those_of_small_numbers() -> None:
    scenario = BigramBackcopy(1, samples=500, spread=0.0, stream="same")
    count = torch.bincount(scenario.train_stream[0].dataset.y.flatten(), minlength=33)
    assert count[3] > count[10] > count[30] > 0
    assert count[32] == 0


def test_what_it_refuses() -> None:
    with pytest.raises(UsageError) as error:
        BigramBackcopy(0, vocabulary=5, length=1, spread=-1.0)
    assert len(error.value.messages) == 2
    with pytest.raises(UsageError, match="at least 1"):
        BigramBackcopy(0, triggers=0)
