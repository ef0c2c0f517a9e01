"""Streams of strings from random automata: a language that must be learnt from its examples in the sequence."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as nnf
from torch import Generator, Tensor

from clplat.errors import UsageError
from clplat.metrics.measures import IGNORED
from clplat.scenario import Scenario, Spec, TensorData
from clplat.scenarios.generated import BLANK, at_least, share, streams
from clplat.scenarios.symbols import asked_where

SEPARATOR = 1  # token between strings; symbol a is token 2 + a
BLOCK = 4096  # sequences that are made at once


@dataclass(frozen=True)
class Automata:
    """Deterministic finite automata that begin in state 0 and accept in every state.

    Args:
        next: (n, S, A), the state behind each state and symbol, -1 where there is no edge.
    """

    next: Tensor

    @property
    def edges(self) -> Tensor:
        """Which symbols may follow in each state."""
        return self.next >= 0

    def subset(self, index: Tensor) -> Automata:
        """Some of the automata."""
        return Automata(self.next[index])

    def languages(self, rounds: int) -> Tensor:
        """A number for each automaton, (n,): equal where no word tells two languages apart, given rounds enough (one
        less than all states of both), and different otherwise but for collisions of 63-bit hashes."""
        n, S, A = self.next.shape
        weight_A = torch.randint(-(2**62), 2**62, (A,), generator=torch.Generator().manual_seed(A))
        sign_NS = torch.zeros(n, S, dtype=torch.long)
        for _ in range(rounds):
            behind_NSA = _behind(self.next, sign_NS)
            sign_NS = _mixed((weight_A * _mixed(torch.where(self.edges, behind_NSA, -1))).sum(-1))
        return sign_NS[:, 0]


class ICLLRegBench(Scenario):
    """RegBench, in-context language learning: strings of a regular language that is new in every sequence (Akyürek et
    al. 2024, In-context language learning: architectures and algorithms, arXiv 2401.12973, section 3 and appendix).

    The language is that of a random automaton: 4 to ``states`` states, of which each has 1, 2 or 3 edges to other
    states, all different, with different symbols out of ``symbols``, of which an automaton uses 4 or more; no edge goes
    back to its own state, the first state begins, and all states accept. A sequence holds ``strings`` / 2 to
    ``strings`` strings behind one another, each after a separator. A string is a walk of 1 to ``walk`` steps that
    takes each edge of its state alike likely. All numbers are drawn uniformly.

    Tokens: 0 is blank (behind the last string), 1 the separator, then the symbols. The label at each step is the next
    token. No language of the test occurs in training, nor one twice: two automata count as one if no word tells them
    apart, so merging equivalent states and dropping those out of reach, as the authors do, would change nothing.

    Success is ``nll`` in nats for a token, smaller being better. The paper counts how often the largest logit is a
    symbol that the automaton allows: :func:`clplat.metrics.in_context.validity` with ``legal(e)``, where the separator
    never counts as a question since strings end at random; its total variation distance to the true probabilities is
    :func:`clplat.metrics.in_context.total_variation`, and its n-gram baseline :func:`clplat.metrics.in_context.ngram`.
    Its n-gram heads are an option of every backbone of blocks (``backbone.ngrams=3``).
    Slices: ``symbols`` asks only for steps at which a symbol comes, ``late`` only for the last quarter of those.

    As a stream (domain-incremental) the experiences are

    - alphabets: over ``symbols`` symbols of their own each;
    - states: of ever larger automata, up to ``states`` in the last;
    - same: alike, with fresh automata.

    Published: 12 states, 18 symbols, 20 strings of up to 49 steps, 5,000 training sequences and 500 of the test. The
    defaults are smaller.

    Args:
        experiences: how many.
        stream: how they differ.
        states: largest number of states, at least 4.
        symbols: different symbols, at least 4.
        strings: largest number of strings in a sequence.
        walk: largest length of a string.
        samples: training sequences in an experience.
        test_samples: test sequences in an experience.
    """

    def __init__(
        self,
        seed: int,
        *,
        experiences: int = 2,
        stream: Literal["alphabets", "states", "same"] = "alphabets",
        states: int = 6,
        symbols: int = 6,
        strings: int = 10,
        walk: int = 8,
        samples: int = 1024,
        test_samples: int = 256,
    ) -> None:
        problems = at_least(1, experiences=experiences, walk=walk, samples=samples, test_samples=test_samples)
        problems += [*at_least(4, states=states, symbols=symbols), *at_least(2, strings=strings)]
        if problems:
            raise UsageError(*problems)
        sets = experiences if stream == "alphabets" else 1
        length = strings * (walk + 1) - 1
        self.automata: list[Automata] = []  # of each test experience
        self.offset = [2 + (symbols * e if sets > 1 else 0) for e in range(experiences)]
        known: list[Tensor] = []  # the languages there are so far

        def make(e: int, part: str, n: int, source: Generator) -> TensorData:
            most = max(4, share(states, e, experiences)) if stream == "states" else states
            automata = different(n, most, symbols, 2 * states, known, source)
            if part == "test":
                self.automata.append(automata)
            blocks = torch.arange(n).split(BLOCK)
            tokens_NT = torch.cat([walks(automata.subset(rows), length, strings, walk, source) for rows in blocks])
            tokens_NT = torch.where(tokens_NT > SEPARATOR, tokens_NT + self.offset[e] - 2, tokens_NT)
            x_NT = nnf.pad(tokens_NT[:, :-1], (1, 0), value=SEPARATOR)
            return TensorData(x_NT, torch.where(tokens_NT == BLANK, IGNORED, tokens_NT))

        train, test = streams(seed, "icll-regbench", experiences, samples, test_samples, make)
        size = 2 + sets * symbols
        spec = Spec((length,), size, "domain", encoder="tokens", target="token", vocabulary=size)
        symbol = asked_where(test, lambda x, y: y > SEPARATOR)
        late = asked_where(symbol, lambda x, y: (y >= 0).cumsum(1) > 0.75 * (y >= 0).sum(1, keepdim=True))
        slices = {"symbols": symbol, "late": late}
        super().__init__(replace(spec, metric="nll", direction="min"), train, test, slices=slices)

    def legal(self, e: int) -> Tensor:
        """For each step of test experience e the symbols that the automaton allows next, (N, T, V); none where a
        separator or nothing comes."""
        data, automata = self.test_stream[e].dataset, self.automata[e]
        N, T = data.x.shape
        found_NTV = torch.zeros(N, T, self.spec.classes, dtype=torch.bool)
        state_N, row_N = torch.zeros(N, dtype=torch.long), torch.arange(N)
        first = self.offset[e]
        A = automata.next.shape[2]
        for t in range(T):
            read_N = data.x[:, t]
            moved_N = automata.next[row_N, state_N, (read_N - first).clamp(0, A - 1)]
            state_N = torch.where(read_N > SEPARATOR, moved_N, 0)
            asks_N1 = data.y[:, t, None] > SEPARATOR
            found_NTV[:, t, first : first + A] = automata.edges[row_N, state_N] & asks_N1
        return found_NTV


def random_automata(n: int, states: int, symbols: int, source: Generator) -> Automata:
    """Automata as in :class:`ICLLRegBench`, with 4 to ``states`` states."""

    def random(*shape: int) -> Tensor:
        return torch.rand((n, *shape), generator=source)

    S, A, edges = states, symbols, min(3, symbols)
    count_N = torch.randint(4, S + 1, (n, 1), generator=source)
    alphabet_N = torch.randint(4, A + 1, (n, 1), generator=source)
    degree_NS1 = torch.randint(1, edges + 1, (n, S, 1), generator=source)
    # Symbols that the automaton has, in an order of its own, are those of the smallest numbers.
    rank_NA = random(A).argsort(1).argsort(1)
    symbol_NSE = (random(S, A) + 2 * (rank_NA >= alphabet_N)[:, None]).argsort(2)[..., :edges]
    # Other states likewise: never itself, never one that the automaton does not have.
    barred_NSS = torch.eye(S).expand(n, S, S) + (torch.arange(S) >= count_N)[:, None]
    target_NSE = (random(S, S) + 2 * barred_NSS).argsort(2)[..., :edges]
    target_NSE = torch.where(torch.arange(edges) < degree_NS1, target_NSE, -1)
    return Automata(torch.full((n, S, A), -1).scatter(2, symbol_NSE, target_NSE))


def different(n: int, states: int, symbols: int, rounds: int, known: list[Tensor], source: Generator) -> Automata:
    """``n`` automata of different languages, none of which is among the ``known`` ones, to which they are added."""
    before = torch.cat(known) if known else torch.empty(0, dtype=torch.long)
    found = Automata(torch.empty(0, states, symbols, dtype=torch.long))
    for _ in range(100):
        more = random_automata(n - len(found.next), states, symbols, source)
        every = Automata(torch.cat([found.next, more.next]))
        language_N = every.languages(rounds)
        _, group_N = language_N.unique(return_inverse=True)
        first_G = torch.full((len(language_N),), len(language_N)).scatter_reduce(
            0, group_N, torch.arange(len(language_N)), "amin"
        )
        new_N = (first_G[group_N] == torch.arange(len(language_N))) & ~torch.isin(language_N, before)
        found, language_N = every.subset(new_N.nonzero()[:, 0]), language_N[new_N]
        if len(found.next) == n:
            known.append(language_N)
            return found
    raise UsageError(
        f"scenario.states={states} and scenario.symbols={symbols}: {n} more languages than {len(before)} were not "
        "found; fewer samples need fewer"
    )


def walks(automata: Automata, length: int, strings: int, walk: int, source: Generator) -> Tensor:
    """Strings and separators behind one another, (n, length), blank behind the last; symbol a is 2 + a."""
    n = len(automata.next)
    count_N1 = torch.randint((strings + 1) // 2, strings + 1, (n, 1), generator=source)
    size_NK = torch.randint(1, walk + 1, (n, strings), generator=source) * (torch.arange(strings) < count_N1)
    end_NK = (size_NK + 1).cumsum(1) - 1  # where each string's separator stands
    stops_NT = torch.zeros(n, strings * (walk + 1), dtype=torch.bool).scatter(1, end_NK, True)
    over_N1 = end_NK.gather(1, count_N1 - 1)
    degree_NS = automata.edges.sum(2)
    allowed_NSE = automata.edges.long().argsort(dim=2, descending=True, stable=True)[..., : int(degree_NS.max())]
    chance_NT = torch.rand((n, length), generator=source)
    state_N, row_N = torch.zeros(n, dtype=torch.long), torch.arange(n)
    tokens = []
    for t in range(length):
        edge_N = (chance_NT[:, t] * degree_NS[row_N, state_N]).long()
        symbol_N = allowed_NSE[row_N, state_N, edge_N]
        moved_N = automata.next[row_N, state_N, symbol_N]
        state_N = torch.where(stops_NT[:, t], 0, moved_N)
        token_N = torch.where(stops_NT[:, t], SEPARATOR, 2 + symbol_N)
        tokens.append(torch.where(t < over_N1[:, 0], token_N, BLANK))
    return torch.stack(tokens, 1)


def _behind(next_NSA: Tensor, of_NS: Tensor) -> Tensor:
    """What belongs to the state behind each edge; anything where there is none."""
    n, S, A = next_NSA.shape
    return of_NS.gather(1, next_NSA.clamp(min=0).flatten(1)).reshape(n, S, A)


def _mixed(number: Tensor) -> Tensor:
    """A hash of 64-bit integers, which wrap around (the finaliser of splitmix64)."""
    number = (number ^ ((number >> 30) & 0x3FFFFFFFF)) * -0x40A7B892E31B1A47
    number = (number ^ ((number >> 27) & 0x1FFFFFFFFF)) * -0x6B2FB644ECCEEE15
    return number ^ ((number >> 31) & 0x1FFFFFFFF)
