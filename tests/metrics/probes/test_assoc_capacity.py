"""Memories that are matrices: what they hold, against sums over pairs and what theory says."""

from __future__ import annotations

import pytest
import torch

from clplat.backbones.attention.transformer import Transformer
from clplat.errors import UsageError
from clplat.metrics.probes import base
from clplat.metrics.probes.assoc_capacity import (
    AssocCapacity,
    capacity,
    cosines,
    crosstalk,
    read,
    retrieved,
    unit_keys,
    write,
)
from clplat.probing import make
from tests.metrics.probes.streams import language, made, source


def values(keys: torch.Tensor, seed: int = 9) -> torch.Tensor:
    return torch.randn(keys.shape, generator=source(seed), dtype=torch.float64)


def holds(keys: torch.Tensor, rule: str = "hebbian", threshold: float = 0.9, passes: int = 1) -> float:
    v = values(keys)
    return float(retrieved(cosines(read(write(keys, v, rule, passes=passes), keys), v), threshold).double().mean())


def test_the_hebbian_read_is_the_sum_over_pairs() -> None:
    keys = unit_keys("random", 2, 7, 5, source(0))
    v = values(keys)
    found = read(write(keys, v), keys)
    slow = torch.stack(
        [sum((keys[:, j] * keys[:, i]).sum(-1, keepdim=True) * v[:, i] for i in range(7)) for j in range(7)], 1
    )
    torch.testing.assert_close(found, slow)


def test_orthogonal_keys_are_perfect_up_to_their_width_and_not_above() -> None:
    for n, expected in ((1, 1.0), (16, 1.0)):
        assert holds(unit_keys("orthogonal", 20, n, 16, source(1)), threshold=1 - 1e-9) == expected
    assert holds(unit_keys("orthogonal", 20, 17, 16, source(1)), threshold=1 - 1e-9) < 0.05


@pytest.mark.parametrize(("n", "K"), [(9, 32), (33, 64)])
def test_crosstalk_has_the_variance_that_theory_says(n: int, K: int) -> None:
    keys = unit_keys("random", 400, n, K, source(2))
    v = values(keys)
    found = crosstalk(read(write(keys, v), keys), keys, v).square().mean() / v.square().mean()
    assert float(found) == pytest.approx((n - 1) / K, rel=0.1)


def test_twice_the_width_holds_about_twice_as_much() -> None:
    half = {}
    for K in (16, 32, 64):
        rates = [(n, holds(unit_keys("random", 100, n, K, source(n)))) for n in range(1, K // 2 + 1)]
        half[K] = capacity(rates, 0.5)
    assert half[32] / half[16] == pytest.approx(2, rel=0.3)
    assert half[64] / half[32] == pytest.approx(2, rel=0.3)


def test_the_delta_rule_holds_more_when_pairs_come_again() -> None:
    def most(rule: str) -> int:
        return capacity([(n, holds(unit_keys("random", 20, n, 32, source(n)), rule, passes=20)) for n in range(1, 32)])

    assert most("delta") > 2 * most("hebbian") > 0


def test_one_write_of_each_rule() -> None:
    keys = unit_keys("random", 1, 2, 3, source(3))
    v = values(keys)
    k1, k2, v1, v2 = keys[0, 0, :, None], keys[0, 1, :, None], v[0, 0, None], v[0, 1, None]
    first = k1 * v1
    torch.testing.assert_close(write(keys, v, "decay", decay=0.5)[0], 0.5 * first + k2 * v2)
    torch.testing.assert_close(
        write(keys, v, "delta", beta=0.5)[0], 0.5 * first + 0.5 * k2 * (v2 - 0.5 * k2.mT @ first)
    )
    u1, u2 = v1 / v1.norm(), v2 / v2.norm()
    torch.testing.assert_close(write(keys, v, "oja")[0], k1 * u1 + k2 * u2 - k1 * u1 * u2.square())


def test_capacity_stops_at_the_first_failure() -> None:
    assert capacity([(4, 1.0), (1, 1.0), (2, 0.96), (3, 0.9)]) == 2
    assert capacity([(1, 0.2)]) == 0


def test_a_network_whose_keys_are_alike_holds_less_than_random_ones() -> None:
    tokens = torch.randint(1, 30, (64, 17), generator=source(4))
    scenario = language(tokens, tokens, 30)
    learner = made(scenario, lambda D: Transformer(D, dim=32, layers=2, heads=2))
    probe = make("assoc-capacity", trials=4, threshold=0.0)
    before = base.take(probe, learner, scenario)
    assert before["key_width"] == 16
    assert before["orthogonal"] >= before["random"] >= before["own_best"] > 0
    cosine = [value for _, value in before["redundancy"]]
    assert cosine == sorted(cosine)
    layer = learner.backbone.attention_layers[0]
    with torch.no_grad():  # keys of which one direction is left
        layer.qkv.weight[32 + 1 : 48] = 0
        layer.qkv.bias[32 + 1 : 48] = 0
    after = base.take(probe, learner, scenario)
    assert after["own"][0][0] < before["own"][0][0]
    assert after["own"][1] != []
    assert len(probe.figure(after)["data"]) == 4


def test_what_it_refuses() -> None:
    for options in ({"decay": 0.0}, {"beta": 3.0}, {"passes": 0}, {"threshold": 1.0}, {"trials": 0}):
        with pytest.raises(UsageError, match="assoc-capacity"):
            AssocCapacity(**options)
