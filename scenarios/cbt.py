"""The Children's Book Test: which of ten words is missing from a sentence, after the twenty sentences before it?"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from clplat.data import readers
from clplat.data.text import decode, numbering
from clplat.errors import MissingError, UsageError
from clplat.randomness import generator
from clplat.scenario import Experience, Scenario, Spec, TensorData, stream
from clplat.scenarios.generated import BLANK, at_least

Words = Literal["NE", "CN", "V", "P"]
FILES = {"train": "cbtest_{}_train.txt", "valid": "cbtest_{}_valid_2000ex.txt", "test": "cbtest_{}_test_2500ex.txt"}
FOLDERS = (".", "data", "CBTest/data")  # where they lie in the archive, seen from where it may have been unpacked
SENTENCES, CANDIDATES = 20, 10
GAP = "XXXXX"  # stands in the files where the word is missing


@dataclass(frozen=True)
class Question:
    """What a question of the files holds, in words.

    Args:
        text: the context and, behind it, the sentence with the gap.
        candidates: in the order of the file.
        right: which of them is missing.
    """

    text: tuple[str, ...]
    candidates: tuple[str, ...]
    right: int


class ChildrensBookTest(Scenario):
    """Cloze questions of the Children's Book Test: one kind of missing word in each experience.

    Hill, Bordes, Chopra and Weston 2016, The Goldilocks Principle: Reading Children's Books with Explicit Memory
    Representations (ICLR, arXiv 1511.02301). A question is twenty sentences of a book, the next one with a word missing
    (XXXXX), and ten candidates of the kind of the missing word, one of which is it: named entities (NE), common nouns
    (CN), verbs (V), prepositions (P). A sample is tokens: the context and the sentence, then the candidates in an order
    drawn by the seed; the class is the place of the right one among them, so chance is a tenth. (The order of the
    files is not kept: nothing says that it is random.) Of a long context the last words are kept; short ones are blank
    in front.

    Nothing is downloaded. ``scenario.root=DIR`` is where the authors' archive CBTest.tgz was unpacked; read are its
    ``cbtest_NE_train.txt``, ``cbtest_NE_valid_2000ex.txt`` and ``cbtest_NE_test_2500ex.txt``, and those of the other
    kinds. They are words that white space separates, one sentence a line with its number in the question; line 21 goes
    on with the answer and ``|`` between the candidates, separated by tabs.

    Experiences are kinds of words, in the order of ``words``. Domain-incremental: the classes are the same. Tokens: 0
    blank, 1 for words that the training texts have too rarely, then the ``vocabulary`` most frequent ones of all kinds'
    training questions that are used. (The paper's vocabulary is 53628 words; its window memories are models, not data.)

    Args:
        root: folder with the files.
        words: the kinds, one for each experience.
        length: tokens of a sample, of which the last ten are the candidates.
        vocabulary: different tokens at most.
        samples: training questions of each kind, drawn by the seed; null takes all.
        test_samples: test and validation questions of each kind; null takes all.
    """

    def __init__(
        self,
        seed: int,
        *,
        root: str,
        words: list[Words] = ["NE", "CN", "V", "P"],  # noqa: B006 - options are read from this line
        length: int = 512,
        vocabulary: int = 20000,
        samples: int | None = 10000,
        test_samples: int | None = None,
    ) -> None:
        problems = at_least(3, vocabulary=vocabulary) + at_least(CANDIDATES + 1, length=length)
        given = {"samples": samples, "test_samples": test_samples}
        problems += at_least(1, **{name: value for name, value in given.items() if value is not None})
        if not words or len(set(words)) < len(words):
            problems.append(f"scenario.words={','.join(words)}: one or more different kinds are needed")
        if problems:
            raise UsageError(*problems)
        folder = _folder(Path(root).expanduser(), words)
        questions = {
            part: [
                _some(_questions(folder / name.format(kind)), samples if part == "train" else test_samples, seed, kind)
                for kind in words
            ]
            for part, name in FILES.items()
        }
        numbers = numbering(([*q.text, *q.candidates] for group in questions["train"] for q in group), vocabulary)
        # What ends a document has no use here: its number is that of the blank.
        numbers["\0"] = BLANK

        def data(group: list[Question], kind: str, part: str) -> TensorData:
            source = generator(seed, f"cbt/{kind}/{part}/order")
            rows, places = [], []
            for question in group:
                order = torch.randperm(CANDIDATES, generator=source).tolist()
                text = question.text[-(length - CANDIDATES) :]
                tokens = [numbers.get(word, 1) for word in (*text, *(question.candidates[i] for i in order))]
                rows.append([BLANK] * (length - len(tokens)) + tokens)
                places.append(order.index(question.right))
            return TensorData(torch.tensor(rows), torch.tensor(places))

        def made(part: str) -> tuple[Experience, ...]:
            return stream(part, [data(g, kind, part) for g, kind in zip(questions[part], words, strict=True)])

        spec = Spec((length,), CANDIDATES, "domain", encoder="tokens", vocabulary=1 + max(numbers.values()))
        super().__init__(spec, made("train"), made("test"), made("valid"))


def _folder(root: Path, words: list[Words]) -> Path:
    wanted = [name.format(kind) for kind in words for name in FILES.values()]
    for folder in (root / part for part in FOLDERS):
        missing = [name for name in wanted if not (folder / name).is_file()]
        if not missing:
            return folder
        if len(missing) < len(wanted):
            raise MissingError(f"scenario.root={root}: {', '.join(missing)} is missing")
    raise MissingError(
        f"scenario.root={root}: none of the files of the Children's Book Test is there; unpack the authors' archive "
        f"CBTest.tgz there, or name the folder of {wanted[0]}"
    )


def _some(questions: list[Question], many: int | None, seed: int, kind: str) -> list[Question]:
    """That many of them, or all, in the order of the file."""
    if many is None or many >= len(questions):
        return questions
    order = torch.randperm(len(questions), generator=generator(seed, f"cbt/{kind}/questions", len(questions)))
    return [questions[i] for i in sorted(order[:many].tolist())]


def _questions(path: Path) -> list[Question]:
    """The questions of a file.

    Raises:
        UsageError: it is not in the format of the authors' files; says in which line.
    """
    found: list[Question] = []
    text: list[str] = []
    expected = 1
    for number, line in enumerate(decode(readers.content(path), str(path)).split("\n"), 1):
        if not line.strip():
            continue
        match = re.match(r"(\d+) (.*)", line)
        if match is None or int(match[1]) != expected:
            raise UsageError(f"{path}: line {number} should begin with {expected} and a sentence")
        if expected <= SENTENCES:
            text += match[2].split()
            expected += 1
            continue
        sentence, *rest = match[2].split("\t")
        candidates = tuple(rest[-1].strip().split("|")) if len(rest) >= 2 else ()
        words = sentence.split()
        if len(candidates) != CANDIDATES or candidates.count(rest[0].strip()) != 1 or GAP not in words:
            raise UsageError(
                f"{path}: line {number} should have a sentence with {GAP}, the answer, and {CANDIDATES} candidates, "
                "of which the answer is one, with | between them, separated by tabs"
            )
        found.append(Question((*text, *words), candidates, candidates.index(rest[0].strip())))
        text, expected = [], 1
    if expected > 1 or not found:
        raise UsageError(f"{path}: it ends before a question does")
    return found
