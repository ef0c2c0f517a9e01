"""Repeat surprisal of models that are known, and of a small network that has learned to repeat."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from clplat.backbones.attention.transformer import Transformer
from clplat.backbones.rnn.lstm import LSTM
from clplat.errors import UsageError
from clplat.metrics.probes import base
from clplat.metrics.probes.verbatim_recall import VerbatimRecall, interval, repeat_surprisal, stimuli, surprisal
from clplat.probing import make
from clplat.scenario import Scenario
from tests.metrics.probes.streams import language, made, source

V = 40


def stream() -> Scenario:
    tokens = torch.randint(1, V, (60, 33), generator=source(0))
    return language(tokens, tokens, V)


def copier(x: Tensor, task: Tensor) -> Tensor:
    """Says what followed the last time that this token came, else anything."""
    logits = torch.zeros(*x.shape, V)
    for b, row in enumerate(x.tolist()):
        for t, token in enumerate(row):
            before = [s for s in range(t) if row[s] == token]
            if before:
                logits[b, t, row[before[-1] + 1]] = 30.0
    return logits


def unigram(x: Tensor, task: Tensor) -> Tensor:
    return torch.arange(V, dtype=torch.float32).expand(*x.shape, V) / 20


def test_a_copier_is_surprised_by_what_is_new_only(monkeypatch: pytest.MonkeyPatch) -> None:
    scenario = stream()
    learner = made(scenario, lambda D: Transformer(D, dim=8, layers=1, heads=1))
    # no filler: then a token has come before in the list, if at all
    probe = make("verbatim-recall", sizes=(3, 7), delays=(0,), prefix=0, trials=20)
    monkeypatch.setattr(learner, "answer", copier)
    found = base.take(probe, learner, scenario)
    assert found["repeat_after_first"] < 1
    assert found["repeat"] < 1  # the cue says where to begin
    assert found["control"] > 100
    assert found["permute"] > 50
    monkeypatch.setattr(learner, "answer", unigram)
    found = base.take(make("verbatim-recall", trials=60), learner, scenario)
    assert found["repeat"] == pytest.approx(100, abs=1e-6)
    assert found["permute"] == pytest.approx(100, abs=1e-6)
    assert found["control"] == pytest.approx(100, abs=10)
    assert len(found["by_condition"]["repeat"]) == 12
    assert len(probe.figure(found)["data"]) == 3


def test_surprisal_is_bits_of_the_token_that_came() -> None:
    logits = torch.randn(2, 5, 7, generator=source(1), dtype=torch.float64)
    x = torch.randint(0, 7, (2, 5), generator=source(2))
    found = surprisal(logits, x)
    assert found[:, 0].isnan().all()
    for b in range(2):
        for t in range(1, 5):
            total = sum(math.exp(v) for v in logits[b, t - 1].tolist())
            p = math.exp(float(logits[b, t - 1, x[b, t]])) / total
            assert float(found[b, t]) == pytest.approx(-math.log2(p))
    ratio = repeat_surprisal(torch.tensor([[2.0, 4.0]]), torch.tensor([[1.0, 2.0]]))
    assert ratio.tolist() == [50.0]


def test_stimuli_are_put_together_in_order() -> None:
    prefix, cue, words, filler, other = (torch.tensor([row]) for row in ([1], [2, 3], [4, 5, 6], [7], [8, 9, 10]))
    expected = {"repeat": [4, 5, 6], "permute": [6, 4, 5], "control": [8, 9, 10]}
    for condition, again in expected.items():
        made_ = stimuli(condition, prefix, cue, words, filler, other)
        assert made_.x.tolist() == [[1, 2, 3, 4, 5, 6, 7, 2, 3, *again]]
        assert made_.x[0, made_.first].tolist() == [4, 5, 6]
        assert made_.x[0, made_.second].tolist() == again


@pytest.mark.parametrize("filler", ["stream", "scrambled", "random"])
def test_lists_have_different_tokens_and_fillers_come_from_where_they_should(filler: str) -> None:
    probe = VerbatimRecall(filler=filler, trials=30)  # type: ignore[arg-type]
    scenario = stream()
    learner = made(scenario, lambda D: Transformer(D, dim=8, layers=1, heads=1))
    text = scenario.test_stream[0].dataset.x.flatten()
    prefix, cue, words, passage, other = probe._draw(learner, probe._pool(scenario), text, 5, 9)
    for row, new in zip(words.tolist(), other.tolist(), strict=True):
        assert len({*row, *new}) == 10
        assert 0 not in row
    windows = {tuple(text[i : i + 13].tolist()) for i in range(len(text) - 12)}
    whole = [tuple(row) for row in torch.cat([prefix, passage], 1).tolist()]
    assert all(row in windows for row in whole) == (filler == "stream")
    if filler == "scrambled":
        assert all(tuple(sorted(row)) in {tuple(sorted(w)) for w in windows} for row in whole)
    assert len(cue.unique(dim=0)) == 1


def test_intervals_cover_the_median() -> None:
    values = torch.randn(200, generator=source(3), dtype=torch.float64) + 5
    median, low, high = interval(values, source(4))
    assert low < median < high
    assert low > 4.7
    assert high < 5.3


@pytest.mark.slow
def test_attention_that_has_learned_to_repeat_is_less_surprised_than_an_lstm() -> None:
    """Sequences whose second half is the first: after them a list with a gap is remembered by attention."""
    n = 4096
    half = torch.rand(n, V - 1, generator=source(5)).argsort(1)[:, :16] + 1
    tokens = torch.cat([half, half, half[:, :1]], 1)
    scenario = language(tokens[:-64], tokens[-64:], V)
    options = {"sizes": (5,), "delays": (10,), "prefix": 0, "filler": "random"}
    shares = {}
    for name, backbone in {
        "attention": lambda D: Transformer(D, dim=32, layers=2, heads=2, mlp="none", conv=2),
        "lstm": lambda D: LSTM(D, hidden=32),
    }.items():
        learner = made(scenario, backbone, epochs=6, lr=5e-3)
        shares[name] = base.take(make("verbatim-recall", **options), learner, scenario)
    assert shares["attention"]["repeat_after_first"] < shares["lstm"]["repeat_after_first"] - 20
    assert shares["attention"]["repeat_after_first"] < shares["attention"]["control_after_first"] - 20


def test_what_it_refuses() -> None:
    with pytest.raises(UsageError) as error:
        VerbatimRecall(sizes=(1,), delays=(-1,), trials=1)
    assert len(error.value.messages) == 3
    scenario = stream()
    learner = made(scenario, lambda D: Transformer(D, dim=8, layers=1, heads=1))
    with pytest.raises(UsageError, match="39 tokens of the 60 needed"):
        base.take(make("verbatim-recall", sizes=(30,)), learner, scenario)
    other = stream()
    other.test_stream[0].dataset.y = torch.full_like(other.test_stream[0].dataset.y, 3)
    with pytest.raises(UsageError, match="target is the next token"):
        base.take(make("verbatim-recall"), made(other, lambda D: LSTM(D, hidden=4)), other)
