"""Timescales of processes whose timescales are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.signal import lfilter

from clplat.backbones.rnn.leaky import LeakyRNN
from clplat.errors import UsageError
from clplat.metrics.probes import base
from clplat.metrics.probes.timescales import Timescales, autocorrelation, timescale
from clplat.probing import make
from tests.cases import built

Array = NDArray[np.float64]


def ar1(tau: float, steps: int, units: int, seed: int) -> Array:
    noise = np.random.default_rng(seed).standard_normal((steps, units))
    found = lfilter([1.0], [1.0, -math.exp(-1 / tau)], noise, axis=0)
    return found / found.std(0)


def test_autocorrelation_is_its_definition() -> None:
    x = np.random.default_rng(0).standard_normal((50, 2)).cumsum(0)
    x[:, 1] = 3.0
    found = autocorrelation(x, 7)
    centred = x[:, 0] - x[:, 0].mean()
    slow = [sum(centred[t] * centred[t + lag] for t in range(50 - lag)) / (50 - lag) for lag in range(8)]
    np.testing.assert_allclose(found[:, 0], np.array(slow) / slow[0])
    assert np.isnan(found[:, 1]).all()


def test_an_ar1_process_of_ten_steps_is_found_within_a_tenth() -> None:
    fits = [timescale(unit, 30) for unit in ar1(10, 100_000, 6, seed=1).T]
    assert not any(two for _, two in fits)
    assert np.mean([tau for tau, _ in fits]) == pytest.approx(10, rel=0.1)


def test_two_timescales_are_told_from_one() -> None:
    slow, fast = ar1(20, 50_000, 4, seed=2), ar1(2, 50_000, 4, seed=3)
    fits = [timescale(unit, 30) for unit in (0.3**0.5 * slow + 0.7**0.5 * fast).T]
    assert all(two for _, two in fits)
    assert np.mean([tau for tau, _ in fits]) == pytest.approx(20, rel=0.25)


def test_noise_has_none_and_what_stands_still_neither() -> None:
    assert timescale(np.random.default_rng(4).standard_normal(20_000), 30)[0] < 0.5
    assert math.isnan(timescale(np.ones(2000), 30)[0])


@pytest.mark.slow
@pytest.mark.parametrize("tau", [4.0, 12.0])
def test_units_that_do_nothing_but_leak_have_the_time_constant_they_are_given(tau: float) -> None:
    """A linear unit without connections driven by noise is an AR(1) process with ``1 - 1/tau``."""
    one = built("naive", "backbone=leaky-rnn", "scenario=permuted-digits")
    network = one.learner.backbone
    assert isinstance(network, LeakyRNN)
    _only_leak(network, tau)
    probe = make("timescales", steps=40_000, units=6)
    found = base.take(probe, one.learner, one.scenario)
    expected = -1 / math.log(1 - 1 / tau)
    assert found["mean"] == pytest.approx(expected, rel=0.15)
    assert probe.figure(found)["data"][0]["y"][0] == pytest.approx(1)


def test_what_it_refuses() -> None:
    one = built("naive", "backbone=transformer", "scenario=permuted-digits")
    with pytest.raises(UsageError, match=r"state of fixed size.*gru"):
        base.take(make("timescales"), one.learner, one.scenario)
    with pytest.raises(UsageError) as error:
        Timescales(steps=10, burn_in=-1)
    assert len(error.value.messages) == 2


def _only_leak(network: LeakyRNN, tau: float) -> None:
    for name, parameter in network.named_parameters():
        if name.endswith("tau"):
            parameter.data.fill_(tau)
        elif name.startswith("hh"):
            parameter.data.zero_()
        elif name.endswith("bias"):
            parameter.data.fill_(100.0)  # far from the bend of the rectifier
