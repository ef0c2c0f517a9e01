"""The generalised discrimination value, against its formula one pair at a time."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from clplat.backbones.rnn.lstm import LSTM
from clplat.metrics.probes.gdv import gdv, hidden_vectors, scaling
from tests.metrics.probes.streams import language, made, source


def slow(x: Tensor, labels: Tensor) -> float:
    rows = x.tolist()
    N, D = x.shape
    mean = [sum(row[d] for row in rows) / N for d in range(D)]
    std = [math.sqrt(sum((row[d] - mean[d]) ** 2 for row in rows) / N) for d in range(D)]
    s = [[0.5 * (row[d] - mean[d]) / std[d] for d in range(D)] for row in rows]
    classes = sorted(set(labels.tolist()))
    groups = [[row for row, own in zip(s, labels.tolist(), strict=True) if own == c] for c in classes]
    within = [
        sum(math.dist(a, b) for a, b in itertools.combinations(g, 2)) * 2 / (len(g) * (len(g) - 1)) for g in groups
    ]
    between = [
        sum(math.dist(a, b) for a in g for b in h) / len(g) / len(h) for g, h in itertools.combinations(groups, 2)
    ]
    return (sum(within) / len(within) - sum(between) / len(between)) / math.sqrt(D)


def cloud(seed: int, n: int = 40, dims: int = 5, classes: int = 3) -> tuple[Tensor, Tensor]:
    source = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % classes
    return torch.randn(n, dims, generator=source, dtype=torch.float64) + labels[:, None], labels


@pytest.mark.parametrize("seed", range(3))
def test_it_is_the_formula(seed: int) -> None:
    x, labels = cloud(seed)
    assert gdv(x, labels) == pytest.approx(slow(x, labels), rel=1e-10)


def test_two_tight_clusters_are_near_minus_one_and_random_labels_near_zero() -> None:
    x, labels = cloud(0, n=60, dims=4, classes=2)
    tight = 1e-3 * x + 100.0 * labels[:, None]
    assert gdv(tight, labels) == pytest.approx(-1, abs=1e-3)
    x = torch.randn(400, 8, generator=torch.Generator().manual_seed(1))
    shuffled = torch.randint(4, (400,), generator=torch.Generator().manual_seed(2))
    assert abs(gdv(x, shuffled)) < 0.02


def test_what_it_does_not_depend_on() -> None:
    x, labels = cloud(4)
    value = gdv(x, labels)
    order = torch.randperm(5, generator=torch.Generator().manual_seed(0))
    for other in (3 * x + 5, x[:, order], torch.cat([x, x], 1), torch.cat([x, torch.full((40, 2), 7.0)], 1)):
        assert gdv(other, labels) == pytest.approx(value, abs=1e-6)


def grammar(sentences: int, words: int, seed: int) -> Tensor:
    """Determiner, perhaps an adjective, noun, verb, and again; six words each, w of class (w - 1) // 6."""
    following = {0: (1, 2), 1: (2, 2), 2: (3, 3), 3: (0, 0)}
    generator = source(seed)
    coin = torch.randint(2, (sentences, words), generator=generator).tolist()
    word = torch.randint(6, (sentences, words), generator=generator)
    rows = []
    for k, coins in zip(torch.randint(4, (sentences,), generator=generator).tolist(), coin, strict=True):
        row = []
        for side in coins:
            row.append(k)
            k = following[k][side]
        rows.append(row)
    return 1 + 6 * torch.tensor(rows) + word


def test_training_on_next_words_makes_clusters_of_word_classes() -> None:
    """Nobody tells the network that there are classes of words."""
    scenario = language(grammar(512, 17, 0), grammar(24, 17, 1), 25)
    found = {}
    for epochs in (0, 4):
        learner = made(scenario, lambda D: LSTM(D, hidden=32), epochs=epochs, lr=5e-3)
        with learner.evaluating():
            layers, word = hidden_vectors(learner, scenario.test_stream[0].dataset)
        found[epochs] = gdv(layers[-1], (word - 1) // 6)
    assert found[0] > -0.1
    assert found[4] < -0.3


def test_what_is_not_defined() -> None:
    x, labels = cloud(5)
    assert math.isnan(gdv(x, torch.zeros_like(labels)))
    assert math.isnan(gdv(torch.ones_like(x), labels))
    alone = labels.clone()
    alone[0] = 9  # a class of one sample counts for nothing but the scale
    assert math.isfinite(gdv(x, alone))


def test_the_map_keeps_distances_where_two_dimensions_are_enough() -> None:
    source = torch.Generator().manual_seed(3)
    flat = torch.randn(20, 2, generator=source, dtype=torch.float64) @ torch.randn(2, 6, generator=source).double()
    torch.testing.assert_close(torch.cdist(scaling(flat), scaling(flat)), torch.cdist(flat, flat), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(scaling(flat + 3), scaling(flat))
