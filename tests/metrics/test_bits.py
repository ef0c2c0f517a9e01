"""Bits: binary cross-entropy and bit accuracy over what is asked, against sums written out."""

from __future__ import annotations

import math

import pytest
import torch

from clplat.metrics import measures

LOGITS = torch.tensor([[[2.0, -1.0], [0.5, 3.0]], [[-2.0, 1.0], [-0.5, 0.0]]])
Y = torch.tensor([[[1, 1], [-100, 1]], [[0, -100], [-100, -100]]])


def test_loss_is_the_mean_over_asked_bits_of_each_sample() -> None:
    def bce(z: float, bit: int) -> float:
        return math.log1p(math.exp(-z if bit else z))

    first = (bce(2.0, 1) + bce(-1.0, 1) + bce(3.0, 1)) / 3
    assert measures.base_loss("bits", LOGITS, Y).tolist() == pytest.approx([first, bce(-2.0, 0)], rel=1e-6)


def test_unasked_bits_do_not_count_and_get_no_gradient() -> None:
    sums = measures.bit_sums(LOGITS, Y)
    assert {name: int(n) for name, n in sums.items()} == {"asked": 4, "right": 3, "whole": 1}
    logits = LOGITS.clone().requires_grad_()
    measures.base_loss("bits", logits, Y).sum().backward()
    assert logits.grad is not None
    assert ((logits.grad != 0) == (Y != measures.IGNORED)).all()


def test_a_sample_that_asks_nothing_costs_nothing() -> None:
    loss = measures.base_loss("bits", LOGITS, torch.full_like(Y, measures.IGNORED))
    assert loss.tolist() == [0, 0]
