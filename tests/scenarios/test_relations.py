"""Facts asked through relations, answered again by reading the tokens."""

from __future__ import annotations

import pytest
import torch

from clplat.backbones.attention.transformer import Transformer
from clplat.errors import UsageError
from clplat.scenarios.relations import GAR
from tests.scenarios.training import trained

C, M = 4, 6
KEYS, KEY_CLASSES, VALUES, VALUE_CLASSES, SO = 1, 25, 29, 53, 57
NO, YES = SO + 18, SO + 19


def related(thing: int, relation: str, first: int, classes: int) -> int:
    number = thing - first
    if relation == "class":
        return classes + number // M
    return first + (number + 1 if number % 2 == 0 else number - 1) if relation == "similar" else thing


def answer(row: list[int], relations: tuple[str, str], reverse: bool = False) -> int:
    """The one value that is related to the key that is related to the query; facts are all but the last two tokens."""
    facts = [(row[i + 1], row[i]) if reverse else (row[i], row[i + 1]) for i in range(0, len(row) - 2, 2)]
    found = [v for k, v in facts if related(k, relations[0], KEYS, KEY_CLASSES) == row[-1]]
    assert len(found) == 1
    answers = [related(v, relations[1], VALUES, VALUE_CLASSES) for _, v in facts]
    assert len(set(answers)) == len(facts)  # one answer to each, and none is another's
    return related(found[0], relations[1], VALUES, VALUE_CLASSES)


@pytest.mark.parametrize("stream", ["relations", "similar", "same"])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("shots", [0, 2])
def test_every_query_has_its_one_answer(stream: str, reverse: bool, shots: int) -> None:
    scenario = GAR(1, stream=stream, samples=50, test_samples=20, reverse=reverse, shots=shots)
    step = {"relations": "class", "similar": "similar", "same": "class"}[stream]
    pairs = [("equal", "equal"), (step, "equal"), ("equal", step), (step, step)]
    for part in (scenario.train_stream, scenario.test_stream):
        for e, experience in enumerate(part):
            relations = ("class", "class") if stream == "same" else pairs[e]
            for x, y in zip(experience.dataset.x.tolist(), experience.dataset.y.tolist(), strict=True):
                rows = [x[i : i + 9] for i in range(0, len(x), 9)]
                assert len(rows) == shots + 1
                for row in rows[:-1]:
                    assert row[-1] == answer(row[:-1], relations, reverse)
                assert y[-1] == answer(rows[-1], relations, reverse)
                assert y[:-1] == [-100] * (len(y) - 1)
                assert len({row[-3 if len(row) == 9 else -2] for row in rows}) == 1


@pytest.mark.parametrize("negate", [False, True])
def test_judgements_are_right_and_balanced(negate: bool) -> None:
    scenario = GAR(2, form="judge", negate=negate, samples=3000, test_samples=10)
    relations = [("equal", "equal"), ("class", "equal"), ("equal", "class"), ("class", "class")]
    for pair, experience in zip(relations, scenario.train_stream, strict=True):
        x, y = experience.dataset.x, experience.dataset.y[:, -1]
        denied = x[:, -3] >= SO + 9
        assert bool(denied.any()) == negate
        for row, verdict, no in zip(x[:300].tolist(), y[:300].tolist(), denied[:300].tolist(), strict=True):
            true = answer(row[:-1], pair) == row[-1]
            assert verdict == (YES if true != no else NO)
        assert abs((y == YES).float().mean() - 0.5) < 0.03
        if negate:
            assert abs((y[denied] == YES).float().mean() - 0.5) < 0.04


def test_positions_of_answers_are_uniform_and_no_fact_of_the_test_is_learnt() -> None:
    scenario = GAR(0, samples=6000, test_samples=2000)
    facts: dict[str, set[tuple[int, int]]] = {}
    for name, part in (("train", scenario.train_stream), ("test", scenario.test_stream)):
        x = torch.cat([e.dataset.x for e in part])
        facts[name] = set(zip(x[:, 0:6:2].flatten().tolist(), x[:, 1:6:2].flatten().tolist(), strict=True))
    assert len(facts["test"]) == C * M * C
    assert len(facts["train"]) == C * M * C * (M - 1)
    assert not facts["train"] & facts["test"]
    assert len({k for k, _ in facts["test"]}) == len({v for _, v in facts["test"]}) == C * M
    first = scenario.train_stream[0].dataset
    places = (first.x[:, 1:6:2] == first.y[:, -1:]).sum(0).double()
    assert ((places - 2000) ** 2 / 2000).sum() < 13.8  # chi-square, two degrees of freedom, one in a thousand


@pytest.mark.slow
def test_two_layers_of_attention_recall_and_compose_more_slowly() -> None:
    """The seed's check: above 95% on equal/equal, and less on class/class after the same training. Measured
    with 8 epochs: 1.00 and 0.32, which is chance among the values in context."""

    def network(D: int) -> Transformer:
        return Transformer(D, dim=48, layers=2, heads=2)

    def learned(stream: str) -> float:
        scenario = GAR(0, experiences=1, stream=stream, samples=8192)
        return trained(scenario, network, epochs=6, lr=3e-3, embedding=48).last[0]

    recall, composed = learned("relations"), learned("same")
    assert recall > 0.95
    assert composed < recall - 0.05


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"members": 5}, ["members=5", "even"]),
        ({"facts": 5}, ["classes=4", "need 5"]),
        ({"facts": 1, "shots": -1, "negate": True}, ["facts=1", "shots=-1", "negate=true"]),
        ({"experiences": 0, "samples": 0, "test_samples": 0}, ["experiences=0", "samples=0", "test_samples=0"]),
    ],
)
def test_nonsense_is_refused(options: dict, words: list[str]) -> None:
    with pytest.raises(UsageError) as error:
        GAR(0, **options)
    assert all(word in str(error.value) for word in words)
