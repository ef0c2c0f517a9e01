"""String functions to be found from examples in context, over symbols that mean nothing."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Literal

import torch

from clplat.errors import UsageError
from clplat.metrics.measures import IGNORED
from clplat.scenario import Scenario, TensorData
from clplat.scenarios.generated import BLANK, at_least, streams
from clplat.scenarios.symbols import answered_whole

GIVES, END = 1, 2
SYMBOLS = 3  # the first token that is a symbol

# No string becomes shorter than two symbols, and none more than twice as long but by repeat.
FUNCTIONS: dict[str, Callable[[list[int]], list[int]]] = {
    "reverse": lambda s: s[::-1],
    "swap": lambda s: [s[-1], *s[1:-1], s[0]],
    "shift": lambda s: [*s[1:], s[0]],
    "echo": lambda s: [*s, s[-1]],
    "remove": lambda s: s[1:] if len(s) > 2 else s,
    "repeat": lambda s: [*s, *s],
}


class PatternMachines(Scenario):
    """Complete a pattern: pairs of a string and what a function makes of it, then a string alone.

    Mirchandani et al. 2023, Large Language Models as General Pattern Machines (CoRL, arXiv 2307.04721), whose
    procedurally generated patterns are string functions after the PCFG benchmark (Hupkes et al. 2020). A sample is
    ``in GIVES out END`` for each of ``shots`` examples and then for the query, whose ``out END`` is asked, each token
    at the position before it: ``sequence_accuracy`` is the exact answer. Every sample has a function of its own:
    ``functions`` of reverse, swap (first and last change places), shift (the first goes behind), echo (the last once
    more), remove (the first goes, of more than two) and repeat (all twice, at most once in a sample), one after
    another. Strings have 2 to ``length`` symbols, no two alike.

    Symbols mean nothing: each sample takes its own at random from all ``symbols`` tokens, and with ``held`` a share of
    these is never in training and the only ones in the slice ``unseen``: does the function carry over to them?

    Experience e composes ``first + e`` functions (``stream: depth``), or all have ``first`` and experience e is of the
    e-th function by name, with any others behind it (``stream: functions``, six at most). Domain-incremental.
    Tokens: 0 blank, GIVES, END, then symbols. Assumed: which functions there are; grids (ARC) and motions are not here.

    Args:
        experiences: how many.
        stream: how they differ.
        first: functions of a sample in the first experience.
        shots: examples.
        length: symbols of a string at most.
        symbols: different tokens for symbols.
        held: share of the symbols that training never shows.
        samples: training samples in an experience.
        test_samples: test samples in an experience.
    """

    def __init__(
        self,
        seed: int,
        *,
        experiences: int = 3,
        stream: Literal["depth", "functions"] = "depth",
        first: int = 1,
        shots: int = 4,
        length: int = 4,
        symbols: int = 32,
        held: float = 0.25,
        samples: int = 1024,
        test_samples: int = 256,
    ) -> None:
        problems = at_least(1, experiences=experiences, first=first, shots=shots, samples=samples)
        problems += at_least(1, test_samples=test_samples) + at_least(2, length=length)
        unseen = round(held * symbols)
        if not 0 <= held < 1 or min(symbols - unseen, unseen or length) < length:
            problems.append(
                f"scenario.symbols={symbols} and scenario.held={held}: {length} symbols are needed in training, and as "
                "many that are held back, or none"
            )
        if stream == "functions" and experiences > len(FUNCTIONS):
            problems.append(f"scenario.experiences={experiences}: there are {len(FUNCTIONS)} functions")
        if problems:
            raise UsageError(*problems)
        deepest = first + (experiences - 1 if stream == "depth" else 0)
        most = 2 * (length + deepest)  # of a result: repeated once, everything else echoed
        steps = (shots + 1) * (length + most + 2)
        seen = range(SYMBOLS + unseen, SYMBOLS + symbols)

        def make(e: int, name: str, n: int, source: torch.Generator) -> TensorData:
            die = random.Random(int(torch.randint(2**62, (), generator=source)))
            pool = range(SYMBOLS, SYMBOLS + unseen) if name == "unseen" else seen
            x, y = [], []
            for _ in range(n):
                names = _drawn(die, first + (e if stream == "depth" else 0))
                if stream == "functions":
                    names = _drawn(die, first, list(FUNCTIONS)[e])
                tokens: list[int] = []
                for _ in range(shots + 1):
                    given = die.sample(pool, die.randint(2, length))
                    out = applied(names, given)
                    tokens += [*given, GIVES, *out, END]
                asked = len(out) + 1
                x.append(tokens + [BLANK] * (steps - len(tokens)))
                y.append(
                    [IGNORED] * (len(tokens) - asked - 1) + tokens[-asked:] + [IGNORED] * (steps - len(tokens) + 1)
                )
            return TensorData(torch.tensor(x), torch.tensor(y))

        tokens = SYMBOLS + symbols
        spec = answered_whole(steps, tokens)
        train, test = streams(seed, "pattern-machines", experiences, samples, test_samples, make)
        slices = {}
        if unseen:
            _, slices["unseen"] = streams(
                seed,
                "pattern-machines/unseen",
                experiences,
                1,
                test_samples,
                lambda e, _, n, g: make(e, "unseen", n, g),
            )
        super().__init__(spec, train, test, slices=slices)


def applied(names: list[str], given: list[int]) -> list[int]:
    """What the functions, one after another, make of a string."""
    for name in names:
        given = FUNCTIONS[name](given)
    return given


def _drawn(die: random.Random, many: int, start: str | None = None) -> list[str]:
    """Names of functions, of which at most one is repeat."""
    names = [start] if start else []
    while len(names) < many:
        name = die.choice(list(FUNCTIONS))
        if name != "repeat" or name not in names:
            names.append(name)
    return names
