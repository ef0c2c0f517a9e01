"""Progressive networks: the equation by hand, laterals that count, columns that stay."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from clplat.build import Built
from clplat.errors import UsageError
from tests.cases import built, run
from tests.strategies.isolation import DRIFTS, assert_answers_never_change

ROWS = "learner.encoder=rows"
OTHERS = {
    "gru": ["backbone=gru", "backbone.hidden=6", "backbone.layers=2", ROWS],
    "transformer": ["backbone=transformer", "backbone.dim=8", "backbone.heads=2", "backbone.layers=1", ROWS],
}


@pytest.mark.parametrize("drift", DRIFTS)
def test_old_answers_keep_every_bit_with_dropout_and_any_optimiser(drift: tuple[str, ...]) -> None:
    assert_answers_never_change(built("pnn", *drift))


@pytest.mark.parametrize("backbone", OTHERS)
def test_old_answers_keep_every_bit_in_sequence_networks(backbone: str) -> None:
    assert_answers_never_change(built("pnn", *OTHERS[backbone], *DRIFTS[0], "trainer.max_epochs=1", "eval.every=0"))


def _trained(*overrides: str) -> Built:
    one = built("pnn", "trainer.precision=64", "trainer.max_epochs=1", "eval.every=0", *overrides)
    run(one)
    one.learner.eval()
    return one


def _lateral(lateral, h: list[Tensor]) -> Tensor:  # type: ignore[no-untyped-def]
    joined = torch.cat([lateral.a[j] * h_j for j, h_j in enumerate(h)], -1)
    if lateral.v is not None:
        joined = (joined @ lateral.v.weight.T + lateral.v.bias).relu()
    return joined @ lateral.u.weight.T


def test_three_columns_of_a_perceptron_are_the_equation() -> None:
    one = _trained()
    x = torch.randn(5, 1, 8, 8, dtype=torch.float64)
    hidden: list[list[Tensor]] = []  # of each column, what its second layer reads
    outputs: list[Tensor] = []
    for column in one.learner.strategy.columns:
        first, second = column.network.layers
        h = (x.flatten(1) @ first.weight.T + first.bias).relu()
        z = h @ second.weight.T + second.bias
        if hidden:
            z = z + _lateral(column.laterals["layers/1"], [of_column[0] for of_column in hidden])
        y = z.relu()
        hidden.append([h])
        outputs.append(y + _lateral(column.output, outputs) if outputs else y)
    for number, expected in enumerate(outputs):
        found, _ = one.learner.strategy.forward(one.learner, x.flatten(1)[:, None], torch.full((5,), number))
        torch.testing.assert_close(found[:, 0], expected, rtol=1e-10, atol=1e-12)


def test_a_recurrent_column_takes_laterals_at_each_step() -> None:
    one = _trained(*OTHERS["gru"], "backbone.layers=1")
    strategy = one.learner.strategy
    assert list(strategy.sites) == ["hh.0"]
    x_BTD = torch.randn(2, 4, 8, dtype=torch.float64)
    first, second = strategy.columns[0], strategy.columns[1]
    states = [torch.zeros(2, 6, dtype=torch.float64) for _ in range(2)]
    expected = []
    for t in range(4):
        new = []
        for column, h in zip((first, second), states, strict=True):
            ih, hh = column.network.ih[0], column.network.hh[0]
            gates = hh(h) + (_lateral(column.laterals["hh/0"], [states[0]]) if column is second else 0)
            new.append(column.network.cells[0](ih(x_BTD[:, t]), gates, {"hidden": h})["hidden"])
        states = new
        expected.append(states[1] + _lateral(second.output, [states[0]]))
    found, _ = strategy.forward(one.learner, x_BTD, torch.ones(2, dtype=torch.long))
    torch.testing.assert_close(found, torch.stack(expected, 1), rtol=1e-10, atol=1e-12)


def test_a_column_feels_older_columns_and_not_younger_ones() -> None:
    one = _trained()
    learner, columns = one.learner, one.learner.strategy.columns
    x = torch.randn(6, 1, 8, 8, dtype=torch.float64)
    before = [learner(x, torch.full((6,), task)) for task in range(3)]
    with torch.no_grad():
        columns[1].network.layers[0].weight.add_(1.0)
    after = [learner(x, torch.full((6,), task)) for task in range(3)]
    assert [torch.equal(*pair) for pair in zip(before, after, strict=True)] == [True, False, False]


def test_only_the_new_column_is_given_to_the_optimiser() -> None:
    one = _trained()
    (group,) = one.learner.strategy.param_groups(one.learner)
    assert {id(p) for p in group["params"]} == {id(p) for p in one.learner.strategy.columns[2].parameters()}
    assert not any(name.startswith("backbone") for name in one.learner.network())
    assert not any("initial" in name for name in one.learner.state_dict())


def test_forgets_nothing_and_learns() -> None:
    options = ["scenario.experiences=5", "trainer.max_epochs=10", "trainer.accumulate=1", "trainer.clip=null",
               "scenario.test=0.5", "backbone.dropout=0", "backbone.hidden=32", "eval.every=0"]  # fmt: skip
    found = run(built("pnn", *options))["summary"]
    assert found["forgetting"] == 0
    assert found["ACC"] > 0.9


def test_a_backbone_without_linear_maps_is_refused() -> None:
    with pytest.raises(UsageError, match="no linear map"):
        built("pnn", "backbone=resnet18", "backbone.width=2")
