"""Bigrams and triggers: read back from sequences, from a text's counts, and learnt in the order that is known."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from pathlib import Path

import pytest
import torch

from clplat.errors import MissingError, UsageError
from clplat.scenarios.bigrams import BigramTrigger


@pytest.mark.parametrize("stream", ["triggers", "language"])
def test_triggers_are_followed_by_one_token_in_a_sequence_and_others_by_the_bigram(stream: str) -> None:
    scenario = BigramTrigger(1, stream=stream, samples=1500, test_samples=300)
    for e, experience in enumerate(scenario.train_stream):
        own = {1, 2} if stream == "language" or e == 0 else {3, 4}
        outputs: Counter[int] = Counter()
        pairs = torch.zeros(33, 32)
        for x, y in zip(experience.dataset.x.tolist(), experience.dataset.y.tolist(), strict=True):
            assert x[1:] == [token + 1 for token in y[:-1]]
            says = {}
            for token, coming in zip(x, y, strict=True):
                if token in own:
                    assert says.setdefault(token, coming) == coming
                else:
                    pairs[token, coming] += 1
            outputs.update(says.values())
        assert set(outputs) == set(range(28))  # alike likely, and none that is held out
        assert max(outputs.values()) < 2 * min(outputs.values())
        unigram, bigram = scenario.languages[e]
        rows = pairs.sum(1) > 1000
        share = pairs[rows] / pairs[rows].sum(1, keepdim=True)
        assert rows.sum() > 5
        assert (share - bigram[rows[1:]]).abs().max() < 0.06
        assert torch.allclose(unigram @ bigram, unigram, atol=1e-6)
        assert (unigram.diff() <= 0).all()


def test_slices_ask_behind_known_triggers_and_behind_none() -> None:
    scenario = BigramTrigger(0, experiences=1, samples=8, test_samples=60)
    data = scenario.test_stream[0].dataset
    again, free, novel = (scenario.slices[name][0].dataset for name in ("in-context", "global", "novel"))
    for n, x in enumerate(data.x.tolist()):
        for t, token in enumerate(x):
            trigger, known = token in (1, 2), token in x[:t]
            assert (again.y[n, t] >= 0) == (trigger and known)
            assert (free.y[n, t] >= 0) == (not trigger)
    assert torch.equal(again.x, data.x)
    assert set(novel.y[novel.y >= 0].tolist()) == {28, 29, 30, 31}
    for x, y in zip(novel.x.tolist(), novel.y.tolist(), strict=True):
        for t, coming in enumerate(y):  # what is asked is what came behind the trigger the first time
            if coming >= 0:
                assert x[x.index(x[t]) + 1] == coming + 1


def test_triggers_can_be_drawn_anew() -> None:
    scenario = BigramTrigger(0, stream="random", samples=400, test_samples=200)
    asked = scenario.slices["in-context"][0].dataset
    tokens = {int(token) for x, y in zip(asked.x, asked.y, strict=True) for token in x[y >= 0].unique()}
    assert len(tokens) > 10
    assert all(len(x[y >= 0].unique()) <= 2 for x, y in zip(asked.x, asked.y, strict=True))


def test_a_texts_own_bigrams_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    text = "abracadabra " * 20 + "zebra"
    path.write_text(text)
    scenario = BigramTrigger(0, text=str(path), tokens=6, triggers=1, held_out=1, experiences=1, samples=9)
    unigram, bigram = scenario.languages[0]
    letters = [letter for letter, _ in Counter(text).most_common(6)]
    kept = [letter for letter in text if letter in letters]
    assert unigram.tolist() == pytest.approx([kept.count(letter) / len(kept) for letter in letters])
    pairs = Counter(itertools.pairwise(kept))
    for i, a in enumerate(letters):
        whole = sum(n for (first, _), n in pairs.items() if first == a)
        assert bigram[i].tolist() == pytest.approx([pairs[a, b] / whole for b in letters])
    with pytest.raises(UsageError, match="only 8 different characters"):
        BigramTrigger(0, text=str(path))
    with pytest.raises(MissingError, match="nowhere"):
        BigramTrigger(0, text=str(tmp_path / "nowhere"))


def test_a_planted_induction_head_knows_the_outputs_from_their_second_occurrence_on() -> None:
    """Copying what came behind the last occurrence is right on every known trigger, whatever its output, and is no
    better than the bigram elsewhere."""
    scenario = BigramTrigger(0, experiences=1, samples=8, test_samples=200)
    bigram = scenario.languages[0][1]
    for name in ("in-context", "novel"):
        data = scenario.slices[name][0].dataset
        same = (data.x[:, :, None] == data.x[:, None, :]) & torch.ones(64, 64).tril(-1).bool()
        last = torch.where(same, torch.arange(64), -1).amax(2)
        copied = data.x.gather(1, (last + 1).clamp(max=63)) - 1
        asked = data.y >= 0
        assert (copied == data.y)[asked].all()
        known = bigram[(data.x - 1)[asked], data.y[asked]]
        assert -known.log().mean() > math.log(8)  # the language does not tell


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tokens": 4}, ["tokens=4", "need 6"]),
        ({"concentration": 0, "text": "a", "stream": "language"}, ["concentration=0", "one language"]),
        ({"experiences": 0, "triggers": 0, "length": 1, "held_out": 0}, ["experiences=0", "triggers=0", "length=1"]),
        ({"samples": 0, "test_samples": 0}, ["samples=0", "test_samples=0"]),
    ],
)
def test_nonsense_is_refused(options: dict, words: list[str]) -> None:
    with pytest.raises(UsageError) as error:
        BigramTrigger(0, **options)
    assert all(word in str(error.value) for word in words)
