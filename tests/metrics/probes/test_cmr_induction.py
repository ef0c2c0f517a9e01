"""The model of recall against its closed form and a slow simulation; heads made by hand and untrained ones."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from clplat.backbones.attention.transformer import Transformer
from clplat.errors import UsageError
from clplat.metrics import cmr
from clplat.metrics.probes import base
from clplat.metrics.probes.cmr_induction import CMRInduction, lag_profile
from clplat.probing import make
from tests.metrics.probes.streams import language, made, source


def slow(beta_enc: float, beta_rec: float, gamma: float, items: int, start: int, uniform: np.ndarray) -> list[int]:
    """One run, an item at a time, from the equations."""
    n = items + 1
    M = [[(1 - beta_enc) ** (j - i - 1) if j > i else 0.0 for j in range(n)] for i in range(n)]
    context = [float(i == start) for i in range(n)]
    said = []
    for number in uniform:
        strength = [sum(context[i] * M[i][j] for i in range(n)) for j in range(n)]
        total, so_far, item = sum(strength), 0.0, n - 1
        for j in range(n):
            so_far += strength[j] / total
            if number <= so_far:
                item = j
                break
        if item == n - 1:
            break
        said.append(item)
        incoming = [(1 - gamma) * (i == item) + gamma * M[i][item] for i in range(n)]
        length = math.sqrt(sum(v * v for v in incoming))
        context = [(1 - beta_rec) * c + beta_rec * v / length for c, v in zip(context, incoming, strict=True)]
        length = math.sqrt(sum(v * v for v in context))
        context = [c / length for c in context]
    return said


@pytest.mark.parametrize("parameters", [(0.5, 0.3, 0.4), (0.8, 1.0, 1.0), (0.3, 0.6, 0.0), (1.0, 0.5, 0.2)])
def test_the_simulation_is_the_equations(parameters: tuple[float, float, float]) -> None:
    uniform = np.random.default_rng(0).random((20, 12))
    starts = np.arange(20) % 5 + 1
    found = cmr.recalled(cmr.association(parameters[0], 12), *parameters[1:], starts, uniform)
    for row, start, numbers in zip(found, starts, uniform, strict=True):
        assert [item for item in row.tolist() if item >= 0] == slow(*parameters, 12, int(start), numbers)


@pytest.mark.parametrize("beta_enc", [0.2, 0.5, 0.9])
def test_the_closed_form_is_the_simulation(beta_enc: float) -> None:
    starts = np.full(8000, 6)
    uniform = np.random.default_rng(1).random((8000, 25))
    found = cmr.lag_distribution(cmr.recalled(cmr.association(beta_enc, 25), 1.0, 0.0, starts, uniform), starts, 5)
    np.testing.assert_allclose(found, cmr.closed_form(beta_enc, 25, 6, 5), atol=0.01)


def test_lags_are_counted_as_one_counts_them() -> None:
    items = np.array([[3, 5, 4, -1], [2, -1, -1, -1], [-1, -1, -1, -1]])
    found = cmr.lag_distribution(items, np.array([2, 2, 2]), 2)  # lags 1, 2, -1 and 0
    np.testing.assert_allclose(found, [0, 0.25, 0.25, 0.25, 0.25])


def test_an_ideal_induction_head_is_the_model_without_drift_in_encoding() -> None:
    profile = np.zeros(11)
    profile[6] = 0.7
    distance, (beta_enc, _, _) = cmr.fit(profile)
    assert distance < 1e-6
    assert beta_enc == pytest.approx(1)
    assert math.isnan(cmr.fit(np.ones(11))[0])
    curves, parameters = cmr.table()
    again = cmr.fit(0.3 * curves[123] + 0.1)
    assert again[0] < 1e-12
    np.testing.assert_allclose(again[1], parameters[123])


def test_profiles_are_means_over_places_that_there_are() -> None:
    weights = torch.rand(2, 3, 12, 12, generator=source(0), dtype=torch.float64)
    found = lag_profile(weights, 2)
    for lag in range(-2, 3):
        inside = [i for i in range(6) if 0 <= i + lag < 6]
        mean = sum(weights[:, :, 6 + i, i + lag] for i in inside) / len(inside)
        torch.testing.assert_close(found[..., lag + 2], mean)


def test_an_untrained_head_does_not_look_forward() -> None:
    tokens = torch.randint(1, 40, (200, 13), generator=source(1))
    scenario = language(tokens, tokens[:100], 40)
    learner = made(scenario, lambda D: Transformer(D, dim=16, layers=2, heads=2))
    probe = make("cmr-induction", length=30)
    found = base.take(probe, learner, scenario)
    uniform = sum(1 / (30 + i) for i in range(1, 31)) / 30
    assert found["matching"] == pytest.approx(uniform, rel=0.5)
    assert abs(found["asymmetry"]) < 0.2 * 10 * uniform
    assert len(found["profiles"][1][1]) == 11
    assert len(probe.figure(found)["data"]) == 4


def test_what_it_refuses() -> None:
    tokens = torch.randint(1, 6, (20, 9), generator=source(1))
    scenario = language(tokens, tokens, 40)
    learner = made(scenario, lambda D: Transformer(D, dim=16, layers=1, heads=2))
    with pytest.raises(UsageError, match="too few for lags=5"):
        base.take(make("cmr-induction"), learner, scenario)
    for options in ({"lags": 0}, {"length": 5}, {"samples": 0}):
        with pytest.raises(UsageError, match="must be positive"):
            CMRInduction(**options)
