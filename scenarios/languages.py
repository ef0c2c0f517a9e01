"""Formal languages: strings over a small alphabet, with a question whose answer a small automaton finds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from clplat.errors import UsageError
from clplat.metrics.measures import IGNORED
from clplat.scenario import Scenario, Spec, TensorData
from clplat.scenarios.generated import BLANK, at_least, drawn_apart, share, streams

Name = Literal["even-pairs", "parity", "cycle-navigation", "modular-arithmetic"]
MODULUS = 5
SYMBOLS = MODULUS + 3  # numbers and the operators + - *


class FormalLanguages(Scenario):
    """Regular tasks of the Chomsky hierarchy: trained on short strings, tested on longer ones.

    Deletang et al. 2023, Neural networks and the Chomsky hierarchy (ICLR, arXiv 2207.02098, section 4 and appendix A),
    as used for xLSTM (Beck et al. 2024, arXiv 2405.04517). A string of symbols is followed by a question at its last
    symbol:

    - even-pairs: bits; 0 if the number of places where neighbours differ is even (first and last bit alike), else 1;
    - parity: bits; whether the number of ones is odd;
    - cycle-navigation: moves stay, right, left on a circle of 5 from place 0; the place at the end;
    - modular-arithmetic: ``n o n o ... n`` with numbers below 5 and operators + - *, products first; its value mod 5.
      Strings have odd length: even lengths are made one shorter.

    The target is a token of five, at the last symbol alone. Guessing is right in 0.5 of bits, 0.2 of places; in modular
    arithmetic 0 is the most frequent answer (products with 0), in about 0.21. A string is tokens: a start
    token, then symbols: all languages use the same ones (1 to 8, of which bits are 1 and 2, moves 1 to 3, numbers 1 to
    5, operators 6 to 8), then blanks (0).

    Published lengths: training on 3 to 40 and test on 40 to 256 (xLSTM), or 1 to 40 and 41 to 500; here the test has
    lengths that training never has. Where they are set to be the same, :func:`held_out` keeps the strings apart.

    As a stream the experiences are

    - languages: in the order above, the next one each;
    - length: one language, ``language``, with longer and longer training strings up to ``longest`` in the last; the
      test is the same range in all.

    Settings: ``domain``: the start token tells the language; one head. ``task``: the start token is always the same,
    task labels tell the experience, and each has its own head.

    Args:
        setting: domain- or task-incremental.
        experiences: how many; at most 4 for a stream of languages.
        stream: how they differ.
        language: the one that grows in length.
        shortest: symbols in a training string, at least.
        longest: symbols in a training string, at most.
        test_shortest: symbols in a test string, at least.
        test_longest: symbols in a test string, at most.
        samples: training strings in an experience.
        test_samples: test strings in an experience.
    """

    settings = ("domain", "task")

    def __init__(
        self,
        seed: int,
        *,
        setting: Literal["domain", "task"] = "domain",
        experiences: int = 4,
        stream: Literal["languages", "length"] = "languages",
        language: Name = "parity",
        shortest: int = 3,
        longest: int = 20,
        test_shortest: int = 21,
        test_longest: int = 40,
        samples: int = 2000,
        test_samples: int = 500,
    ) -> None:
        problems = at_least(1, experiences=experiences, samples=samples, test_samples=test_samples)
        problems += at_least(3, shortest=shortest, test_shortest=test_shortest)
        if shortest > longest or test_shortest > test_longest:
            problems.append(
                f"scenario.shortest={shortest} to scenario.longest={longest} and scenario.test_shortest="
                f"{test_shortest} to scenario.test_longest={test_longest}: each range must hold a length"
            )
        if stream == "languages" and experiences > len(LANGUAGES):
            problems.append(f"scenario.experiences={experiences}: there are {len(LANGUAGES)} languages")
        if problems:
            raise UsageError(*problems)
        length = 1 + max(longest, test_longest)
        overlap = max(shortest, test_shortest) <= min(longest, test_longest)
        starts = experiences if setting == "domain" and stream == "languages" else 1

        def make(e: int, name: str, n: int, source: torch.Generator) -> TensorData:
            draw_symbols, answer = LANGUAGES[list(LANGUAGES)[e] if stream == "languages" else language]
            low, high = (shortest, longest) if name == "train" else (test_shortest, test_longest)
            if stream == "length" and name == "train":
                high = low + share(high - low + 1, e, experiences) - 1
            odd = answer is _value

            def draw(rows: int) -> tuple[Tensor, Tensor]:
                long_N = torch.randint(low, high + 1, (rows,), generator=source)
                long_N -= (long_N % 2 == 0).long() if odd else 0
                symbol_NT = draw_symbols(rows, length - 1, source)
                return torch.where(torch.arange(length - 1) < long_N[:, None], symbol_NT, -1), long_N

            symbol_NT, long_N = drawn_apart(n, name == "test", seed, draw) if overlap else draw(n)
            x_NT = torch.full((n, length), BLANK)
            x_NT[:, 0] = 1 + SYMBOLS + (e if starts > 1 else 0)
            x_NT[:, 1:] = torch.where(symbol_NT < 0, BLANK, 1 + symbol_NT)
            y_NT = torch.full((n, length), IGNORED)
            y_NT[torch.arange(n), long_N] = answer(symbol_NT, long_N)
            return TensorData(x_NT, y_NT, e if setting == "task" else 0)

        tokens = 1 + SYMBOLS + starts
        spec = Spec((length,), MODULUS, setting, encoder="tokens", target="token", vocabulary=tokens)
        super().__init__(spec, *streams(seed, "formal-languages", experiences, samples, test_samples, make))


def _any_of(symbols: int) -> Callable[[int, int, torch.Generator], Tensor]:
    return lambda n, length, source: torch.randint(symbols, (n, length), generator=source)


def _expression(n: int, length: int, source: torch.Generator) -> Tensor:
    """Numbers at even places, operators at odd ones."""
    symbol_NT = torch.randint(MODULUS, (n, length), generator=source)
    symbol_NT[:, 1::2] = MODULUS + torch.randint(3, (n, length // 2), generator=source)
    return symbol_NT


def _even_pairs(symbol_NT: Tensor, long_N: Tensor) -> Tensor:
    last_N = symbol_NT.gather(1, long_N[:, None] - 1)[:, 0]
    return (symbol_NT[:, 0] != last_N).long()


def _parity(symbol_NT: Tensor, long_N: Tensor) -> Tensor:
    return (symbol_NT == 1).sum(1) % 2


def _place(symbol_NT: Tensor, long_N: Tensor) -> Tensor:
    return ((symbol_NT == 1).sum(1) - (symbol_NT == 2).sum(1)) % MODULUS


def _value(symbol_NT: Tensor, long_N: Tensor) -> Tensor:
    """A sum of what is closed, and the product that is still open with its sign, step by step."""
    closed_N, open_N = torch.zeros_like(long_N), symbol_NT[:, 0].clone()
    for t in range(1, symbol_NT.shape[1] - 1, 2):
        operator_N, number_N = symbol_NT[:, t], symbol_NT[:, t + 1]
        goes_on_N = number_N >= 0  # the string is not over
        times_N = operator_N == MODULUS + 2
        signed_N = torch.where(operator_N == MODULUS + 1, -number_N, number_N)
        closed_N = torch.where(goes_on_N & ~times_N, closed_N + open_N, closed_N) % MODULUS
        open_N = torch.where(goes_on_N, torch.where(times_N, open_N * number_N, signed_N), open_N) % MODULUS
    return (closed_N + open_N) % MODULUS


# How symbols are drawn, and what is asked of them.
LANGUAGES: dict[str, tuple[Callable[[int, int, torch.Generator], Tensor], Callable[[Tensor, Tensor], Tensor]]] = {
    "even-pairs": (_any_of(2), _even_pairs),
    "parity": (_any_of(2), _parity),
    "cycle-navigation": (_any_of(3), _place),
    "modular-arithmetic": (_expression, _value),
}
