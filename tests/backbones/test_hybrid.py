"""Mixers of several backbones in one stack."""

from __future__ import annotations

import pytest

from clplat.backbones.hybrid import Hybrid, expand
from clplat.errors import UsageError


def kinds(network: Hybrid) -> list[str]:
    return [type(mixer).__name__ for mixer in network.mixers]


def test_the_pattern_is_gone_through_again_and_again() -> None:
    assert expand(["a x3", " b ", "c x 2"]) == ["a", "a", "a", "b", "c", "c"]
    found = kinds(Hybrid(3, pattern=["delta-net x2", "transformer"], layers=5, dim=8, heads=2))
    assert found[0] == found[1] == found[3] == found[4] != found[2] == "SelfAttention"
    assert [kind == "SelfAttention" for kind in kinds(Hybrid(3, dim=8, heads=2))] == [False, False, False, True]


def test_it_is_causal_if_all_of_its_mixers_are() -> None:
    assert Hybrid(3, dim=8, heads=2).causal
    assert not Hybrid(3, pattern=["delta-net", "jrt-rnn"], dim=8, heads=2).causal


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        (["delta-net x0"], "not of the form NAME or NAME xCOUNT"),
        ([], "at least"),
        (["gru"], "'gru' in pattern has no mixer"),
        (["hybrid"], "'hybrid' in pattern has no mixer"),
        (["delta-nett"], "delta-net"),
    ],
)
def test_what_is_no_pattern_is_refused(pattern: list[str], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Hybrid(3, pattern=pattern, dim=8, heads=2)
