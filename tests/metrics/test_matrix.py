"""What follows from the matrix and from looks in between, on numbers worked out by hand."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clplat import registry
from clplat.cli import listing
from clplat.errors import UsageError
from clplat.metrics import catalogue
from clplat.metrics.evidence import Evidence, Look, Matrix, NotMeasuredError
from clplat.metrics.looks import average_anytime, minimum, stability_gap, windowed_forgetting, worst_case
from clplat.metrics.matrix import (
    average,
    average_incremental,
    backward_transfer,
    forgetting,
    forgetting_first,
    forward_transfer,
    forward_transfer_reference,
    intransigence,
    learning_accuracy,
    plasticity,
    recency_bias,
    relative_forgetting,
)

R = [[0.9, 0.2, 0.1], [0.6, 0.8, 0.3], [0.7, 0.5, 1.0]]
BASE = [0.1, 0.1, 0.2]
RUN = Evidence(matrix=R, baseline=BASE)


def summary(run: Evidence) -> tuple[dict[str, Any], dict[str, str]]:
    return catalogue.compute(catalogue.having("matrix", "looks"), run)


def looks(*rows: tuple[int, Sequence[float | None]]) -> list[Look]:
    return [Look(experience, row) for experience, row in rows]


def test_known_answers() -> None:
    assert average(RUN) == pytest.approx((0.7 + 0.5 + 1.0) / 3)
    # experience 0: best before the end is 0.9; experience 1: 0.8
    assert forgetting(RUN) == pytest.approx(((0.9 - 0.7) + (0.8 - 0.5)) / 2)
    assert relative_forgetting(RUN) == pytest.approx((0.2 / 0.9 + 0.3 / 0.8) / 2)
    assert backward_transfer(RUN) == pytest.approx(((0.7 - 0.9) + (0.5 - 0.8)) / 2)
    assert forward_transfer(RUN) == pytest.approx(((0.2 - 0.1) + (0.3 - 0.2)) / 2)
    assert learning_accuracy(RUN) == pytest.approx((0.9 + 0.8 + 1.0) / 3)
    assert average_incremental(RUN) == pytest.approx((0.9 + (0.6 + 0.8) / 2 + (0.7 + 0.5 + 1.0) / 3) / 3)
    assert plasticity(RUN) == pytest.approx(((0.9 - 0.1) + (0.8 - 0.2) + (1.0 - 0.3)) / 3)
    assert recency_bias(RUN) == pytest.approx(1.0 - (0.7 + 0.5) / 2)


def test_forgetting_looks_at_the_best_in_between_and_not_before_an_experience_was_seen() -> None:
    rising = Evidence(matrix=[[0.5, 0.99, 0.0], [0.8, 0.6, 0.0], [0.6, 0.6, 0.9]])
    assert forgetting(rising) == pytest.approx((0.2 + 0.0) / 2)
    assert forgetting_first(rising) == pytest.approx((-0.1 + 0.0) / 2)
    assert backward_transfer(rising) == pytest.approx((0.1 + 0.0) / 2)


def test_smaller_is_better_turns_the_signs() -> None:
    perplexity = Evidence(matrix=[[2.0, 9.0], [3.0, 2.0]], baseline=[10.0, 10.0], direction="min")
    assert average(perplexity) == pytest.approx(2.5)
    assert forgetting(perplexity) == forgetting_first(perplexity) == pytest.approx(1.0)
    assert relative_forgetting(perplexity) == pytest.approx(0.5)
    assert backward_transfer(perplexity) == pytest.approx(-1.0)
    assert forward_transfer(perplexity) == pytest.approx(1.0)
    assert plasticity(perplexity) == pytest.approx((8.0 + 7.0) / 2)
    assert recency_bias(perplexity) == pytest.approx(1.0)  # better, that is smaller, at what came last


def test_against_a_reference() -> None:
    joint = Evidence(matrix=[[0.9, 0.2, 0.1], [0.8, 0.9, 0.3], [0.8, 0.8, 0.7]])
    run = replace(RUN, references=[joint])
    assert intransigence(run) == pytest.approx((0.0 + 0.1 - 0.3) / 3)
    assert forward_transfer_reference(run) == pytest.approx((-0.1 + 0.3) / 2)
    assert intransigence(replace(run, references=[joint, RUN])) == pytest.approx((0.0 + 0.05 - 0.15) / 3)
    with pytest.raises(NotMeasuredError, match="another primary metric"):
        intransigence(replace(run, references=[replace(joint, direction="min")]))
    with pytest.raises(NotMeasuredError, match="--reference"):
        intransigence(RUN)


def test_no_forward_transfer_to_classes_that_no_head_was_trained_for() -> None:
    values, reasons = summary(replace(RUN, new_classes=True))
    assert values["FWT"] is None
    assert "undefined in class-incremental learning, because" in reasons["FWT"]
    assert {name for name in values if values[name] is None} == {*NEED_LOOKS, "FWT"}


NEED_LOOKS = {"AAA", "WC_ACC", "min_ACC", "stability_gap", "windowed_forgetting"}


def test_what_cannot_be_told_is_none_with_a_reason() -> None:
    values, reasons = summary(Evidence(matrix=[[0.5]], baseline=[0.1]))
    assert values["ACC"] == 0.5
    assert values["forgetting"] is values["BWT"] is values["FWT"] is None
    need_two = {"BWT", "FWT", "forgetting", "forgetting_first", "relative_forgetting", "recency_bias"}
    assert set(reasons) == need_two | NEED_LOOKS
    assert all("needs eval.every > 0" in reasons[name] for name in NEED_LOOKS)
    values, reasons = summary(Evidence(matrix=[[0.5, None], [None, 0.4]], baseline=[0.1, 0.1]))
    assert values["ACC"] is None
    assert "R[1, 0] was not measured" in reasons["ACC"]
    assert values["learning_accuracy"] == pytest.approx(0.45)
    assert "no share" in summary(Evidence(matrix=[[0.0, 0.0], [0.0, 0.0]]))[1]["relative_forgetting"]


def test_seen_and_next_is_enough_for_all_of_them() -> None:
    known = [[v if j <= i + 1 else None for j, v in enumerate(row)] for i, row in enumerate(R)]
    assert summary(Evidence(matrix=known, baseline=BASE)) == summary(RUN)


def test_where_tasks_return() -> None:
    """Two tasks in the order 0, 1, 0, 1, 0: columns are tasks, rows are visits."""
    matrix = [[0.5, 0.2], [0.3, 0.6], [0.8, 0.4], [0.4, 0.9], [0.7, 0.5]]
    visits = Evidence(matrix=matrix, baseline=[0.1, 0.1], tests=(0, 1, 0, 1, 0))
    four = replace(visits, matrix=matrix[:4])
    assert average(visits) == pytest.approx((0.7 + 0.5) / 2)
    assert average(replace(visits, matrix=matrix[:1])) == pytest.approx(0.5)  # only what was met
    # the last visit taught task 0: only task 1 can have been forgotten, and its best was 0.9
    assert forgetting(visits) == pytest.approx(0.9 - 0.5)
    assert forgetting_first(visits) == pytest.approx(0.6 - 0.5)
    assert forgetting(four) == pytest.approx(0.8 - 0.4)
    assert backward_transfer(four) == pytest.approx(0.4 - 0.8)  # since its last visit
    assert forward_transfer(visits) == pytest.approx(0.2 - 0.1)
    assert learning_accuracy(visits) == pytest.approx((0.5 + 0.6 + 0.8 + 0.9 + 0.7) / 5)
    assert plasticity(visits) == pytest.approx((0.4 + 0.4 + 0.5 + 0.5 + 0.3) / 5)
    assert average_incremental(visits) == pytest.approx((0.5 + 0.45 + 0.6 + 0.65 + 0.6) / 5)
    assert recency_bias(visits) == pytest.approx(0.7 - 0.5)
    watched = replace(visits, looks=looks((3, [0.2, 0.3])))
    assert minimum(watched) == pytest.approx(0.3)
    assert worst_case(watched) == pytest.approx((0.7 + 0.3) / 2)


def test_one_test_of_everything() -> None:
    """As in streams that are judged by what has accumulated: forgetting has no meaning, and says so."""
    values, reasons = summary(Evidence(matrix=[[0.3], [0.4], [0.5]], baseline=[0.1], tests=(0, 0, 0)))
    assert values["ACC"] == pytest.approx(0.5)
    assert values["learning_accuracy"] == values["average_incremental"] == pytest.approx(0.4)
    assert {"forgetting", "BWT", "FWT"} <= set(reasons)


WATCHED = replace(
    RUN,
    looks=looks(
        (0, [0.5, None, None]),
        (1, [0.3, 0.4, None]),
        (1, [0.5, 0.7, None]),
        (2, [0.6, 0.4, 0.2]),
        (2, [0.9, 0.6, 0.8]),
    ),
)


def test_what_only_looks_in_between_show() -> None:
    # experience 0 fell to 0.3 within experience 1; what it was before it was learned does not count
    assert minimum(WATCHED) == pytest.approx((0.3 + 0.4) / 2)
    assert worst_case(WATCHED) == pytest.approx(1.0 / 3 + 2 / 3 * 0.35)
    # within 1, 0 is at 0.9 before, 0.6 after and at worst 0.3; within 2, 0: 0.6, 0.7, 0.6 and 1: 0.8, 0.5, 0.4
    assert stability_gap(WATCHED) == pytest.approx((0.3 + 0.0 + 0.1) / 3)
    zeroth, first, second = [0.5, 0.9], [0.35, 0.6, 0.7], [1.2 / 3, 2.3 / 3, 2.2 / 3]
    assert average_anytime(WATCHED) == pytest.approx(sum([*zeroth, *first, *second]) / 8)
    # the largest fall: 0.9 -> 0.3 of experience 0 and 0.8 -> 0.4 of experience 1
    assert windowed_forgetting(WATCHED) == pytest.approx((0.6 + 0.4) / 2)
    assert windowed_forgetting(WATCHED, window=2) == pytest.approx((0.6 + 0.4) / 2)
    slow = Evidence(matrix=[[0.9, 0], [0.6, 0.5]], looks=looks((1, [0.8, 0.1]), (1, [0.7, 0.2])))
    assert windowed_forgetting(slow, window=2) == pytest.approx(0.1)
    assert windowed_forgetting(slow, window=3) == pytest.approx(0.2)
    with pytest.raises(UsageError, match="at least 2"):
        windowed_forgetting(slow, window=1)


def test_looks_at_losses_turn_the_signs() -> None:
    turned = Evidence(
        matrix=[[-v for v in row] for row in R],
        baseline=[-v for v in BASE],
        direction="min",
        looks=[Look(k.experience, [None if v is None else -v for v in k.row]) for k in WATCHED.looks or ()],
    )
    for metric in (stability_gap, windowed_forgetting):
        assert metric(turned) == metric(WATCHED)
    for metric in (minimum, worst_case, average_anytime):
        assert metric(turned) == pytest.approx(-metric(WATCHED))


# --- invariants


@st.composite
def matrices(draw: st.DrawFn) -> Evidence:
    n = draw(st.integers(1, 5))
    values = st.floats(-2, 2, allow_nan=False, width=32)
    rows = st.lists(values, min_size=n, max_size=n)
    return Evidence(matrix=draw(st.lists(rows, min_size=n, max_size=n)), baseline=draw(rows))


def _negative(matrix: Matrix) -> Matrix:
    return [[None if v is None else -v for v in row] for row in matrix]


@settings(max_examples=100)
@given(matrices())
def test_losses_are_accuracies_turned_round(run: Evidence) -> None:
    turned = replace(run, matrix=_negative(run.matrix), baseline=_negative([run.baseline])[0], direction="min")
    for metric in (average, average_incremental, learning_accuracy):
        assert metric(turned) == -metric(run)
    differences = ("forgetting", "forgetting_first", "relative_forgetting", "BWT", "FWT", "plasticity", "recency_bias")
    assert catalogue.compute(differences, turned) == catalogue.compute(differences, run)


@settings(max_examples=100)
@given(matrices(), st.randoms(use_true_random=False))
def test_the_names_of_test_experiences_do_not_matter(run: Evidence, draw: random.Random) -> None:
    order = list(range(run.n))
    draw.shuffle(order)  # where each test experience goes
    moved = [[row[order.index(j)] for j in range(run.n)] for row in [*run.matrix, run.baseline]]
    values, reasons = summary(replace(run, matrix=moved[:-1], baseline=moved[-1], tests=order))
    assert (values, reasons.keys()) == (summary(run)[0], summary(run)[1].keys())


@settings(max_examples=100)
@given(matrices())
def test_how_definitions_stand_to_one_another(run: Evidence) -> None:
    if run.n > 1:
        assert forgetting(run) >= forgetting_first(run)
        assert backward_transfer(run) == -forgetting_first(run)
    assert intransigence(replace(run, references=[run])) == 0
    # with nothing between the ends of experiences there is nothing that only looks can show
    watched = replace(run, looks=[])
    assert average_anytime(watched) == pytest.approx(average_incremental(run))
    if run.n > 1:
        assert stability_gap(watched) == 0


# --- the catalogue


def test_every_entry_says_what_it_needs_and_where_it_comes_from() -> None:
    for name, entry in registry.entries("metric").items():
        assert catalogue.needs(name), name
        assert entry.info.get("paper"), name
        assert entry.info.get("family"), name
        assert listing.summary(entry).endswith("."), name
        entry.load()


def test_a_metric_of_ones_own(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_metrics.py").write_text(
        "def spread(run, *, scale: float = 1.0):\n    '''Range of the last row.'''\n"
        "    return scale * (max(run.matrix[-1]) - min(run.matrix[-1]))\n"
        "def broken(run):\n    '''Fails.'''\n    raise KeyError('x')\n"
    )
    (tmp_path / "metric").mkdir()
    for name in ("spread", "broken"):
        (tmp_path / "metric" / f"{name}.yaml").write_text(
            f"# {name}.\n_target_: own_metrics.{name}\n_info_: {{needs: [matrix]}}\n"
        )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(registry, "_added", [])
    registry.add_config_dir(tmp_path)
    assert {"spread", "broken"} <= set(catalogue.having("matrix"))
    values, reasons = catalogue.compute(["spread", "broken"], RUN, {"spread": {"scale": 2.0}})
    assert values == {"spread": pytest.approx(1.0), "broken": None}
    assert "KeyError" in reasons["broken"]


@pytest.mark.slow
def test_avalanche_has_the_same_values() -> None:
    from avalanche.evaluation.metrics import BWT, Forgetting, ForwardTransfer

    run, n = RUN, len(R)
    lost, back, forward = Forgetting(), BWT(), ForwardTransfer()
    for j in range(n):
        lost.update(j, R[j][j], initial=True)
        back.update(j, R[j][j], initial=True)
        forward.update(j, BASE[j], initial=True)
        if j > 0:
            forward.update(j, R[j - 1][j])
        if j < n - 1:
            lost.update(j, R[-1][j])
            back.update(j, R[-1][j])
    assert forgetting_first(run) == pytest.approx(sum(lost.result().values()) / (n - 1))
    assert backward_transfer(run) == pytest.approx(sum(back.result().values()) / (n - 1))
    assert forward_transfer(run) == pytest.approx(sum(forward.result().values()) / (n - 1))
