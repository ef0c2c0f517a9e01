"""The MAD suite against its definitions, told anew by plain loops over tokens."""

from __future__ import annotations

import functools

import pytest
import torch

import clplat
from clplat import optim
from clplat.backbones.rnn.gru import GRU
from clplat.errors import UsageError
from clplat.scenario import Scenario
from clplat.scenarios.generated import BLANK, held_out
from clplat.scenarios.mad import MADCompression, MADMemorize, MADSelectiveCopy
from clplat.scenarios.mad_recall import MADRecall
from clplat.settings import TrainerSettings
from tests.scenarios.streams import build


def rows(scenario: Scenario, stream: str, e: int) -> list[tuple[list[int], list[int]]]:
    data = getattr(scenario, f"{stream}_stream")[e].dataset
    return list(zip(data.x.tolist(), data.y.tolist(), strict=True))


def expected(x: list[int], keys: range, values: range) -> tuple[list[int], list[tuple[int, ...]]]:
    """Labels of a recall stream, and its keys in order: runs of key tokens, each with one of value tokens behind it."""
    labels, known, order = [-100] * len(x), {}, []
    t = 0
    while t < len(x):
        if x[t] not in keys:
            t += 1
            continue
        start = t
        while x[t] in keys:
            t += 1
        key, start = tuple(x[start:t]), t
        while t < len(x) and x[t] in values:
            t += 1
        value = x[start:t]
        if key in known:
            assert known[key] == value
            labels[start - 1 : t - 1] = value
        known[key] = value
        order.append(key)
    return labels, order


@pytest.mark.parametrize("stream", ["same", "disjoint", "length", "noise", "motif"])
@pytest.mark.parametrize("motif", [1, 3])
def test_values_of_known_keys_are_asked_and_nothing_else(stream: str, motif: int) -> None:
    noise = 0.5 if stream == "noise" else 0.0
    scenario = MADRecall(1, stream=stream, motif=motif, noise=noise, length=54, samples=150, test_samples=50)
    for name in ("train", "test"):
        for e in range(3):
            first = 1 + (16 * e if stream == "disjoint" else 0)
            keys, values = range(first, first + 8), range(first + 8, first + 16)
            longest = e + 1 if stream == "motif" and motif == 3 else motif
            for x, y in rows(scenario, name, e):
                labels, order = expected(x, keys, values)
                assert y == labels
                assert order[-1] in order[:-1]  # the last pair is a repetition
                lengths = {len(key) for key in order}
                assert lengths <= ({longest} if name == "test" else set(range(1, longest + 1)))
                assert all(len(set(key)) == len(key) for key in order)
                others = set(x) - {BLANK, *keys, *values}
                assert not others or (stream == "noise" and others <= set(range(17, 33)))
                ends = {"length": [18, 36, 54][e]}.get(stream, 54)
                assert not any(x[: 54 - ends])
                assert x.count(BLANK) - (54 - ends) <= (4 * longest - 3 if longest > 1 else 0)


def test_noise_is_as_frequent_as_asked_and_grows() -> None:
    scenario = build("mad-noisy-recall", length=128, samples=400)
    shares = [float((e.dataset.x >= 17).float().mean()) for e in scenario.train_stream]
    assert all(abs(found - asked) < 0.03 for found, asked in zip(shares, (0.2, 0.4, 0.6), strict=True))


def test_keys_and_values_are_even_and_each_sequence_has_its_own_map() -> None:
    x = MADRecall(0, experiences=1, length=64, samples=2000).train_stream[0].dataset.x
    for tokens in (x[:, 0::2], x[:, 1::2]):
        counts = torch.bincount(tokens.flatten())[tokens.min() :]
        assert len(counts) == 8
        assert (counts / counts.sum() - 1 / 8).abs().max() < 0.01
    pairs = {(int(key), int(value)) for key, value in x[:, :2]}
    assert len(pairs) == 64


def test_training_may_ask_every_next_token() -> None:
    scenario = MADRecall(0, asked="all", samples=50, test_samples=10, motif=3, length=40)
    for x, y in rows(scenario, "train", 0):
        first = next(t for t, token in enumerate(x) if token != BLANK)
        assert y == [-100] * first + x[first + 1 :] + [-100]
    assert (scenario.test_stream[0].dataset.y >= 0).float().mean() < 0.5


@pytest.mark.parametrize("stream", ["same", "disjoint", "length", "tokens"])
def test_selective_copy_says_the_content_in_order(stream: str) -> None:
    scenario = MADSelectiveCopy(2, stream=stream, copied=6, length=42, samples=200, test_samples=40)
    for e in range(3):
        many = [2, 4, 6][e] if stream == "tokens" else 6
        first = 2 + (14 * e if stream == "disjoint" else 0)
        places = torch.zeros(42)
        for x, y in rows(scenario, "train", e):
            content = [token for token in x if token > 1]
            assert len(content) == many
            assert set(content) <= set(range(first, first + 14))
            assert x.index(1) == 42 - many - 1
            assert x[-many:] == [BLANK] * many
            assert y == [-100] * (42 - many) + content
            places[[t for t, token in enumerate(x) if token > 1]] += 1
        used = places.nonzero()[:, 0]
        assert int(used.min()) == (42 - [14, 28, 42][e] if stream == "length" else 0)
        assert int(used.max()) == 42 - many - 2


