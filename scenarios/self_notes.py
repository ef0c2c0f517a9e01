"""Stories and programs with notes in between: what follows is written down where it follows."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from clplat.errors import UsageError
from clplat.metrics.measures import IGNORED
from clplat.randomness import generator
from clplat.scenario import Scenario, TensorData, stream
from clplat.scenarios.generated import BLANK, at_least, drawn_apart, streams
from clplat.scenarios.symbols import answered_whole

STOP, NOTE, END, GO, ASK, ANSWER, SET, ADD, COPY = range(1, 10)
NAMES = 10  # the first token that is a name
Form = Literal["notes", "none", "scratchpad"]


class SelfNotes(Scenario):
    """Self-notes: sequences that are read with notes written in between, and a question at the end.

    Lanchantin et al. 2023, Learning to Reason and Memorize with Self-Notes (NeurIPS, arXiv 2305.00833), the synthetic
    tasks. A sample is statements, each ended by STOP, then ``ASK name ANSWER``, at which the answer is asked:

    - story: ``a b`` says that a is in b. ``chains`` chains of things, each in the next, of which every link is told
      once, all links in random order; the question names the innermost of a chain, and the answer is the outermost:
      with k links k hops. A note ``NOTE a c END`` says that a is in c, where a statement makes that known of the two
      ends of what can be joined so far, and did not say it itself;
    - program: ``v SET n``, ``v ADD n`` and ``v COPY u`` change variables, numbers modulo ``numbers``; the question is
      the value of one. A note ``NOTE v n END`` states the value behind each ADD and COPY.

    How the notes are there (``form``): ``notes`` right behind the statement they follow from; ``none`` (vanilla); or
    all of them behind the question, before ANSWER (``scratchpad``). Whatever a model would write itself is asked at the
    position before it: notes, answers, and at each STOP whether it writes (NOTE) or reads on (GO, which is only ever
    asked). All asked tokens of a sample are right given the right ones before them exactly when a model that reads
    token by token and writes its own notes writes these and answers right: that is ``sequence_accuracy``, the main
    measure. (A wrong note that does no harm counts as wrong.) ``noted`` of the training samples have notes; the others
    ask for the answer alone, at whatever form (semi-supervised).

    Experience e has ``first + e`` hops, or ``first + e`` times ``statements`` statements, in train and test. The slice
    ``longer`` of each has ``beyond`` more hops, or as many times ``statements`` more: longer than any in training so
    far. The slice ``answer`` asks for the answer alone, the notes being given. Domain-incremental. Tokens: 0 blank,
    STOP, NOTE, END, GO, ASK, ANSWER, SET, ADD, COPY, then names, then numbers.

    That notes help a network that is trained on them did not show at a size that takes seconds: of programs with two
    variables and six statements a GRU of 48 units answered 0.57 without notes, and wrote all notes and the answer right
    in 0.20.

    Assumed: the grammar, and which notes there are (the paper's stories and programs are in words, with 1 and 2 hops in
    training and 3 and 4 in the test, or 2 to 100 statements and 101 to 200). Decoding with a threshold, notes without
    supervision, tracking of booleans and chess are not here.

    Args:
        experiences: how many.
        task: story or program.
        form: where notes are.
        first: hops, or times ``statements``, of the first experience.
        beyond: how much longer those of the slice are.
        chains: in a story.
        names: different things, or variables.
        statements: of a program, for each unit of its length.
        numbers: values of a variable, 0 and up.
        noted: share of the training samples that have notes.
        samples: training samples in an experience.
        test_samples: test samples in an experience.
    """

    def __init__(
        self,
        seed: int,
        *,
        experiences: int = 2,
        task: Literal["story", "program"] = "story",
        form: Form = "notes",
        first: int = 1,
        beyond: int = 2,
        chains: int = 2,
        names: int = 10,
        statements: int = 10,
        numbers: int = 8,
        noted: float = 1.0,
        samples: int = 512,
        test_samples: int = 128,
    ) -> None:
        problems = at_least(1, experiences=experiences, first=first, beyond=beyond, chains=chains, samples=samples)
        problems += at_least(1, test_samples=test_samples, statements=statements) + at_least(2, numbers=numbers)
        longest = first + experiences - 1 + beyond
        needed = chains * (longest + 1) if task == "story" else 2
        if names < needed:
            problems.append(f"scenario.names={names}: {needed} are needed")
        if task == "program" and statements * first < names:
            problems.append(f"scenario.statements={statements}: each of {names} variables needs one, to begin with")
        if not 0 <= noted <= 1:
            problems.append(f"scenario.noted={noted}: a share from 0 to 1 is needed")
        if problems:
            raise UsageError(*problems)
        steps = _most_tokens(task, form, chains * longest, statements * longest)

        def make(e: int, name: str, n: int, source: torch.Generator) -> TensorData:
            units = first + e + (beyond if name == "longer" else 0)
            share = noted if name == "train" else 1.0

            def draw(rows: int) -> tuple[Tensor, Tensor, Tensor]:
                """The bare samples, which tell train from test in whatever form they are, and x and y."""
                die = random.Random(int(torch.randint(2**62, (), generator=source)))
                bare, x, y = [], [], []
                for _ in range(rows):
                    tale = (
                        _story(die, units, chains, names)
                        if task == "story"
                        else _program(die, units * statements, names, numbers)
                    )
                    shown, asked = _written(tale, form if die.random() < share else "none")
                    bare.append(_filled(_written(tale, "none")[0], steps, BLANK))
                    x.append(_filled(shown, steps, BLANK))
                    y.append(_filled(asked, steps, IGNORED))
                return torch.tensor(bare), torch.tensor(x), torch.tensor(y)

            _, x_NT, y_NT = drawn_apart(n, name != "train", seed, draw)
            return TensorData(x_NT, y_NT)

        tokens = NAMES + names + (numbers if task == "program" else 0)
        spec = answered_whole(steps, tokens)
        purpose = f"self-notes/{task}"
        train, test = streams(seed, purpose, experiences, samples, test_samples, make)
        longer = [make(e, "longer", test_samples, generator(seed, f"{purpose}/longer", e)) for e in range(experiences)]
        answers = [_last_asked(experience.dataset) for experience in test]
        slices = {"answer": stream("test", answers), "longer": stream("test", longer)}
        super().__init__(spec, train, test, slices=slices)


@dataclass
class Tale:
    """Statements with the note that follows from each, and a question about them.

    Args:
        told: tokens of each statement and of its note, without marks; no tokens where nothing follows.
        asked, answer: tokens.
    """

    asked: int
    answer: int
    told: list[tuple[list[int], list[int]]] = field(default_factory=list)


def _story(draw: random.Random, hops: int, chains: int, names: int) -> Tale:
    things = draw.sample(range(NAMES, NAMES + names), chains * (hops + 1))
    lines = [things[i * (hops + 1) : (i + 1) * (hops + 1)] for i in range(chains)]
    asked = draw.choice(lines)
    tale = Tale(asked[0], asked[-1])
    links = [(line, k) for line in lines for k in range(hops)]
    draw.shuffle(links)
    known: set[tuple[int, int]] = set()
    for line, k in links:
        known.add((line[k], line[k + 1]))
        low, high = k, k + 1
        while low and (line[low - 1], line[low]) in known:
            low -= 1
        while high < hops and (line[high], line[high + 1]) in known:
            high += 1
        note = [line[low], line[high]] if high - low > 1 else []
        tale.told.append(([line[k], line[k + 1]], note))
    return tale


def _program(draw: random.Random, statements: int, names: int, numbers: int) -> Tale:
    first_number = NAMES + names
    values: dict[int, int] = {}
    told: list[tuple[list[int], list[int]]] = []
    order = draw.sample(range(names), names)
    while len(told) < statements:
        if order:  # each variable has a value before anything else is done with it
            v, value = order.pop(), draw.randrange(numbers)
            values[v] = value
            told.append(([NAMES + v, SET, first_number + value], []))
            continue
        v, kind = draw.randrange(names), draw.choice((SET, ADD, COPY))
        if kind == COPY:
            u = draw.choice([u for u in range(names) if u != v])
            values[v], operand = values[u], NAMES + u
        else:
            n = draw.randrange(numbers)
            values[v], operand = (n if kind == SET else (values[v] + n) % numbers), first_number + n
        told.append(([NAMES + v, kind, operand], [] if kind == SET else [NAMES + v, first_number + values[v]]))
    v = draw.randrange(names)
    return Tale(NAMES + v, first_number + values[v], told)


def _written(tale: Tale, form: Form) -> tuple[list[int], list[int]]:
    """x and y of a sample."""
    x: list[int] = []
    y: list[int] = []

    def write(tokens: list[int], asked: bool) -> None:
        if asked and x:
            y[-1] = tokens[0]
        x.extend(tokens)
        y.extend([*tokens[1:], IGNORED] if asked else [IGNORED] * len(tokens))

    for statement, note in tale.told:
        write([*statement, STOP], False)
        if form == "notes":
            if note:
                write([NOTE, *note, END], True)
            else:
                y[-1] = GO
    write([ASK, tale.asked], False)
    if form == "scratchpad":
        for _, note in tale.told:
            if note:
                write([NOTE, *note, END], True)
    write([ANSWER], form == "scratchpad")
    y[-1] = tale.answer
    return x, y


def _most_tokens(task: str, form: Form, links: int, statements: int) -> int:
    """Tokens of the longest sample there can be."""
    said, written = (3 * links, links) if task == "story" else (4 * statements, statements)
    return said + (0 if form == "none" else 4 * written) + 3


def _filled(tokens: list[int], steps: int, value: int) -> list[int]:
    return tokens + [value] * (steps - len(tokens))


def _last_asked(data: TensorData) -> TensorData:
    """The same samples, asking what is asked last alone."""
    step_T = torch.arange(data.y.shape[1])
    last_N1 = torch.where(data.y != IGNORED, step_T, -1).amax(1, keepdim=True)
    return TensorData(data.x, torch.where(step_T == last_N1, data.y, IGNORED), data.task)
