"""Passages learnt by heart, against the text that they were made of."""

from __future__ import annotations

import functools
from typing import Any

import pytest

import clplat
from clplat import optim, registry
from clplat.errors import UsageError
from clplat.scenario import TensorData
from clplat.scenarios.passages import RandomMemoryAccess
from clplat.settings import LearnerSettings, TrainerSettings
from tests.scenarios.streams import build

FIRST_WORD = 2 + 5 + 3 * 16


def answers(data: TensorData) -> list[tuple[list[int], list[int]]]:
    """What is read up to the first question, and what must be said from there on; all in between is read too."""
    found = []
    for x, y in zip(data.x.tolist(), data.y.tolist(), strict=True):
        asked = [t for t, label in enumerate(y) if label >= 0]
        assert all(x[t + 1] == y[t] for t in asked)
        found.append((x[: asked[0] + 1], [y[t] for t in asked]))
    return found


def texts(scenario: RandomMemoryAccess, e: int) -> dict[int, list[int]]:
    """The passages of an experience by their number, from the writings in natural order."""
    found = answers(scenario.train_stream[e].dataset)
    return {start[0]: said for start, said in found if start[1:] == [1] and len(said) == 20}


@pytest.mark.parametrize("access", ["direct", "recited", "context"])
def test_sentences_are_those_of_the_passage_and_the_test_asks_what_was_only_written(access: str) -> None:
    scenario = RandomMemoryAccess(1, access=access)
    whole = RandomMemoryAccess(1, access=access, asks="passage")
    for e in range(3):
        text = texts(scenario, e)
        assert sorted(text) == list(range(7 + 16 * e, 23 + 16 * e))
        for stream, ids in (("train", range(7 + 16 * e, 15 + 16 * e)), ("test", range(15 + 16 * e, 23 + 16 * e))):
            asked = set()
            for start, said in answers(getattr(scenario, f"{stream}_stream")[e].dataset):
                if len(start) == 2 and start[1] == 1:
                    assert said == text[start[0]]
                    assert stream == "train"
                    continue
                j = start[-1] - 2
                sentence = text[start[0]][4 * j : 4 * j + 4]
                if access == "recited":
                    assert said == [*text[start[0]], 2 + j, *sentence]
                else:
                    assert said == sentence
                    assert start[1:-1] == ([1, *text[start[0]]] if access == "context" else [])
                asked.add((start[0], j))
            assert asked == {(i, j) for i in ids for j in range(5)}
        told = {start[0]: said for start, said in answers(whole.test_stream[e].dataset)}
        assert told == {i: text[i] for i in range(15 + 16 * e, 23 + 16 * e)}
        assert whole.train_stream[e].dataset.x.equal(scenario.train_stream[e].dataset.x)
    assert min(min(said) for said in texts(scenario, 2).values()) >= FIRST_WORD


def test_permuted_writings_have_all_sentences_in_another_order() -> None:
    scenario = RandomMemoryAccess(2, permuted=3, writes=1)
    text, orders = texts(scenario, 0), set()
    for x, y in zip(*(t.tolist() for t in scenario.train_stream[0].dataset.rows(slice(16, 64))[:2]), strict=True):
        assert x[1] == 1
        order = [number - 2 for number in x[2:27:5]]
        assert sorted(order) == list(range(5))
        orders.add(tuple(order))
        for place, j in enumerate(order):
            start = 2 + 5 * place
            assert x[start + 1 : start + 5] == y[start : start + 4] == text[x[0]][4 * j : 4 * j + 4]
            assert y[start + 4] == -100
    assert len(orders) > 20


def exact(
    backbone: str,
    *,
    epochs: int,
    lr: float,
    batch_size: int,
    embedding: int,
    network: dict[str, int] | None = None,
    **options: Any,
) -> float:
    """The share of the test's answers that are right from the first token to the last."""
    entry = registry.find("backbone", backbone)
    result = clplat.fit(
        "naive",
        build("random-memory-access", experiences=1, sentences=3, words=3, vocabulary=12, **options),
        lambda D: entry.build(D, **(network or {})),
        optimizer=functools.partial(optim.adam, lr=lr),
        trainer=TrainerSettings(max_epochs=epochs, batch_size=batch_size, progress="none", accelerator="cpu"),
        learner=LearnerSettings(embedding=embedding),
    )
    return float(result["matrix"][0][0])


@pytest.mark.slow
def test_what_was_only_written_is_recited_from_the_start_but_not_from_the_middle() -> None:
    sizes: dict[str, Any] = {"passages": 12, "taught": 6, "writes": 2, "epochs": 60}
    sizes |= {"lr": 1e-2, "batch_size": 14, "embedding": 32}
    assert exact("gru", asks="passage", **sizes) > 0.95
    # A third of the questions are for the first sentence, which is at the start.
    assert exact("gru", asks="sentence", **sizes) < 0.5


@pytest.mark.slow
def test_a_sentence_of_a_passage_in_context_is_found() -> None:
    sizes: dict[str, Any] = {"passages": 150, "taught": 130, "writes": 1, "epochs": 25}
    sizes |= {"lr": 3e-3, "batch_size": 32, "embedding": 64}
    network = {"dim": 64, "heads": 2, "layers": 2, "conv": 4}
    assert exact("transformer", access="context", network=network, **sizes) > 0.85


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"experiences": 0, "sentences": 0, "writes": 0}, ["experiences=0", "sentences=0", "writes=0"]),
        ({"passages": 8}, ["passages=8", "taught=8"]),
        ({"vocabulary": 1, "permuted": -1}, ["vocabulary=1", "permuted=-1"]),
    ],
)
def test_nonsense_is_refused(options: dict[str, object], words: list[str]) -> None:
    with pytest.raises(UsageError) as error:
        build("random-memory-access", **options)
    assert all(word in str(error.value) for word in words)
