"""Accumulation over a long stream, by hand."""

from __future__ import annotations

import pytest

from clplat.metrics.accumulation import accumulation, area, recency


def test_what_is_read_from_a_curve() -> None:
    curve = [0.1, 0.3, 0.2, 0.6, 0.8]
    assert accumulation(curve, first=2, last=2) == pytest.approx(0.7 - 0.2)
    assert area(curve) == pytest.approx(0.4)
    for first, last in ((0, 1), (1, 0), (6, 1), (1, 6)):
        with pytest.raises(ValueError, match="5 values"):
            accumulation(curve, first, last)


def test_recency() -> None:
    right, labels = [True, True, False, True, False, False], [3, 3, 4, 0, 1, 1]
    assert recency(right, labels, {3, 4}) == pytest.approx(2 / 3 - 1 / 3)
    with pytest.raises(ValueError, match="of others"):
        recency(right, labels, {0, 1, 3, 4})
