"""Formal languages against automata and Python's own arithmetic."""

from __future__ import annotations

import functools
import itertools

import pytest

import clplat
from clplat import optim
from clplat.backbones.rnn.gru import GRU
from clplat.errors import UsageError
from clplat.scenarios.languages import LANGUAGES, FormalLanguages
from clplat.settings import TrainerSettings
from tests.scenarios.streams import build


def answer(language: str, symbols: list[int]) -> int:
    """By definition, from the tokens of a string."""
    if language == "even-pairs":
        return sum(a != b for a, b in itertools.pairwise(symbols)) % 2
    if language == "parity":
        return symbols.count(2) % 2
    if language == "cycle-navigation":
        place = 0
        for move in symbols:
            place = (place + {1: 0, 2: 1, 3: -1}[move]) % 5
        return place
    text = "".join(str(token - 1) if token <= 5 else {6: "+", 7: "-", 8: "*"}[token] for token in symbols)
    return int(eval(text)) % 5


@pytest.mark.parametrize("setting", ["domain", "task"])
def test_each_language_has_its_own_answers(setting: str) -> None:
    scenario = FormalLanguages(1, setting=setting, samples=300, test_samples=300)
    for stream, (low, high) in {"train": (3, 20), "test": (21, 40)}.items():
        for e, experience in enumerate(getattr(scenario, f"{stream}_stream")):
            language = list(LANGUAGES)[e]
            assert experience.task_label == (e if setting == "task" else 0)
            lengths = set()
            for x, y in zip(experience.dataset.x.tolist(), experience.dataset.y.tolist(), strict=True):
                symbols = [token for token in x[1:] if token]
                assert x == [9 + (e if setting == "domain" else 0), *symbols, *[0] * (40 - len(symbols))]
                assert y == [-100] * len(symbols) + [answer(language, symbols)] + [-100] * (40 - len(symbols))
                lengths.add(len(symbols))
            wanted = set(range(low, high + 1))
            if language == "modular-arithmetic":
                wanted = {length - (length % 2 == 0) for length in wanted}
            assert lengths == wanted


@pytest.mark.parametrize("language", list(LANGUAGES))
def test_strings_grow_and_stay_apart_from_those_of_the_test(language: str) -> None:
    scenario = FormalLanguages(
        0, stream="length", language=language, experiences=3, longest=8, test_shortest=3, test_longest=8, samples=400
    )
    longest = [int((e.dataset.x[:, 1:] > 0).sum(1).max()) for e in scenario.train_stream]
    assert longest == ([3, 5, 7] if language == "modular-arithmetic" else [4, 6, 8])
    train = {tuple(x) for e in scenario.train_stream for x in e.dataset.x.tolist()}
    test = {tuple(x) for e in scenario.test_stream for x in e.dataset.x.tolist()}
    assert not train & test
    for experience in (*scenario.train_stream, *scenario.test_stream):
        for x, y in zip(experience.dataset.x.tolist(), experience.dataset.y.tolist(), strict=True):
            assert max(y) == answer(language, [token for token in x[1:] if token])


@pytest.mark.slow
def test_a_recurrent_network_counts_parity_beyond_the_lengths_it_was_trained_on() -> None:
    scenario = FormalLanguages(
        0, stream="length", experiences=3, longest=12, test_shortest=13, test_longest=20, samples=1500, test_samples=300
    )
    result = clplat.fit(
        "naive",
        scenario,
        lambda D: GRU(D, hidden=64),
        optimizer=functools.partial(optim.adam, lr=5e-3),
        trainer=TrainerSettings(max_epochs=6, batch_size=64, progress="none", accelerator="cpu"),
    )
    assert result["matrix"][2][2] > 0.9


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"experiences": 5, "shortest": 2}, ["experiences=5", "shortest=2"]),
        ({"longest": 2, "test_longest": 20}, ["longest=2", "test_longest=20"]),
    ],
)
def test_nonsense_is_refused(options: dict[str, object], words: list[str]) -> None:
    with pytest.raises(UsageError) as error:
        build("formal-languages", **options)
    assert all(word in str(error.value) for word in words)
