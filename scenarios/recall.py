"""Multi-query associative recall: pairs are shown in a sequence and asked later in it."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as nnf
from torch import Tensor

from clplat.errors import UsageError
from clplat.metrics.measures import IGNORED
from clplat.scenario import Scenario, Spec, TensorData
from clplat.scenarios.generated import BLANK, share, streams

BLOCK = 4096  # sequences that are made at once


class MQAR(Scenario):
    """Multi-query associative recall in context (Arora et al. 2024, Zoology, arXiv 2312.04927, section 3): keys and
    values in a sequence, then the keys again; the label at such a query is the key's value.

    A sequence is ``k_1 v_1 ... k_P v_P`` and then T - 2P positions. Each key is asked once, at one of the even ones
    among these, drawn without replacement with probability ``~ slot^(power - 1)``, so that near slots are favoured as
    in the authors' generator; all labels elsewhere are -100. Tokens: 0 is blank; keys are 1 to V/2 - 1, values V/2 to
    V - 1, both without repetition in a sequence. Who does not look at the pairs is right once in V/2 times. All other
    positions are blank, or with ``noise`` value tokens, never keys.

    As a stream (domain-incremental) the experiences are

    - same: alike, with fresh sequences;
    - disjoint: each with keys and values of its own;
    - pairs: of more and more pairs, up to ``pairs`` in the last;
    - length: over more and more positions, up to ``length`` in the last, blank behind;
    - updated: with some keys shown a second time with another value, behind all pairs, which is then the answer;
      one more such key in each experience (the forgetting variant of the same authors' code).

    Args:
        experiences: how many.
        stream: how they differ.
        pairs: P.
        length: T, tokens in a sequence.
        vocabulary: V, number of different tokens, even.
        power: how near to the pairs queries are; 1 spreads them evenly.
        noise: put value tokens where nothing is asked.
        samples: training sequences in an experience.
        test_samples: test sequences in an experience.
    """

    def __init__(
        self,
        seed: int,
        *,
        experiences: int = 3,
        stream: Literal["same", "disjoint", "pairs", "length", "updated"] = "disjoint",
        pairs: int = 8,
        length: int = 32,
        vocabulary: int = 128,
        power: float = 0.01,
        noise: bool = False,
        samples: int = 2048,
        test_samples: int = 256,
    ) -> None:
        pieces = experiences if stream == "disjoint" else 1
        most = pairs + (experiences - 1 if stream == "updated" else 0)
        problems = []
        if experiences < 1 or pairs < 1:
            problems.append(f"scenario.experiences={experiences} and scenario.pairs={pairs}: at least one is needed")
        elif vocabulary % 2 or (vocabulary // 2 - 1) // pieces < pairs:
            problems.append(
                f"scenario.vocabulary={vocabulary}: an even number is needed, with {pieces * pairs} keys in one "
                f"half, so {2 * (pieces * pairs + 1)} at least"
            )
        if power <= 0:
            problems.append(f"scenario.power={power}: must be positive")
        shortest = share(length, 0, experiences, 2) if stream == "length" else length
        if stream == "updated" and experiences - 1 > pairs:
            problems.append(f"scenario.experiences={experiences}: only {pairs} keys can be shown a second time")
        if shortest < 2 * most + 2 * pairs:
            problems.append(
                f"scenario.length={length}: {most} pairs and {pairs} queries need {2 * most + 2 * pairs} positions"
                + (f", and the first experience has {shortest}" if stream == "length" else "")
            )
        if min(samples, test_samples) < 1:
            problems.append("scenario.samples and scenario.test_samples: at least one is needed")
        if problems:
            raise UsageError(*problems)
        half = vocabulary // 2
        own = (half - 1) // pieces

        def make(e: int, name: str, n: int, source: torch.Generator) -> TensorData:
            piece = e if stream == "disjoint" else 0
            of_keys, of_values = (1 + piece * own, own), (half + piece * own, own)
            shown = share(pairs, e, experiences, 2) if stream == "pairs" else pairs
            ends = share(length, e, experiences, 2) if stream == "length" else length
            again = e if stream == "updated" else 0
            blocks = [
                _sequences(min(BLOCK, n - start), shown, again, ends, of_keys, of_values, power, noise, source)
                for start in range(0, n, BLOCK)
            ]
            x_NT, y_NT = (torch.cat(tensors) for tensors in zip(*blocks, strict=True))
            beyond = (0, length - ends)
            return TensorData(nnf.pad(x_NT, beyond, value=BLANK), nnf.pad(y_NT, beyond, value=IGNORED))

        spec = Spec((length,), vocabulary, "domain", encoder="tokens", target="token", vocabulary=vocabulary)
        super().__init__(spec, *streams(seed, "mqar", experiences, samples, test_samples, make))


def _sequences(
    n: int,
    pairs: int,
    again: int,
    length: int,
    keys: tuple[int, int],
    values: tuple[int, int],
    power: float,
    noise: bool,
    source: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """x and y (n, length).

    Args:
        again: how many of the keys are shown a second time.
        keys, values: first token and number of each.
    """

    def draw(tokens: tuple[int, int]) -> Tensor:
        """A token for each pair of each sequence, without repetition, (n, pairs)."""
        return tokens[0] + torch.rand((n, tokens[1]), generator=source).topk(pairs, 1).indices

    keys_NP, values_NP = draw(keys), draw(values)
    shown_NS = torch.stack([keys_NP, values_NP], 2).flatten(1)
    if again:
        which_NA = torch.rand((n, pairs), generator=source).topk(again, 1).indices
        # another value: any of the others, so that nobody can tell which keys come again
        steps_NA = torch.randint(1, values[1], (n, again), generator=source)
        new_NA = values[0] + (values_NP.gather(1, which_NA) - values[0] + steps_NA) % values[1]
        shown_NS = torch.cat([shown_NS, torch.stack([keys_NP.gather(1, which_NA), new_NA], 2).flatten(1)], 1)
        values_NP = values_NP.scatter(1, which_NA, new_NA)
    slots = (length - shown_NS.shape[1]) // 2
    logit_S = (power - 1) * torch.arange(1, slots + 1, dtype=torch.float64).log()
    gumbel_NS = -torch.rand((n, slots), generator=source, dtype=torch.float64).clamp(min=1e-300).log().neg().log()
    slot_NP = (logit_S + gumbel_NS).topk(pairs, 1).indices  # a draw without replacement; any key goes to any of them
    slot_NP = slot_NP.gather(1, torch.rand((n, pairs), generator=source).argsort(1))
    position_NP = shown_NS.shape[1] + 2 * slot_NP
    if noise:
        x_NT = values[0] + torch.randint(values[1], (n, length), generator=source)
    else:
        x_NT = torch.full((n, length), BLANK)
    x_NT[:, : shown_NS.shape[1]] = shown_NS
    x_NT.scatter_(1, position_NP, keys_NP)
    y_NT = torch.full((n, length), IGNORED).scatter_(1, position_NP, values_NP)
    return x_NT, y_NT
