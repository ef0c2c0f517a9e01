"""Rows of chunks against a plain walk over the steps."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clplat.backbones.ops.rows import rows


def walk(
    T: int, C: int, start: int, reset: list[bool], mask: list[bool]
) -> tuple[list[list[int | None]], list[bool], bool, int]:
    """Rows of one sample as lists of steps, which of them begin a sequence, and what is left at the end."""
    found: list[list[int | None]] = []
    fresh: list[bool] = []
    position, pending, opened = start, False, False
    for t in range(T):
        if reset[t]:
            position, pending, opened = 0, True, False
        if mask[t]:
            if not opened:
                found.append([None] * C)
                fresh.append(pending)
                opened, pending = True, False
            found[-1][position] = t
            position += 1
            if position == C:
                position, opened = 0, False
    return found, fresh, pending, position


@settings(max_examples=150)
@given(st.data())
def test_rows_are_those_of_a_walk(data: st.DataObject) -> None:
    B, T, C = (data.draw(st.integers(1, high)) for high in (3, 12, 5))
    flags = st.lists(st.booleans(), min_size=T, max_size=T)
    reset, mask = ([data.draw(flags) for _ in range(B)] for _ in range(2))
    start = [data.draw(st.integers(0, C - 1)) for _ in range(B)]
    laid = rows(T, C, torch.tensor(start), torch.tensor(reset), torch.tensor(mask))
    for b in range(B):
        found, fresh, ended, position = walk(T, C, start[b], reset[b], mask[b])
        for n in range(laid.step.shape[1]):
            steps = found[n] if n < len(found) else [None] * C
            assert laid.live[b, n].tolist() == [step is not None for step in steps]
            assert [t for t in steps if t is not None] == laid.step[b, n][laid.live[b, n]].tolist()
            assert bool(laid.fresh[b, n]) == (fresh[n] if n < len(found) else False)
        assert bool(laid.ended[b]) == ended
        assert int(laid.position[b]) == (0 if ended else position)
    x = torch.randn(B, T, 2)
    mask_BT = torch.tensor(mask)
    assert torch.equal(laid.collect(laid.lay(x))[mask_BT], x[mask_BT])
    assert (laid.lay(x)[~laid.live] == 0).all()


@pytest.mark.parametrize(("T", "C", "N"), [(1, 4, 1), (8, 4, 2), (9, 4, 3), (3, 1, 3)])
def test_plain_sequences_fill_rows(T: int, C: int, N: int) -> None:
    laid = rows(T, C, torch.zeros(2, dtype=torch.long))
    assert laid.step.shape == (2, N, C)
    assert laid.slot.tolist() == [list(range(T))] * 2
    assert laid.position.tolist() == [T % C] * 2
    assert not laid.fresh.any()
    assert not laid.ended.any()


def test_an_empty_batch_has_rows() -> None:
    laid = rows(5, 2, torch.zeros(0, dtype=torch.long))
    assert laid.lay(torch.zeros(0, 5, 3)).shape[2:] == (2, 3)
    assert laid.collect(laid.lay(torch.zeros(0, 5, 3))).shape == (0, 5, 3)
