"""In-context recall of the MAD suite: keys and values in one stream, asked whenever a key comes again."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from clplat.errors import UsageError
from clplat.metrics.measures import IGNORED
from clplat.scenario import Scenario, Spec, TensorData
from clplat.scenarios.generated import BLANK, at_least, chosen, in_blocks, share, streams


class MADRecall(Scenario):
    """In-context recall, noisy and fuzzy: a stream of keys and values in which each value of a known key is asked.

    The first three tasks of MAD (Poli et al. 2024, Mechanistic design and scaling of hybrid architectures, arXiv
    2403.17844, section 3.1 and the authors' generators, which go before the text). A sequence is ``k v k v ...``; each
    key is drawn anew from all keys, each has one value within a sequence, and the label where the last token of a key
    stands is its value, if that key was there before. The last pair always is such a repetition. With ``noise`` a pair
    is replaced by tokens of a vocabulary of its own with that probability (noisy recall). With ``motif`` m above 1 a
    key is 1 to m different key tokens in order and a value 1 to m value tokens, all of which are asked, and what is
    left over stands blank in front (fuzzy recall); keys of the test all have m tokens, as there.

    The values are shown after having been asked: the network must be causal. Who knows all but the sequence is right
    once in V/2 times; later tokens of a fuzzy value exclude those before. ``accuracy`` is that of value tokens.

    As a stream (domain-incremental) the experiences are

    - same: alike, with fresh sequences;
    - disjoint: each with keys and values of its own;
    - length: over more and more tokens, up to ``length`` in the last, blank in front;
    - noise: with more and more noise, up to ``noise`` in the last;
    - motif: with longer and longer keys and values, up to ``motif`` in the last.

    Published settings: one experience, V = 16, length 128, 12800 samples for training and 1280 for the test; noisy: 32
    tokens of which 16 are noise, noise 0.2 (also 0.4 to 0.8); fuzzy: motif 3, with 7 keys and 8 values. Harder ones: V
    up to 128, length up to 1024, down to 800 samples. There the next token is asked at each step of training
    (``asked: all``) and repetitions in the test alone; here both, unless chosen otherwise. In the authors' fuzzy task
    the key that is asked last is put in at a drawn place; here it is any that was shown.

    Args:
        experiences: how many.
        stream: how they differ.
        vocabulary: V, key and value tokens of an experience, half of them each.
        length: T, tokens in a sequence.
        motif: m, most tokens in a key and in a value.
        noise: probability that a pair is noise.
        noise_vocabulary: number of different noise tokens.
        asked: what training asks: values of known keys, or every next token. The test asks values.
        samples: training sequences in an experience.
        test_samples: test sequences in an experience.
    """

    def __init__(
        self,
        seed: int,
        *,
        experiences: int = 3,
        stream: Literal["same", "disjoint", "length", "noise", "motif"] = "disjoint",
        vocabulary: int = 16,
        length: int = 32,
        motif: int = 1,
        noise: float = 0.0,
        noise_vocabulary: int = 16,
        asked: Literal["repeats", "all"] = "repeats",
        samples: int = 2048,
        test_samples: int = 256,
    ) -> None:
        problems = at_least(1, experiences=experiences, motif=motif, samples=samples, test_samples=test_samples)
        if not 0 <= noise < 1:
            problems.append(f"scenario.noise={noise}: at least 0 and less than 1")
        if noise > 0:
            problems += at_least(1, noise_vocabulary=noise_vocabulary)
        if stream == "noise" and noise == 0:
            problems.append("scenario.stream=noise needs scenario.noise above 0")
        if vocabulary % 2 or vocabulary < 2 * max(2, motif):
            problems.append(f"scenario.vocabulary={vocabulary}: an even number is needed, {2 * max(2, motif)} at least")
        if not problems:
            shortest = share(length, 0, experiences, 2) if stream == "length" else length
            if shortest < 4 * motif or (motif == 1 and length % 2):
                problems.append(
                    f"scenario.length={length}: an even number is needed, and two pairs of {2 * motif} tokens must fit"
                    + (f" into the {shortest} of the first experience" if stream == "length" else "")
                )
        if problems:
            raise UsageError(*problems)
        pieces = experiences if stream == "disjoint" else 1
        of_noise = (1 + pieces * vocabulary, noise_vocabulary)

        def make(e: int, name: str, n: int, source: torch.Generator) -> TensorData:
            first = 1 + (e * vocabulary if stream == "disjoint" else 0)
            of_keys, of_values = (first, vocabulary // 2), (first + vocabulary // 2, vocabulary // 2)
            ends = share(length, e, experiences, 2) if stream == "length" else length
            tokens = share(motif, e, experiences) if stream == "motif" else motif
            part = noise * (e + 1) / experiences if stream == "noise" else noise
            everything, shortest_key = name == "train" and asked == "all", tokens if name == "test" else 1

            def block(rows: int) -> tuple[Tensor, Tensor]:
                pairs = _pairs(rows, ends, tokens, shortest_key, of_keys, of_values, of_noise, part, source)
                return _written(*pairs, length, everything)

            return TensorData(*in_blocks(n, ends * vocabulary, block))

        spec = Spec(
            (length,),
            1 + pieces * vocabulary + (noise_vocabulary if noise else 0),
            "domain",
            encoder="tokens",
            target="token",
            vocabulary=1 + pieces * vocabulary + (noise_vocabulary if noise else 0),
        )
        super().__init__(spec, *streams(seed, "mad-recall", experiences, samples, test_samples, make))


def _pairs(
    n: int,
    length: int,
    motif: int,
    shortest_key: int,
    keys: tuple[int, int],
    values: tuple[int, int],
    noise_tokens: tuple[int, int],
    noise: float,
    source: torch.Generator,
) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs and noise in order: tokens, which of them exist, and which are asked, each (n, pairs, 2 * motif).

    A pair has room for ``motif`` tokens of a key and as many of a value, of which the first ones exist.

    Args:
        keys, values, noise_tokens: first token and number of each.
    """
    S, last = length // 2 - 1, 2 * motif  # the most pairs that fit, and the room that is kept for the last one

    def draw(tokens: tuple[int, int], shortest: int) -> tuple[Tensor, Tensor]:
        """Motifs (n, S, motif) and how many of their tokens exist (n, S)."""
        drawn = tokens[0] + chosen(n * S, tokens[1], motif, source).reshape(n, S, motif)
        return drawn, torch.randint(shortest, motif + 1, (n, S), generator=source)

    (key_NSM, long_key_NS), (value_NSM, long_value_NS) = draw(keys, shortest_key), draw(values, 1)
    noise_NS = torch.rand((n, S), generator=source) < noise
    always = (length - last) // last  # that many fit whatever their sizes are: one of them is a pair
    noise_NS.scatter_(1, torch.randint(always, (n, 1), generator=source), False)
    step_M = torch.arange(motif)
    radix_M = (keys[1] + 1) ** step_M
    name_NS = (((key_NSM - keys[0] + 1) * (step_M < long_key_NS[..., None])) * radix_M).sum(2)
    name_NS = torch.where(noise_NS, -1 - torch.arange(S), name_NS)  # nothing is like noise
    first_NS = _first_alike(name_NS)
    value_NSM = value_NSM.gather(1, first_NS[..., None].expand(-1, -1, motif))
    long_value_NS = long_value_NS.gather(1, first_NS)
    fits_NS = (long_key_NS + long_value_NS).cumsum(1) <= length - last
    new_NS = first_NS == torch.arange(S)
    # The last pair repeats one that was shown: any of the different keys, all alike.
    known_NS = fits_NS & new_NS & ~noise_NS
    again_N = torch.rand((n, S), generator=source).masked_fill(~known_NS, -1).argmax(1)

    def with_last(part_NS: Tensor) -> Tensor:
        return torch.cat([part_NS, part_NS[torch.arange(n), again_N][:, None]], 1)

    key_NSM, value_NSM = with_last(key_NSM), with_last(value_NSM)
    exists_NSM = [step_M < with_last(long_NS)[..., None] for long_NS in (long_key_NS, long_value_NS)]
    more_N1 = torch.ones(n, 1, dtype=torch.bool)
    fits_NS, noise_NS = torch.cat([fits_NS, more_N1], 1), torch.cat([noise_NS, ~more_N1], 1)
    asked_NS = torch.cat([~new_NS & ~noise_NS[:, :-1], more_N1], 1)
    token_NSL = torch.cat([key_NSM, value_NSM], 2)
    if noise:
        other_NSL = noise_tokens[0] + torch.randint(noise_tokens[1], token_NSL.shape, generator=source)
        token_NSL = torch.where(noise_NS[..., None], other_NSL, token_NSL)
    exists_NSL = torch.cat(exists_NSM, 2) & fits_NS[..., None]
    of_value_L = torch.arange(last) >= motif
    return token_NSL, exists_NSL, exists_NSL & asked_NS[..., None] & of_value_L


def _first_alike(name_NS: Tensor) -> Tensor:
    """For each entry of a row the position of the first one that equals it."""
    in_order_NS, position_NS = name_NS.sort(dim=1, stable=True)
    starts_NS = torch.ones_like(in_order_NS, dtype=torch.bool)
    starts_NS[:, 1:] = in_order_NS[:, 1:] != in_order_NS[:, :-1]
    group_NS = torch.where(starts_NS, torch.arange(name_NS.shape[1]), 0).cummax(1).values
    return torch.empty_like(position_NS).scatter_(1, position_NS, position_NS.gather(1, group_NS))


def _written(
    token_NSL: Tensor, exists_NSL: Tensor, asked_NSL: Tensor, length: int, everything: bool
) -> tuple[Tensor, Tensor]:
    """x and y (n, length): what exists, one after another, ending at the last position; an asked token is the label of
    the position before its own."""
    token_NI, exists_NI, asked_NI = (part.flatten(1) for part in (token_NSL, exists_NSL, asked_NSL))
    rank_NI = exists_NI.cumsum(1)
    if everything:
        asked_NI = exists_NI & (rank_NI > 1)
    position_NI = length - rank_NI[:, -1:] + rank_NI - 1
    beyond = torch.tensor(length)  # where goes what is not written
    x_NT = torch.full((len(token_NI), length + 1), BLANK)
    x_NT.scatter_(1, torch.where(exists_NI, position_NI, beyond), token_NI)
    y_NT = torch.full((len(token_NI), length + 1), IGNORED)
    y_NT.scatter_(1, torch.where(asked_NI, position_NI - 1, beyond), token_NI)
    return x_NT[:, :length], y_NT[:, :length]