@pytest.mark.parametrize("stream", ["same", "disjoint", "length"])
def test_compression_asks_each_bit_of_each_token_at_the_end(stream: str) -> None:
    scenario = MADCompression(3, stream=stream, vocabulary=8, length=12, samples=100, test_samples=20)
    for e in range(3):
        first = 2 + (8 * e if stream == "disjoint" else 0)
        for x, y in rows(scenario, "train", e):
            assert x[-1] == 1
            assert all(label == -100 for step in y[:-1] for label in step)
            answer = [y[-1][3 * t : 3 * t + 3] for t in range(11)]
            blanks = [8, 4, 0][e] if stream == "length" else 0
            assert x[:blanks] == [BLANK] * blanks
            assert answer[:blanks] == [[-100] * 3] * blanks
            told = [first + sum(bit << i for i, bit in enumerate(bits)) for bits in answer[blanks:]]
            assert told == x[blanks:-1]


@pytest.mark.parametrize("stream", ["maps", "keys"])
def test_facts_hold_everywhere_and_no_input_has_two_answers(stream: str) -> None:
    scenario = MADMemorize(4, stream=stream)
    facts: dict[tuple[int, int], int] = {}
    for e in range(3):
        own = dict(scenario.maps[e].tolist())
        assert sorted(own.values()) == list(range(36, 68) if stream == "maps" else range(98, 130))
        for name in ("train", "test"):
            asked = set()
            for x, y in rows(scenario, name, e):
                assert y[0::2] == [-100] * 16
                for key, insert, value in zip(x[0::2], x[1::2], y[1::2], strict=True):
                    assert insert == (1 + e if stream == "maps" else 1)
                    assert own[key] == value
                    assert facts.setdefault((key, insert), value) == value
                    asked.add(key)
            assert asked == set(own)
    assert len(facts) == 96


def test_new_maps_make_a_network_forget_the_old_ones() -> None:
    result = clplat.fit(
        "naive",
        MADMemorize(0, experiences=4, pairs=24, length=12, samples=128, test_samples=16),
        lambda D: GRU(D, hidden=64),
        optimizer=functools.partial(optim.adam, lr=1e-2),
        trainer=TrainerSettings(max_epochs=12, progress="none", accelerator="cpu"),
    )
    R = result["matrix"]
    assert all(R[e][e] > 0.95 for e in range(4))
    assert R[3][0] < 0.6


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("mad-recall", {"experiences": 0, "motif": 0}, ["experiences=0", "motif=0"]),
        ("mad-recall", {"noise": 1.0}, ["noise=1.0"]),
        ("mad-recall", {"stream": "noise"}, ["above 0"]),
        ("mad-recall", {"vocabulary": 15, "samples": 0}, ["vocabulary=15", "samples=0"]),
        ("mad-recall", {"length": 31}, ["length=31", "even number"]),
        ("mad-noisy-recall", {"noise_vocabulary": 0}, ["noise_vocabulary=0"]),
        ("mad-fuzzy-recall", {"vocabulary": 4}, ["vocabulary=4", "6 at least"]),
        ("mad-fuzzy-recall", {"length": 11}, ["length=11", "6 tokens"]),
        ("mad-recall", {"stream": "length", "length": 8}, ["first experience"]),
        ("mad-selective-copy", {"length": 12}, ["length=12", "13 positions"]),
        ("mad-selective-copy", {"stream": "length", "length": 30}, ["the first experience has 10"]),
        ("mad-selective-copy", {"copied": 0, "vocabulary": 1}, ["copied=0", "vocabulary=1"]),
        ("mad-compression", {"vocabulary": 12}, ["vocabulary=12", "power of two"]),
        ("mad-compression", {"length": 4, "stream": "length"}, ["length=4", "at least 6"]),
        ("mad-memorize", {"length": 31}, ["length=31", "even"]),
        ("mad-memorize", {"pairs": 100, "length": 4, "test_samples": 49}, ["test_samples=49", "at least 50"]),
    ],
)
def test_nonsense_is_refused(name: str, options: dict[str, object], words: list[str]) -> None:
    with pytest.raises(UsageError) as error:
        build(name, **options)
    assert all(word in str(error.value) for word in words)


def test_the_share_of_sequences_that_are_held_out_is_the_one_asked_for() -> None:
    every = torch.stack([(torch.arange(2**12) >> i) & 1 for i in range(12)], 1)
    masks = torch.stack([held_out(every, seed) for seed in range(20)])
    assert (masks.float().mean(1) - 0.2).abs().max() < 0.06
    assert torch.equal(held_out(every, 3), masks[3])
    assert not torch.equal(masks[0], masks[1])
    assert (held_out(every, 0, one_in=2).float().mean() - 0.5).abs() < 0.06
