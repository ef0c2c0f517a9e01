"""Dropout: its distribution, and that any number of ranks sees the same noise."""

from __future__ import annotations

import pytest
import torch

from clplat.backbones.dropout import Dropout
from clplat.errors import UsageError
from clplat.randomness import Noise, Rows, noise


def test_keeps_the_mean_and_drops_the_share() -> None:
    torch.manual_seed(0)
    y = Dropout(0.3)(torch.ones(100, 1000))
    assert set(y.unique().tolist()) == {0.0, (torch.ones(()) / 0.7).item()}
    assert abs((y == 0).float().mean().item() - 0.3) < 0.01


def test_identity_in_evaluation_and_at_zero() -> None:
    x = torch.randn(4, 3)
    assert Dropout(0.5).eval()(x) is x
    assert Dropout(0.0)(x) is x


@pytest.mark.parametrize("spans", [[(0, 4), (4, 8)], [(0, 3), (3, 3), (3, 8)]], ids=["even", "uneven, one empty"])
def test_slices_equal_the_whole(spans: list[tuple[int, int]]) -> None:
    x, dropout = torch.ones(8, 5, 6), Dropout(0.5)

    def two_calls(rows: slice) -> tuple[torch.Tensor, torch.Tensor]:
        with noise(Noise(1, Rows([(8, rows.start, rows.stop)]), 3, 7)):
            return dropout(x[rows]), dropout(x[rows])

    whole = two_calls(slice(0, 8))
    assert not torch.equal(*whole)  # two layers do not share their noise
    parts = [two_calls(slice(*span)) for span in spans]
    for call in range(2):
        assert torch.equal(torch.cat([part[call] for part in parts]), whole[call])


def test_no_gradient_through_what_is_dropped() -> None:
    x = torch.ones(4, 50, requires_grad=True)
    y = Dropout(0.5)(x)
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())


@pytest.mark.parametrize("p", [-0.1, 1.0])
def test_refuses_what_is_no_probability(p: float) -> None:
    with pytest.raises(UsageError, match="dropout"):
        Dropout(p)
