"""Pairs by a power law, and what a matrix of outer products recalls of them."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import chisquare

from clplat.errors import UsageError
from clplat.metrics import associative
from clplat.randomness import generator
from clplat.scenarios.associations import AssociativeMemoryScaling
from clplat.scenarios.symbols import power_law
from tests.scenarios.streams import build

N, M = 1000, 5
LAW, TARGET = power_law(N, 2.0), (torch.arange(N) + 1) % M


def mean_error(dim: int, rule: associative.Rule, *, exponent: float = 1.0, most: int | None = None) -> float:
    found = 0.0
    for trial in range(6):
        source = generator(trial, "associative", dim)
        e, u = associative.embeddings(N, dim, source), associative.embeddings(M, dim, source)
        q = associative.stored(LAW, rule, exponent=exponent, most=most)
        found += associative.error(associative.memory(q, TARGET, e, u), LAW, TARGET, e, u) / 6
    return found


def test_with_a_threshold_the_error_falls_with_the_width_and_by_frequency_it_is_larger() -> None:
    """The seed's check: a slope of about -1 at exponent 2. Measured: -0.98 for dim / 4, and the errors of storage by
    frequency at 64 and 128 values are 4 and 7 times as large."""
    dims = (16, 32, 64, 128)
    errors = {dim: mean_error(dim, "threshold", exponent=0.0, most=dim // 4) for dim in dims}
    slope = (math.log(errors[128]) - math.log(errors[16])) / math.log(8)
    assert -1.2 < slope < -0.8
    for dim in (64, 128):
        assert mean_error(dim, "frequency") > 2 * errors[dim]
        assert mean_error(dim, "all") > mean_error(dim, "frequency")


def test_with_orthogonal_embeddings_what_is_stored_is_recalled_and_the_rest_is_not() -> None:
    p, target = power_law(8, 1.0), torch.arange(8) % 4
    e, u = torch.eye(8, dtype=torch.float64), torch.eye(8, dtype=torch.float64)[:4]
    q = associative.stored(p, "threshold", most=3)
    assert (q > 0).tolist() == [True] * 3 + [False] * 5
    # what is not stored gives zeros, and the first of equals, 0, is the answer
    wrong = float(p[[i for i in range(3, 8) if target[i]]].sum())
    assert associative.error(associative.memory(q, target, e, u), p, target, e, u) == pytest.approx(wrong)
    everything = associative.memory(associative.stored(p, "all"), target, e, u)
    assert associative.error(everything, p, target, e, u) == 0


def test_adam_is_ahead_of_sgd_after_as_many_steps() -> None:
    source = generator(0, "associative")
    e, u = associative.embeddings(N, 32, source), associative.embeddings(M, 32, source)
    errors: dict[str, float] = {}
    for name, lr in (("sgd", 1.0), ("adam", 0.1)):
        W = associative.learned(
            LAW, TARGET, e, u, optimizer=name, lr=lr, steps=200, batch=64, source=generator(1, "draws")
        )
        errors[name] = associative.error(W, LAW, TARGET, e, u)
    assert errors["adam"] < 0.7 * errors["sgd"] < 0.1


def test_inputs_come_by_the_law_and_have_the_output_of_their_rank() -> None:
    scenario = AssociativeMemoryScaling(4, inputs=20, outputs=4, exponent=1.0, samples=4000)
    assert len(set(scenario.tokens.flatten().tolist())) == 60
    assert set(scenario.tokens[0].tolist()) != set(range(1, 21))
    for e, experience in enumerate(scenario.train_stream):
        rank = {int(token): x for x, token in enumerate(scenario.tokens[e], 1)}
        x, y = experience.dataset.x[:, 0].tolist(), experience.dataset.y[:, 0].tolist()
        assert [rank[token] % 4 for token in x] == y
        counts = torch.bincount(torch.tensor([rank[token] for token in x]), minlength=21)[1:]
        assert chisquare(counts, 4000 * power_law(20, 1.0)).pvalue > 0.001
        frequent, rare = (scenario.slices[name][e].dataset.y[:, 0] != -100 for name in ("frequent", "rare"))
        assert (frequent ^ rare).all()
        assert [rank[token] <= 2 for token in scenario.test_stream[e].dataset.x[:, 0].tolist()] == frequent.tolist()


def test_nonsense_is_refused() -> None:
    with pytest.raises(UsageError) as error:
        build("assoc-memory-scaling", experiences=0, inputs=5, outputs=6, exponent=-1.0)
    words = ("experiences=0", "inputs=5", "exponent=-1", "6 outputs")
    assert all(word in str(error.value) for word in words)
