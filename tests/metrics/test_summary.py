"""Summary metrics on matrices worked out by hand."""

from __future__ import annotations

import pytest

from clplat.metrics.summary import (
    NotMeasuredError,
    average,
    average_incremental,
    backward_transfer,
    forgetting,
    forward_transfer,
    learning_accuracy,
    minimum,
    summary,
    worst_case,
)

R = [[0.9, 0.2, 0.1], [0.6, 0.8, 0.3], [0.7, 0.5, 1.0]]
BASE = [0.1, 0.1, 0.2]


def test_known_answers() -> None:
    assert average(R) == pytest.approx((0.7 + 0.5 + 1.0) / 3)
    # experience 0: best before the end is 0.9; experience 1: 0.8
    assert forgetting(R) == pytest.approx(((0.9 - 0.7) + (0.8 - 0.5)) / 2)
    assert backward_transfer(R) == pytest.approx(((0.7 - 0.9) + (0.5 - 0.8)) / 2)
    assert forward_transfer(R, BASE) == pytest.approx(((0.2 - 0.1) + (0.3 - 0.2)) / 2)
    assert learning_accuracy(R) == pytest.approx((0.9 + 0.8 + 1.0) / 3)
    assert average_incremental(R) == pytest.approx((0.9 + (0.6 + 0.8) / 2 + (0.7 + 0.5 + 1.0) / 3) / 3)


def test_forgetting_looks_at_the_best_in_between_and_not_before_an_experience_was_seen() -> None:
    rising = [[0.5, 0.99, 0.0], [0.8, 0.6, 0.0], [0.6, 0.6, 0.9]]
    assert forgetting(rising) == pytest.approx((0.2 + 0.0) / 2)
    assert backward_transfer(rising) == pytest.approx((0.1 + 0.0) / 2)


def test_smaller_is_better_turns_the_signs() -> None:
    perplexity = [[2.0, 9.0], [3.0, 2.0]]
    assert forgetting(perplexity, "min") == pytest.approx(1.0)
    assert backward_transfer(perplexity, "min") == pytest.approx(-1.0)
    assert forward_transfer(perplexity, [10.0, 10.0], "min") == pytest.approx(1.0)


def test_the_worst_since_it_was_learned() -> None:
    lowest = [0.3, 0.4, 1.0]
    assert minimum(R, lowest) == pytest.approx(0.35)
    assert worst_case(R, lowest) == pytest.approx(1.0 / 3 + 2 / 3 * 0.35)
    values, reasons = summary(R, BASE)
    assert values["min_ACC"] is values["WC_ACC"] is None
    assert "eval.every" in reasons["min_ACC"]
    values, _ = summary(R, BASE, lowest=lowest)
    assert values["min_ACC"] == pytest.approx(0.35)


def test_what_cannot_be_told_is_none_with_a_reason() -> None:
    values, reasons = summary([[0.5]], [0.1])
    assert values["ACC"] == 0.5
    assert values["forgetting"] is values["BWT"] is values["FWT"] is None
    assert set(reasons) == {"forgetting", "BWT", "FWT", "min_ACC", "WC_ACC"}
    values, reasons = summary([[0.5, None], [None, 0.4]], [0.1, 0.1])
    assert values["ACC"] is None
    assert "R[1, 0] was not measured" in reasons["ACC"]
    assert values["learning_accuracy"] == pytest.approx(0.45)


def test_seen_and_next_is_enough_for_all_of_them() -> None:
    known = [[v if j <= i + 1 else None for j, v in enumerate(row)] for i, row in enumerate(R)]
    assert summary(known, BASE) == summary(R, BASE)


def test_missing_entries_raise() -> None:
    with pytest.raises(NotMeasuredError):
        average([[None]])


def test_where_tasks_return() -> None:
    """Two tasks in the order 0, 1, 0, 1, 0: columns are tasks, rows are visits."""
    tested = (0, 1, 0, 1, 0)
    visits = [[0.5, 0.2], [0.3, 0.6], [0.8, 0.4], [0.4, 0.9], [0.7, 0.5]]
    assert average(visits, tested) == pytest.approx((0.7 + 0.5) / 2)
    assert average(visits[:1], tested) == pytest.approx(0.5)  # only what was met
    # the last visit taught task 0: only task 1 can have been forgotten, and its best was 0.9
    assert forgetting(visits, "max", tested) == pytest.approx(0.9 - 0.5)
    assert forgetting(visits[:4], "max", tested) == pytest.approx(0.8 - 0.4)
    assert backward_transfer(visits[:4], "max", tested) == pytest.approx(0.4 - 0.8)  # since its last visit
    assert forward_transfer(visits, [0.1, 0.1], "max", tested) == pytest.approx(0.2 - 0.1)
    assert learning_accuracy(visits, tested) == pytest.approx((0.5 + 0.6 + 0.8 + 0.9 + 0.7) / 5)
    incremental = (0.5 + 0.45 + 0.6 + 0.65 + 0.6) / 5
    assert average_incremental(visits, tested) == pytest.approx(incremental)
    assert minimum(visits, [0.2, 0.3], tested) == pytest.approx(0.3)
    assert worst_case(visits, [0.2, 0.3], tested) == pytest.approx((0.7 + 0.3) / 2)


def test_one_test_of_everything() -> None:
    """As in streams that are judged by what has accumulated: forgetting has no meaning, and says so."""
    values, reasons = summary([[0.3], [0.4], [0.5]], [0.1], tested=(0, 0, 0))
    assert values["ACC"] == pytest.approx(0.5)
    assert values["learning_accuracy"] == values["average_incremental"] == pytest.approx(0.4)
    assert {"forgetting", "BWT", "FWT"} <= set(reasons)
