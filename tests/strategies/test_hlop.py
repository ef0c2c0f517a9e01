"""HLOP: the Hebbian rows find the principal subspace, and what lies in it meets the old weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from clplat.build import build_strategy
from clplat.errors import UsageError
from clplat.strategies.hlop import hebbian
from tests.cases import before, built, run


def test_the_change_is_the_rule_over_samples() -> None:
    torch.manual_seed(0)
    h, held = torch.randn(3, 8, dtype=torch.float64), torch.randn(2, 8, dtype=torch.float64)
    x = torch.randn(20, 8, dtype=torch.float64)
    expected = torch.zeros_like(h)
    for row in x:
        guess = h.T @ (h @ row) + held.T @ (held @ row)
        expected += torch.outer(h @ row, row - guess) / 20
    torch.testing.assert_close(hebbian(h, held, x.T @ x / 20), expected, rtol=1e-10, atol=1e-12)


def test_rows_find_the_principal_subspace() -> None:
    """Gaussian data of rank 5 and a little noise; the cosines of all principal angles must be near 1."""
    torch.manual_seed(0)
    spread = torch.randn(5, 20, dtype=torch.float64)
    h = torch.linalg.qr(torch.randn(20, 5, dtype=torch.float64)).Q.T
    M = torch.zeros_like(h)
    for _ in range(400):
        x = torch.randn(64, 5, dtype=torch.float64) @ spread + 0.01 * torch.randn(64, 20, dtype=torch.float64)
        for _ in range(5):
            M = 0.9 * M + 0.1 * hebbian(h, h[:0], x.T @ x / 64).clamp(-10, 10)
            h = h + 0.01 * M
    truth = torch.linalg.qr(spread.T).Q
    found = torch.linalg.qr(h.T).Q
    assert torch.linalg.svdvals(truth.T @ found).min() > 0.99


def test_old_rows_stay_and_their_span_is_kept_whatever_the_optimiser() -> None:
    one = built(
        "hlop", "trainer.precision=64", "backbone.hidden=30", "optimizer=adamw", "optimizer.weight_decay=0.01",
        "strategy.directions=6",
    )  # fmt: skip
    strategy = one.learner.strategy
    held: dict[int, tuple[dict[str, Tensor], dict[str, Tensor]]] = {}

    def begin(learner: Any, experience: Any) -> None:
        weights = {name: p.detach().clone() for name, p in learner.network().items()}
        held[experience.current_experience] = weights, {n: t.clone() for n, t in strategy.recall("old").items()}

    before(strategy, "start", begin)
    run(one)
    weights, old = held[2]
    now, last = one.learner.network(), strategy.recall("old")
    for name, rows in old.items():
        x_old = torch.randn(4, len(rows), dtype=torch.float64) @ rows
        moved = (now[name].detach() - weights[name]).flatten(1)
        assert float((moved @ x_old.T).norm()) < 1e-9 * float((weights[name].flatten(1) @ x_old.T).norm() + 1)
        assert float(moved.norm()) > 1e-4
        torch.testing.assert_close(last[name] @ last[name].T, torch.eye(len(last[name])).double(), atol=1e-9, rtol=0)
        torch.testing.assert_close(rows @ last[name].T @ last[name], rows, atol=1e-9, rtol=0)  # none got lost
    assert all(torch.equal(now[name], weights[name]) for name in now if name not in old)
    assert {len(rows) for rows in old.values()} == {6 + 3}


def test_a_layer_never_gets_more_rows_than_it_has_inputs() -> None:
    one = built("hlop", "strategy.directions=10", "strategy.more=10")
    run(one)
    assert [len(rows) for rows in one.learner.strategy.recall("old").values()] == [30, 12, 12]


@pytest.mark.slow
def test_forgets_less_than_naive() -> None:
    options = [
        "trainer.max_epochs=10", "trainer.accumulate=1", "trainer.clip=null", "backbone.dropout=0",
        "backbone.hidden=128", "optimizer.lr=0.003", "scenario.test=0.5",
    ]  # fmt: skip
    naive = run(built("naive", *options))["summary"]
    hlop = run(built("hlop", *options, "strategy.directions=20", "strategy.more=15"))["summary"]
    assert hlop["forgetting"] < naive["forgetting"] - 0.1
    assert hlop["ACC"] > naive["ACC"] + 0.1


def test_options_out_of_range_are_refused() -> None:
    for options in ({"directions": 0}, {"more": 0}, {"rate": 0.0}, {"momentum": 1.0}, {"iterations": 0}):
        with pytest.raises(UsageError, match=next(iter(options))):
            build_strategy({"name": "hlop", **options})
