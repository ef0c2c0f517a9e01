"""Networks whose weights are moved: asked for their own answers, so that the whole one is always right."""

from __future__ import annotations

import pytest
import torch

from clplat.backbones.units import rows_of
from clplat.build import Built
from clplat.errors import UsageError
from clplat.metrics.probes import base
from clplat.metrics.probes.perturbation import Perturbation, shaken
from clplat.probing import make
from clplat.randomness import generator
from clplat.scenario import stream
from tests.cases import built


def always_right(backbone: str) -> Built:
    """An untrained network and a test of what it says itself."""
    one = built("naive", f"backbone={backbone}", "scenario=permuted-digits", "scenario.experiences=1")
    data = one.scenario.test_stream[0].dataset
    with one.learner.evaluating():
        y = one.learner.answer(data.x, data.task).argmax(-1)
    one.scenario.test_stream = stream("test", [data.labelled(y)])
    return one


def test_weights_move_by_a_share_of_their_norm() -> None:
    W = torch.randn(5, 7, generator=generator(0, "weights"))
    for strength in (0.0, 0.1, 3.0):
        moved = shaken(W, strength, generator(1, "noise"))
        assert float((moved - W).norm() / W.norm()) == pytest.approx(strength, rel=1e-5)


def test_the_more_noise_the_fewer_answers_stay() -> None:
    one = always_right("leaky-rnn")
    before = {name: p.clone() for name, p in one.learner.named_parameters()}
    probe = make("perturbation", strengths=[0, 0.01, 0.3, 30], draws=3, samples=200, units=0)
    found = base.take(probe, one.learner, one.scenario)
    assert found["whole"] == 1
    assert found["relative"][0] == 1
    assert found["relative"][1] > 0.9
    assert found["relative"][1] > found["relative"][2] > found["relative"][3]
    assert found["ablated"] is None
    assert all(torch.equal(p, before[name]) for name, p in one.learner.named_parameters())
    assert probe.figure(found)["data"][0]["y"] == found["relative"]


def test_only_the_parameters_that_are_named_move() -> None:
    one = always_right("leaky-rnn")
    for cell in one.learner.backbone.cells:
        cell.tau.data.fill_(-100)  # they act as 1 however they are moved by less than all of it
    found = base.take(make("perturbation", part="tau", strengths=[0.5], draws=2, units=0), one.learner, one.scenario)
    assert found["relative"] == [1]


def test_a_neuron_without_what_makes_it_puts_out_zero() -> None:
    one = always_right("leaky-rnn")
    network, parameters = one.learner.backbone, dict(one.learner.backbone.named_parameters())
    (layer,) = network.units()
    kept = torch.ones(layer.size)
    kept[3] = 0
    replaced = {name: parameters[name] * rows_of(kept, parameters[name]) for name in layer.makes}
    y = torch.func.functional_call(network, replaced, (torch.randn(2, 6, 8, generator=generator(0, "x")),))[0]
    assert not y[..., 3].any()
    assert y[..., 4].any()


def test_a_network_that_hangs_on_one_neuron_falls_with_it() -> None:
    """Class 1 where neuron 0 is positive, else 2; all are 0 without it, and no other neuron matters."""
    one = built(
        "naive", "backbone=leaky-rnn", "backbone.hidden=4", "scenario=permuted-digits", "scenario.experiences=1"
    )
    for name, parameter in one.learner.head.named_parameters():
        parameter.data.zero_()
        if name.endswith("weight"):
            parameter.data[1, 0], parameter.data[2, 0] = 5.0, -5.0
    data = one.scenario.test_stream[0].dataset
    with one.learner.evaluating():
        y = one.learner.answer(data.x, data.task).argmax(-1)
    assert not (y == 0).any()
    one.scenario.test_stream = stream("test", [data.labelled(y)])
    probe = make("perturbation", strengths=[0], draws=1, units=4)
    found = base.take(probe, one.learner, one.scenario)
    assert found["whole"] == 1
    assert found["ablated_worst"] == 0
    assert found["ablated"] < 0.76  # the others change neuron 0, but never what reads it


def test_what_it_refuses() -> None:
    one = built("naive", "backbone=gru", "scenario=permuted-digits")
    with pytest.raises(UsageError, match=r"no parameter with 'tau'.*ih.0.weight"):
        base.take(make("perturbation", part="tau"), one.learner, one.scenario)
    with pytest.raises(UsageError) as error:
        Perturbation(strengths=[-1.0], draws=0)
    assert len(error.value.messages) == 2
