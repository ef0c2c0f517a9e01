"""Associative recall in which the associations must be learnt by heart: they are in no sequence, only in the labels."""

from __future__ import annotations

import torch
from torch import Tensor

from clplat.errors import UsageError
from clplat.metrics.measures import IGNORED
from clplat.randomness import generator
from clplat.scenario import Scenario, Spec, TensorData
from clplat.scenarios.generated import BLANK, at_least, evenly, streams


class MQARMemorize(Scenario):
    """Facts learnt by heart, new ones in each experience: key tokens whose values are asked (domain-incremental).

    The form is that of multi-query associative recall (Arora et al. 2024, Zoology): a query is a key token, and the
    label at its very position is its value, all other labels being -100. What is asked is that of MAD's memorization
    task (Poli et al. 2024): one map from keys to values holds in all sequences of an experience, train and test, and is
    shown in none, so that it has to get into the weights. Experience e has ``pairs`` keys of its own, which occur in no
    other; the values of all experiences come from one common set, so what is learnt next competes with what is known.
    No key ever has two values: a network that knows all of them is right everywhere.

    Tokens: 0 is blank; then experiences * pairs keys; then, with ``context``, 2 * context keys for pairs in context;
    the rest are values. A sequence (T = ``length``) holds ``queries`` keys of the experience at random positions, the
    other positions being blank. With ``context`` it begins with that many pairs (key, value) that are new in each
    sequence, and each of these keys is asked once more later: recall from the state beside recall from the weights.

    In an experience every value is given to the same number of keys (up to one), so who knows the values but not the
    map is right once in ``min(pairs, values)`` times or less. Training and test are different sequences over one map:
    what the test measures is knowledge of the facts, whatever surrounds them.

    Args:
        experiences: how many.
        pairs: keys, each with its value, that an experience adds.
        length: T, tokens in a sequence.
        vocabulary: number of different tokens; the values are what keys and blank leave.
        queries: keys of the experience that are asked in a sequence.
        context: pairs in context in a sequence; 0 for none.
        samples: training sequences in an experience.
        test_samples: test sequences in an experience.
    """

    def __init__(
        self,
        seed: int,
        *,
        experiences: int = 5,
        pairs: int = 32,
        length: int = 32,
        vocabulary: int = 256,
        queries: int = 8,
        context: int = 0,
        samples: int = 1024,
        test_samples: int = 256,
    ) -> None:
        problems = at_least(1, experiences=experiences, pairs=pairs, queries=queries) + at_least(0, context=context)
        first_value = 1 + experiences * pairs + 2 * context
        if not problems:
            if vocabulary < first_value + 2:
                problems.append(
                    f"scenario.vocabulary={vocabulary}: {first_value - 1} keys, a blank and at least two values need "
                    f"{first_value + 2} tokens"
                )
            if length < 3 * context + queries:
                problems.append(
                    f"scenario.length={length}: {queries} queries and {context} pairs in context, which are asked once "
                    f"each, need {3 * context + queries} positions"
                )
            for name, n in (("samples", samples), ("test_samples", test_samples)):
                if n * queries < pairs:
                    problems.append(
                        f"scenario.{name}={n}: {pairs} pairs, {queries} of them asked in a sequence, need "
                        f"{-(-pairs // queries)} sequences to be asked at all"
                    )
        if problems:
            raise UsageError(*problems)
        self.maps: list[Tensor] = []  # of each experience: (pairs, 2), keys and their values
        # Any key token may be in any experience, or its number would tell the experience.
        keys = 1 + torch.randperm(experiences * pairs, generator=generator(seed, "mqar/keys"))
        for e in range(experiences):
            values = first_value + evenly(pairs, vocabulary - first_value, generator(seed, "mqar/map", e))
            self.maps.append(torch.stack([keys[e * pairs : (e + 1) * pairs], values], 1))

        def make(e: int, name: str, n: int, source: torch.Generator) -> TensorData:
            x, y = _queries(self.maps[e], n, length, queries, 3 * context, source)
            if context:
                context_keys = 1 + experiences * pairs, first_value
                _put_context(x, y, context, context_keys, (first_value, vocabulary), source)
            return TensorData(x, y)

        spec = Spec((length,), vocabulary, "domain", encoder="tokens", target="token", vocabulary=vocabulary)
        super().__init__(spec, *streams(seed, "mqar", experiences, samples, test_samples, make))


def _queries(
    pairs: Tensor, n: int, length: int, queries: int, reserved: int, source: torch.Generator
) -> tuple[Tensor, Tensor]:
    """x and y (n, length): ``queries`` keys at random free positions, all keys as often as one another.

    Args:
        pairs: keys and values (pairs, 2).
        reserved: positions that are kept free: the first two thirds of them at the beginning, the others anywhere.
    """
    x_NT = torch.full((n, length), BLANK)
    y_NT = torch.full((n, length), IGNORED)
    start = 2 * reserved // 3
    position_NQ = start + torch.rand(n, length - start, generator=source).argsort(dim=1, stable=True)[:, :queries]
    asked_NQ = pairs[evenly(n * queries, len(pairs), source).reshape(n, queries)]
    x_NT.scatter_(1, position_NQ, asked_NQ[..., 0])
    y_NT.scatter_(1, position_NQ, asked_NQ[..., 1])
    return x_NT, y_NT


def _put_context(
    x_NT: Tensor, y_NT: Tensor, pairs: int, keys: tuple[int, int], values: tuple[int, int], source: torch.Generator
) -> None:
    """Write ``pairs`` new pairs at the beginning of each sequence, and a query of each at a free position behind them.

    Args:
        keys, values: the tokens they are drawn from, as ranges (first, end); keys of a sequence all differ.
    """
    n, start = len(x_NT), 2 * pairs
    key_NP = keys[0] + torch.rand(n, keys[1] - keys[0], generator=source).argsort(dim=1, stable=True)[:, :pairs]
    value_NP = torch.randint(*values, (n, pairs), generator=source)
    x_NT[:, :start] = torch.stack([key_NP, value_NP], 2).flatten(1)
    # Free positions in random order: those in use sort behind all others.
    rank_NT = torch.rand(n, x_NT.shape[1] - start, generator=source) + 2 * (x_NT[:, start:] != BLANK)
    position_NP = start + rank_NT.argsort(dim=1, stable=True)[:, :pairs]
    x_NT.scatter_(1, position_NP, key_NP)
    y_NT.scatter_(1, position_NP, value_NP)
