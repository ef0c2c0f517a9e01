"""Exact predictors against mixtures written out, and what is measured by them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from clplat.metrics import in_context, predictors

X = torch.randint(0, 2, (5, 8), generator=torch.Generator().manual_seed(0))


def kt(symbols: list[int], A: int = 2) -> float:
    """The probability of a whole segment under KT, symbol by symbol."""
    p = 1.0
    for i, symbol in enumerate(symbols):
        p *= (symbols[:i].count(symbol) + 0.5) / (i + A / 2)
    return p


def chain(log_q_NTA: Tensor, x_NT: Tensor) -> list[float]:
    """Probability of each whole sequence: the product of the predictions of its symbols."""
    return log_q_NTA.gather(2, x_NT[..., None]).sum((1, 2)).exp().tolist()


def partitions(start: int, depth: int) -> Iterator[tuple[float, list[tuple[int, int]]]]:
    """All binary temporal partitions of a block with their prior weight; single symbols cannot be cut."""
    stop = start + 2**depth
    yield (0.5 if depth else 1.0), [(start, stop)]
    if depth:
        middle = start + 2 ** (depth - 1)
        for (a, first), (b, second) in itertools.product(partitions(start, depth - 1), partitions(middle, depth - 1)):
            yield 0.5 * a * b, first + second


@pytest.mark.parametrize("n", [1, 5, 8])
def test_ptw_is_the_mixture_over_all_binary_temporal_partitions(n: int) -> None:
    x = X[:, :n]
    weights = list(partitions(0, 3))
    assert sum(weight for weight, _ in weights) == pytest.approx(1)
    for row, found in zip(x.tolist(), chain(predictors.ptw(x, depth=3), x), strict=True):
        wanted = sum(weight * math.prod(kt(row[a:b]) for a, b in parts) for weight, parts in weights)
        assert found == pytest.approx(wanted, abs=1e-12, rel=1e-9)


def test_lin_is_the_mixture_over_all_partitions() -> None:
    for row, found in zip(X.tolist(), chain(predictors.lin(X), X), strict=True):
        wanted = 0.0
        for cuts in itertools.product([False, True], repeat=7):
            weight, begun = 1.0, 0
            segments = []
            for t, cut in enumerate(cuts, 1):
                weight *= 0.5 / (t - begun) if cut else 1 - 0.5 / (t - begun)
                if cut:
                    segments.append(row[begun:t])
                    begun = t
            wanted += weight * math.prod(kt(segment) for segment in [*segments, row[begun:]])
        assert found == pytest.approx(wanted, abs=1e-12, rel=1e-9)


@pytest.mark.parametrize("predict", [predictors.kt, predictors.ptw, predictors.lin])
def test_predictions_are_distributions_and_never_look_ahead(predict: Callable[[Tensor, int], Tensor]) -> None:
    x = torch.randint(0, 3, (4, 13), generator=torch.Generator().manual_seed(1))
    log_q = predict(x, 3)
    assert torch.allclose(log_q.exp().sum(-1), torch.ones(4, 13, dtype=torch.float64), atol=1e-12)
    changed = x.clone()
    changed[:, 6:] = (x[:, 6:] + 1) % 3
    assert torch.equal(predict(changed, 3)[:, :7], log_q[:, :7])
    assert not torch.equal(predict(changed, 3)[:, 7:], log_q[:, 7:])


def test_a_tree_that_is_too_small_is_refused() -> None:
    with pytest.raises(ValueError, match="covers 4 symbols"):
        predictors.ptw(X, depth=2)


def test_dirichlet_is_laplaces_rule_with_ones() -> None:
    found = predictors.dirichlet(torch.tensor([[1, 1, 0]]), torch.ones(2)).exp()[0, :, 1]
    assert found.tolist() == pytest.approx([1 / 2, 2 / 3, 3 / 4])


def test_a_level_is_estimated_as_by_the_posterior_written_out() -> None:
    x = torch.tensor([[1.0, 3.0, -2.0]])
    mean, precision = 0.5, 1 / 4.0
    wanted = []
    for value in x[0].tolist():  # one Kalman update for each observation
        wanted.append(mean)
        mean = (precision * mean + value / 0.25) / (precision + 1 / 0.25)
        precision += 1 / 0.25
    assert predictors.gaussian_mean(x, 0.5, 2.0, 0.5)[0].tolist() == pytest.approx(wanted)


def test_the_filter_is_the_sum_over_all_paths_of_states() -> None:
    start, A = torch.tensor([0.3, 0.7]), torch.tensor([[0.9, 0.1], [0.25, 0.75]])
    B = torch.tensor([[0.5, 0.5, 0.0], [0.1, 0.2, 0.7]])
    x = torch.tensor([[0, 2, 1, 1], [1, 1, 0, 2]])
    for row, found in zip(x.tolist(), chain(predictors.hidden_markov(x, start, A, B), x), strict=True):
        wanted = 0.0
        for path in itertools.product([0, 1], repeat=4):
            p = float(start[path[0]])
            for t, state in enumerate(path):
                p *= float(B[state, row[t]]) * (float(A[path[t - 1], state]) if t else 1.0)
            wanted += p
        assert found == pytest.approx(wanted, rel=1e-6)


def test_regret_is_counted_in_bits_on_what_came() -> None:
    log_p = torch.tensor([[[0.5, 0.5], [0.25, 0.75]]]).log()
    log_q = torch.tensor([[[0.25, 0.75], [0.5, 0.5]]]).log()
    found = in_context.regret(log_q, log_p, torch.tensor([[0, -100]]))
    assert found[0, 0].item() == pytest.approx(1.0)
    assert found[0, 1].isnan()
    kl = in_context.divergence(log_q, log_p)[0]
    assert kl[0].item() == pytest.approx(0.5 * math.log(2) + 0.5 * math.log(0.5 / 0.75))
    assert in_context.total_variation(log_q, log_p)[0].tolist() == pytest.approx([0.25, 0.25])


def test_distances_are_counted_from_the_last_change() -> None:
    values = torch.tensor([[1.0, 2, 3, 4], [5, torch.nan, 7, 8]])
    change = torch.tensor([[True, False, True, False], [False, True, False, False]])
    found = in_context.since_change(values, change).tolist()
    assert found[:3] == pytest.approx([(1 + 3) / 2, (2 + 4 + 7) / 3, 8])
    assert math.isnan(found[3])
    assert in_context.by_step(values).tolist() == [3, 2, 5, 6]


def test_answers_can_be_confined_and_any_legal_one_counted() -> None:
    logits = torch.tensor([[[3.0, 2, 1], [0, 1, 2]]])
    y = torch.tensor([[1, 2]])
    assert in_context.accuracy(logits, y) == 0.5
    assert in_context.accuracy(logits, y, torch.tensor([False, True, True])) == 1.0
    legal = torch.tensor([[[True, True, False], [False, False, False]]])
    assert in_context.validity(logits, legal) == 1.0
    assert in_context.validity(logits, legal.flip(-1)) == 0.0


@pytest.mark.parametrize("n", [1, 2, 3])
def test_ngrams_count_the_context_and_back_off(n: int) -> None:
    x = torch.randint(0, 3, (4, 12), generator=torch.Generator().manual_seed(3))
    found = in_context.ngram(x, 3, n)
    for row, p in zip(x.tolist(), found.tolist(), strict=True):
        for t in range(12):
            wanted = [1 / 3] * 3
            for order in range(n):  # the longest context that has occurred decides
                last = row[t + 1 - order : t + 1]
                ends = [s for s in range(order - 1 if order else 0, t) if row[s + 1 - order : s + 1] == last]
                if len(last) == order and ends:
                    wanted = [sum(row[s + 1] == token for s in ends) / len(ends) for token in range(3)]
            assert p[t] == pytest.approx(wanted)
