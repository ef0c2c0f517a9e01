"""Intervals, permutation tests and ranks against independent sources."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from clplat.report.statistics import estimate, holm, mean_ranks, sign_flip

NUMBERS = st.lists(st.floats(-100, 100, allow_subnormal=False), min_size=2, max_size=9)


@given(NUMBERS)
def test_the_interval_is_students(values: list[float]) -> None:
    found = estimate(values)
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95) if len(set(values)) > 1 else None
    assert found.half is not None
    if expected is not None and all(map(math.isfinite, expected)):
        assert (found.mean - found.half, found.mean + found.half) == pytest.approx(tuple(expected), abs=1e-9, rel=1e-6)


def test_one_value_has_no_interval() -> None:
    assert estimate([0.5]).half is None
    with pytest.raises(ValueError, match="no value"):
        estimate([])


@given(NUMBERS)
def test_the_permutation_test_counts_every_pattern(differences: list[float]) -> None:
    patterns = list(itertools.product((1, -1), repeat=len(differences)))
    observed = abs(sum(differences))
    slack = 1e-9 * sum(map(abs, differences))
    low = sum(abs(sum(s * d for s, d in zip(p, differences, strict=True))) > observed + slack for p in patterns)
    high = sum(abs(sum(s * d for s, d in zip(p, differences, strict=True))) >= observed - slack for p in patterns)
    assert low / len(patterns) <= sign_flip(differences) <= high / len(patterns)


def test_five_seeds_say_at_best_a_sixteenth() -> None:
    assert sign_flip([1.0, 2.0, 3.0, 4.0, 5.0]) == 1 / 16
    assert sign_flip([0.0, 0.0]) == 1


def test_many_pairs_are_drawn_and_agree_with_scipy() -> None:
    differences = [0.3, -0.1, 0.4, 0.2, -0.2, 0.5, 0.1, 0.0, 0.2, 0.3, -0.3, 0.2, 0.1, 0.4, -0.1, 0.2, 0.1, 0.05]
    found = sign_flip(differences)
    result = stats.permutation_test(
        (differences,), lambda x, axis: x.mean(axis), permutation_type="samples", n_resamples=20000, rng=1
    )
    assert found == pytest.approx(result.pvalue, abs=0.005)
    assert found == sign_flip(differences)


def test_holm() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_mean_ranks_share_ties_and_skip_blocks_that_lack_one() -> None:
    blocks = [{"a": 0.9, "b": 0.8, "c": 0.8}, {"a": 0.5, "b": 0.7, "c": 0.6}, {"a": 1.0, "b": 0.0}]
    assert mean_ranks(blocks, True) == {"a": (1 + 3) / 2, "b": (2.5 + 1) / 2, "c": (2.5 + 2) / 2}
    assert mean_ranks(blocks, False) == {"a": (3 + 1) / 2, "b": (1.5 + 3) / 2, "c": (1.5 + 2) / 2}
    assert mean_ranks([{"a": 1.0}, {"b": 1.0}], True) == {}
