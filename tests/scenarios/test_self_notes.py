"""Stories and programs: an interpreter follows each sample and finds every note and answer in what was said before."""

from __future__ import annotations

from typing import Any

import pytest

from clplat.errors import UsageError
from clplat.scenarios.self_notes import ADD, ANSWER, ASK, COPY, END, GO, NOTE, SET, STOP, SelfNotes
from tests.scenarios.streams import build

FIRST_NUMBER = 20  # with ten names


class Interpreter:
    """What is known after the statements so far."""

    def __init__(self) -> None:
        self.inside: dict[int, int] = {}  # a thing and what it is in
        self.value: dict[int, int] = {}

    def hear(self, said: list[int]) -> list[int]:
        """Takes a statement in; gives the note that follows, or none."""
        if len(said) == 2:
            a, b = said
            self.inside[a] = b
            around = {b: a for a, b in self.inside.items()}
            while a in around:
                a = around[a]
            outermost = self.outermost(a)
            return [a, outermost] if [a, outermost] != said else []
        v, what, operand = said
        if what == SET:
            self.value[v] = operand
            return []
        old = self.value[v] if what == ADD else 0
        self.value[v] = self.value[operand] if what == COPY else FIRST_NUMBER + (old + operand - 2 * FIRST_NUMBER) % 8
        return [v, self.value[v]]

    def outermost(self, a: int) -> int:
        while a in self.inside:
            a = self.inside[a]
        return a


def follow(x: list[int], y: list[int], form: str) -> list[list[int]]:
    """Read a sample; check its notes, what is asked and the answer; gives its statements."""
    known, statements, owed, t = Interpreter(), [], [], 0
    due: list[list[int]] = []
    while x[t] != ASK:
        end = x.index(STOP, t)
        statements.append(x[t:end])
        note = known.hear(x[t:end])
        assert y[t:end] == [-100] * (end - t)
        if note:
            due.append(note)
        if form == "notes":
            assert y[end] == (NOTE if note else GO)
            if note:
                assert x[end + 1 : end + 5] == [NOTE, *note, END]
                assert y[end + 1 : end + 5] == [*note, END, -100]
                end += 4
        else:
            assert y[end] == -100
        t = end + 1
    asked = x[t + 1]
    answer = known.value[asked] if asked in known.value else known.outermost(asked)
    owed = [token for note in due for token in (NOTE, *note, END)] if form == "scratchpad" else []
    assert x[t : t + 3 + len(owed)] == [ASK, asked, *owed, ANSWER]
    assert not any(x[t + 3 + len(owed) :])
    expected = [-100, *owed, ANSWER, answer] if form == "scratchpad" else [-100, -100, answer]
    assert y[t : t + 3 + len(owed)] == expected
    assert all(label == -100 for label in y[t + 3 + len(owed) :])
    return statements


@pytest.mark.parametrize("task", ["story", "program"])
@pytest.mark.parametrize("form", ["notes", "none", "scratchpad"])
def test_every_note_and_answer_follows_from_what_was_said(task: Any, form: Any) -> None:
    scenario = SelfNotes(1, task=task, form=form, samples=60, test_samples=30)
    for e in range(2):
        streams = (scenario.train_stream, scenario.test_stream, scenario.slices["longer"])
        for stream, more in zip(streams, (0, 0, 2), strict=True):
            units = 1 + e + more
            data = stream[e].dataset
            for x, y in zip(data.x.tolist(), data.y.tolist(), strict=True):
                statements = follow(x, y, form)
                assert len(statements) == (2 * units if task == "story" else 10 * units)
        answers = scenario.slices["answer"][e].dataset
        assert ((answers.y != -100).sum(1) == 1).all()
        assert (answers.x[answers.y != -100] == ANSWER).all()


def test_a_share_of_the_training_samples_has_notes_and_all_tests_have() -> None:
    scenario = SelfNotes(0, first=2, experiences=1, noted=0.3, samples=400)
    noted = (scenario.train_stream[0].dataset.x == NOTE).any(1).float().mean()
    assert 0.2 < float(noted) < 0.4
    assert (scenario.test_stream[0].dataset.x == NOTE).any(1).all()  # the last link of a chain always says something


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"experiences": 0, "beyond": 0, "noted": 1.5}, ["experiences=0", "beyond=0", "noted=1.5"]),
        ({"names": 9}, ["names=9", "10 are needed"]),
        ({"task": "program", "statements": 4}, ["statements=4", "10 variables"]),
    ],
)
def test_nonsense_is_refused(options: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(UsageError) as error:
        build("self-notes", **options)
    assert all(word in str(error.value) for word in words)
