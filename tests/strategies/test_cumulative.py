"""Cumulative training sees everything so far, and is the upper bound it is said to be."""

from __future__ import annotations

from tests.cases import before, built, run


def test_trains_on_all_data_so_far() -> None:
    one = built("cumulative")
    sizes: list[int] = []
    before(one.learner.strategy, "after_step", lambda learner, batch: sizes.append(len(learner.data)))
    run(one)
    n = len(one.scenario.train_stream[0].dataset)
    assert sorted(set(sizes)) == [n, 2 * n, 3 * n]


def test_is_above_the_others() -> None:
    options = [
        "trainer.max_epochs=15", "trainer.accumulate=1", "trainer.clip=null", "backbone.dropout=0",
        "backbone.hidden=64", "optimizer.lr=0.003",
    ]  # fmt: skip
    found = {name: run(built(name, *options))["summary"]["ACC"] for name in ("naive", "ewc", "cumulative")}
    assert found["cumulative"] > found["ewc"] + 0.05
    assert found["cumulative"] > found["naive"] + 0.2
