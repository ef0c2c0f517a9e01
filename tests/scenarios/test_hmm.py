"""Hidden Markov models of given topology, against their matrices and against the Bayes filter."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from clplat.backbones.rnn.gru import GRU
from clplat.errors import UsageError
from clplat.metrics import predictors
from clplat.scenarios.hmm import HMMEmission, model, statistics
from tests.scenarios.training import trained


def expected(start: Tensor, moves: Tensor, emits: Tensor) -> dict[str, Tensor]:
    """Statistics of a stationary model: sums over states written out."""
    M = len(start)
    frequency, pairs = torch.zeros(3).double(), torch.zeros(3, 3).double()
    for i in range(M):
        for a in range(3):
            frequency[a] += start[i] * emits[i, a]
            for j in range(M):
                for b in range(3):
                    pairs[a, b] += start[i] * emits[i, a] * moves[i, j] * emits[j, b]
    return {
        "frequency": frequency,
        "transition": pairs / pairs.sum(1, keepdim=True),
        "volatility": 1 - pairs.trace(),
    }


def test_matrices_are_those_of_the_paper() -> None:
    _, moves, emits = model("chain", 3, 0.95)
    q = 0.05**0.5
    assert torch.allclose(moves, torch.tensor([[1 - q, q, 0], [q, 1 - 2 * q, q], [0, q, 1 - q]]).double())
    assert torch.allclose(emits, torch.tensor([[0.99, 0.01, 0], [0.495, 0.01, 0.495], [0, 0.01, 0.99]]).double())
    _, moves, emits = model("full", 3, 0.95)
    assert torch.allclose(moves, torch.full((3, 3), 0.025).fill_diagonal_(0.95).double())
    assert torch.allclose(emits, torch.full((3, 3), 0.01).fill_diagonal_(0.98).double())
    _, moves, _ = model("cyclic", 4, 0.95)
    assert moves[0].tolist() == pytest.approx([0.95, 0.025, 0, 0.025])
    for kind in ("chain", "full", "cyclic"):
        for M in (2, 3, 5):
            start, moves, emits = model(kind, M, 0.95)
            for matrix in (start[None], moves, emits):
                assert torch.allclose(matrix.sum(1), torch.ones(len(matrix)).double())
                assert (matrix >= 0).all()
            assert torch.allclose(start @ moves, start)  # begun where it stays


@pytest.mark.parametrize("stream", ["topology", "states"])
def test_sequences_have_the_models_statistics(stream: str) -> None:
    scenario = HMMEmission(1, stream=stream, samples=4000, test_samples=10)
    for e, experience in enumerate(scenario.train_stream):
        assert len(scenario.models[e][0]) == (2 + e if stream == "states" else 4)
        x, y = experience.dataset.x, experience.dataset.y
        assert torch.equal(x[:, 1:], y[:, :-1] + 1)
        found, wanted = statistics(y), expected(*scenario.models[e])
        for name, value in wanted.items():
            assert (found[name] - value).abs().max() < 0.03, name


@pytest.mark.slow
def test_a_network_predicts_nearly_as_well_as_the_filter() -> None:
    """Measured: filter 0.379 bits, network 0.382, symbol frequencies alone 1.06."""
    scenario = HMMEmission(0, experiences=1, states=2, samples=2048, test_samples=1024)
    y = scenario.test_stream[0].dataset.y
    best = -predictors.hidden_markov(y, *scenario.models[0]).gather(2, y[..., None]).mean().item() / math.log(2)
    share = statistics(y)["frequency"]
    alone = -(share * share.log2()).sum().item()
    found = trained(scenario, lambda D: GRU(D, hidden=24), epochs=6).last[0]
    assert best - 0.01 < found < best + 0.03 < alone - 0.3


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"states": 1, "stay": 1.5}, ["states=1", "stay=1.5"]),
        ({"states": 6}, ["stay=0.95", "6 states", "1.10"]),
        ({"experiences": 0, "length": 0, "samples": 0, "test_samples": 0}, ["experiences=0", "length=0", "samples=0"]),
    ],
)
def test_nonsense_is_refused(options: dict, words: list[str]) -> None:
    with pytest.raises(UsageError) as error:
        HMMEmission(0, **options)
    assert all(word in str(error.value) for word in words)
