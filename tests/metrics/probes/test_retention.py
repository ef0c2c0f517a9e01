"""Recognition, recall and retention: the measures, and small networks that learn strings by heart."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from clplat.backbones.rnn.gru import GRU
from clplat.errors import UsageError
from clplat.metrics.probes import base
from clplat.metrics.probes.retention import RetentionProbe, forgetting_curve, recognition, rouge2
from clplat.probing import make
from clplat.strategies.er import ER
from clplat.strategy import Strategy
from tests.metrics.probes.streams import language, made, source

V = 20


def strings(n: int, seed: int) -> torch.Tensor:
    return torch.randint(1, V, (n, 13), generator=source(seed))


def test_recognition_counts_pairs() -> None:
    seen, foil = torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([2.0, 1.0, 3.0, 5.0])
    assert recognition(seen, foil) == pytest.approx((1 + 0 + 0.5 + 1) / 4)


def test_rouge_counts_pairs_of_neighbours() -> None:
    assert rouge2([1, 2, 3], [1, 2, 3]) == 1
    assert rouge2([1, 2, 3, 9], [1, 2, 3, 4]) == pytest.approx(2 / 3)
    assert rouge2([1, 1, 1], [1, 1, 2]) == pytest.approx(0.5)  # a pair counts as often as it is in both
    assert rouge2([1], [1, 2]) == 0


def test_curves_are_told_apart_and_their_half_lives_found() -> None:
    t = np.array([0.0, 1, 2, 4, 8, 16, 32, 64, 128])
    found = forgetting_curve(t, 0.9 * np.exp(-0.05 * t))
    assert found["form"] == "exponential"
    assert found["half_life"] == pytest.approx(np.log(2) / 0.05, rel=1e-3)
    found = forgetting_curve(t, 0.8 * (1 + 0.7 * t) ** -0.4)
    assert found["form"] == "power"
    assert found["half_life"] == pytest.approx((2 ** (1 / 0.4) - 1) / 0.7, rel=1e-2)


def test_an_untrained_network_recognises_by_chance_and_learns_strings_in_a_few_passes() -> None:
    scenario = language(strings(128, 0), strings(160, 1), V)
    learner = made(scenario, lambda D: GRU(D, hidden=96))
    before = {name: p.clone() for name, p in learner.named_parameters()}
    probe = make("retention-probe", items=64, exposures=12, updates=60, lr=1e-2)
    found = base.take(probe, learner, scenario)
    assert found["recognition"] == pytest.approx(0.5, abs=0.2)
    assert found["exposures"][0]["recognition"] == pytest.approx(0.5, abs=0.2)
    assert found["studied_recognition"] > 0.95
    assert found["studied_recall"] > found["exposures"][0]["recall"] + 0.2
    lost_recall = 1 - found["kept_recall"] / found["studied_recall"]
    lost_recognition = 1 - (found["kept_recognition"] - 0.5) / (found["studied_recognition"] - 0.5)
    assert lost_recall > lost_recognition
    assert found["updates"][0] == 0
    assert found["updates"][-1] == 60
    assert all(torch.equal(p, before[name]) for name, p in learner.named_parameters())
    assert len(probe.figure(found)["data"][0]["x"]) == len(found["updates"])


@pytest.mark.slow
def test_with_rehearsal_the_runs_own_items_are_remembered_better() -> None:
    scenario = language([strings(48, seed) for seed in (3, 4, 5)], strings(48, 6), V)
    kept = {}
    for name, strategy in {"naive": Strategy, "er": lambda: ER(memory=96)}.items():
        learner = made(scenario, lambda D: GRU(D, hidden=64), epochs=60, lr=1e-2, batch=16, strategy=strategy)
        kept[name] = base.take(make("retention-probe", items=48, exposures=0, updates=0), learner, scenario)
        assert len(kept[name]["experiences"]) == 3
        assert kept[name]["experiences"][2]["recognition"] > 0.95
    assert kept["er"]["recall"] > kept["naive"]["recall"] + 0.1


@pytest.mark.parametrize("kind", ["stream", "shuffled", "random"])
@pytest.mark.parametrize("foils", ["unrelated", "one-changed"])
def test_items_and_foils(kind: str, foils: str) -> None:
    scenario = language(strings(20, 7), strings(40, 8), V)
    learner = made(scenario, lambda D: GRU(D, hidden=8))
    seen, foil = RetentionProbe(items=10, kind=kind, foils=foils)._study(learner, scenario)  # type: ignore[arg-type]
    assert len(seen) == len(foil) == 10
    for data in (seen, foil):
        assert torch.equal(data.x[:, 1:], data.y[:, :-1])
    whole, other = (torch.cat([data.x[:, :1], data.y], 1) for data in (seen, foil))
    known = scenario.test_stream[0].dataset
    test = {tuple(row) for row in torch.cat([known.x[:, :1], known.y], 1).tolist()}
    assert all(tuple(row) in test for row in whole.tolist()) == (kind == "stream")
    if kind == "shuffled":
        assert all(tuple(sorted(row)) in {tuple(sorted(t)) for t in test} for row in whole.tolist())
    changed = (whole != other).sum(1)
    assert bool((changed == 1).all()) == (foils == "one-changed")
    assert not bool((changed == 0).any())


def test_what_it_refuses() -> None:
    for options in ({"items": 0}, {"exposures": -1}, {"lr": 0.0}, {"batch_size": 0}):
        with pytest.raises(UsageError, match="retention-probe"):
            RetentionProbe(**options)
