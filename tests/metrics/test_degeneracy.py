"""Distances between networks, for pairs whose distance is known."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from clplat.metrics.degeneracy import (
    delay_embedded,
    dynamical_distance,
    dynamics,
    mean_of_pairs,
    permuted,
    weight_distance,
)


def test_small_networks_against_all_permutations() -> None:
    source = np.random.default_rng(0)
    for _ in range(5):
        a, b = source.standard_normal((2, 2, 5, 5))
        slow = min(np.linalg.norm(a - permuted(b, np.array(p))) for p in itertools.permutations(range(5)))
        found = weight_distance(a, b)
        assert found >= slow - 1e-9
        assert found == pytest.approx(slow, rel=0.05)


@pytest.mark.parametrize(("gates", "units"), [(1, 24), (3, 16)])
def test_a_permuted_copy_is_no_other_network(gates: int, units: int) -> None:
    source = np.random.default_rng(1)
    a = source.standard_normal((gates, units, units))
    b = permuted(a, source.permutation(units))
    assert np.linalg.norm(a - b) > 1
    assert weight_distance(a, b) < 1e-9
    assert weight_distance(a, b + 0.01 * source.standard_normal(b.shape)) < 0.02 * units * gates**0.5


def test_a_permuted_or_turned_trajectory_has_the_same_dynamics() -> None:
    source = np.random.default_rng(2)
    x = source.standard_normal((6, 40, 8)).cumsum(1) * 0.2 + np.sin(np.arange(40))[None, :, None]
    turned = np.linalg.qr(source.standard_normal((8, 8)))[0]
    a = dynamics(x, rank=6)
    for other in (x[..., source.permutation(8)], x @ turned + 3, 2 * x):
        assert dynamical_distance(a, dynamics(other, rank=6)) < 1e-3
    noise = source.standard_normal((6, 40, 8))
    assert dynamical_distance(a, dynamics(noise, rank=6)) > 0.5


def test_the_map_is_that_of_the_trajectory() -> None:
    """A turning plane: eigenvalues of the fitted map are those that made the trajectory."""
    source = np.random.default_rng(3)
    turn = 0.97 * np.array([[np.cos(0.4), -np.sin(0.4)], [np.sin(0.4), np.cos(0.4)]])
    x = np.zeros((5, 60, 2))
    x[:, 0] = source.standard_normal((5, 2))
    for t in range(1, 60):
        x[:, t] = x[:, t - 1] @ turn.T
    found = np.linalg.eigvals(dynamics(x, delays=1, rank=2))
    np.testing.assert_allclose(sorted(np.abs(found)), [0.97, 0.97], atol=0.01)
    np.testing.assert_allclose(sorted(np.abs(np.angle(found))), [0.4, 0.4], atol=0.02)


def test_orthogonal_copies_of_a_map_are_found() -> None:
    source = np.random.default_rng(4)
    a = source.standard_normal((5, 5)) / 5**0.5
    for flip in (1, -1):
        C = np.linalg.qr(source.standard_normal((5, 5)))[0]
        C[0] *= flip
        assert dynamical_distance(a, C @ a @ C.T) < 0.02
    assert dynamical_distance(a, np.zeros((5, 5))) == pytest.approx(np.linalg.norm(a))


def test_delays_and_pairs() -> None:
    x = np.arange(12, dtype=float).reshape(1, 6, 2)
    found = delay_embedded(x, 3)
    assert found.shape == (1, 4, 6)
    np.testing.assert_array_equal(found[0, 1], [2, 3, 4, 5, 6, 7])
    assert mean_of_pairs([[0, 1, 2], [1, 0, 3], [2, 3, 0]]) == 2
