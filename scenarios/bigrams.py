"""Streams of text-like tokens with rules of the language and rules of the sequence: bigrams and triggers."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as nnf
from torch import Generator, Tensor

from clplat.errors import MissingError, UsageError
from clplat.randomness import generator
from clplat.scenario import Scenario, Spec, TensorData
from clplat.scenario import stream as stream_of
from clplat.scenarios.generated import at_least, in_blocks, streams
from clplat.scenarios.symbols import asking, categorical, dirichlet


class BigramTrigger(Scenario):
    """Bigrams of the language, and triggers whose next token is the sequence's own (Bietti et al. 2023, Birth of a
    transformer: a memory viewpoint, arXiv 2306.00802, section 3).

    Each sequence has ``triggers`` trigger tokens and for each an output o_k, drawn uniformly, that holds in this
    sequence alone. x_1 comes from the unigram; then x_{t+1} = o_k if x_t is trigger k, else it follows the language's
    bigram of x_t. The label at each step is the next token. Bigrams get into the weights; outputs can only be known
    from the sequence once the trigger has occurred, which takes an induction head. An output may be a trigger; so a
    sequence can be caught in a loop, and a few loops are in train and in test.

    The authors count bigrams and unigrams in Shakespeare's plays by letter (65 tokens). Here the successors of each
    token are drawn by the seed from Dirichlet(``concentration``, ...), small numbers giving few that are likely, and
    the unigram is where such a chain settles; or both are counted in the characters of a text file, the ``tokens`` most
    frequent ones, others being left out. Tokens: 0 is blank and never occurs; 1 is the most frequent.

    Success is ``nll`` in nats, smaller being better, over all steps. Slices: ``in-context`` asks only behind triggers
    that have occurred before; ``global`` only behind tokens that are none; ``novel`` is as in-context for sequences
    whose outputs are the ``held_out`` rarest tokens, which are no outputs in training.

    As a stream (domain-incremental) the experiences are

    - triggers: with other trigger tokens each, the most frequent first (always the same ones in all of its sequences);
    - random: with triggers that are drawn from the unigram anew in each sequence, so that experiences are alike;
    - language: with bigrams of their own each, and the same numbers as triggers (not for a text).

    :mod:`clplat.metrics.induction` has the paper's small transformer, the weights that solve this by hand, and what its
    matrices recall along training. Published: T = 256, about 5 triggers, batches of 512 fresh sequences.

    Args:
        experiences: how many.
        stream: how they differ.
        tokens: different tokens.
        triggers: in a sequence.
        length: T.
        concentration: of the successors of a token.
        held_out: tokens that are outputs in the slice novel only.
        text: a text file to count in; null draws a language.
        samples: training sequences in an experience.
        test_samples: test sequences in an experience.
    """

    def __init__(
        self,
        seed: int,
        *,
        experiences: int = 2,
        stream: Literal["triggers", "random", "language"] = "triggers",
        tokens: int = 32,
        triggers: int = 2,
        length: int = 64,
        concentration: float = 0.1,
        held_out: int = 4,
        text: str | None = None,
        samples: int = 2048,
        test_samples: int = 256,
    ) -> None:
        problems = at_least(1, experiences=experiences, triggers=triggers, samples=samples, test_samples=test_samples)
        problems += [*at_least(2, length=length), *at_least(1, held_out=held_out)]
        needed = triggers * (experiences if stream == "triggers" else 1)
        if tokens < needed + 1 or tokens < held_out + 2:
            problems.append(
                f"scenario.tokens={tokens}: {needed} triggers and {held_out} outputs that are held out need "
                f"{max(needed + 1, held_out + 2)}"
            )
        if concentration <= 0:
            problems.append(f"scenario.concentration={concentration}: must be positive")
        if text is not None and stream == "language":
            problems.append("scenario.text: it is one language; scenario.stream=language draws several")
        if problems:
            raise UsageError(*problems)
        self.languages: list[tuple[Tensor, Tensor]] = []  # unigram (V,) and bigram (V, V) of each experience
        for e in range(experiences):
            own = e if stream == "language" else 0
            source = generator(seed, "bigram-trigger/language", own)
            language = counted_language(text, tokens) if text else drawn_language(tokens, concentration, source)
            self.languages.append(language)

        common = 0, tokens - held_out
        kinds: list[list[Tensor]] = []  # what the slices of each test experience ask

        def sample(e: int, outputs: tuple[int, int], n: int, source: Generator) -> list[Tensor]:
            """x, y, and where they ask behind a trigger that is known, and behind none."""
            unigram_V, bigram_VV = self.languages[e]
            first = triggers * e if stream == "triggers" else 0

            def block(n: int) -> tuple[Tensor, ...]:
                which_NK = torch.arange(first, first + triggers).expand(n, -1)
                if stream == "random":
                    which_NK = torch.multinomial(unigram_V.expand(n, -1), triggers, False, generator=source)
                output_NK = torch.randint(*outputs, (n, triggers), generator=source)
                says_NV = torch.full((n, tokens), -1).scatter(1, which_NK, output_NK)
                token_NT = sequences(unigram_V, bigram_VV, says_NV, length + 1, source)
                read_NT = token_NT[:, :-1]
                trigger_NT = says_NV.gather(1, read_NT) >= 0
                return 1 + read_NT, token_NT[:, 1:], trigger_NT & _seen_before(read_NT, tokens), ~trigger_NT

            return in_blocks(n, length * tokens, block)

        def make(e: int, part: str, n: int, source: Generator) -> TensorData:
            x_NT, y_NT, *asked = sample(e, common, n, source)
            if part == "test":
                kinds.append(asked)
            return TensorData(x_NT, y_NT)

        train, test = streams(seed, "bigram-trigger", experiences, samples, test_samples, make)
        novel = []
        for e in range(experiences):
            source = generator(seed, "bigram-trigger/novel", e)
            x_NT, y_NT, again_NT, _ = sample(e, (tokens - held_out, tokens), test_samples, source)
            novel.append(asking(TensorData(x_NT, y_NT), again_NT))
        known = [asking(experience.dataset, again_NT) for experience, (again_NT, _) in zip(test, kinds, strict=True)]
        usual = [asking(experience.dataset, free_NT) for experience, (_, free_NT) in zip(test, kinds, strict=True)]
        parts = {"in-context": known, "global": usual, "novel": novel}
        slices = {name: stream_of("test", part) for name, part in parts.items()}
        spec = Spec((length,), tokens, "domain", encoder="tokens", target="token", vocabulary=tokens + 1)
        super().__init__(replace(spec, metric="nll", direction="min"), train, test, slices=slices)


def drawn_language(tokens: int, concentration: float, source: Generator) -> tuple[Tensor, Tensor]:
    """The unigram (V,), falling, and the bigram (V, V) of a language that is drawn."""
    bigram_VV = dirichlet(torch.full((tokens,), concentration), tokens, source)
    bigram_VV = (bigram_VV + 1e-4) / (1 + 1e-4 * tokens)  # every token may follow, so that the chain settles
    unigram_V = torch.linalg.matrix_power(bigram_VV, 2**20)[0]
    order_V = unigram_V.argsort(descending=True, stable=True)
    return unigram_V[order_V] / unigram_V.sum(), bigram_VV[order_V][:, order_V]


def counted_language(path: str, tokens: int) -> tuple[Tensor, Tensor]:
    """The same, counted in the characters of a text."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise MissingError(f"scenario.text={path}: {error}") from None
    frequent = [character for character, _ in Counter(text).most_common(tokens)]
    if len(frequent) < tokens:
        raise UsageError(f"scenario.tokens={tokens}: {path} has only {len(frequent)} different characters")
    number = {character: i for i, character in enumerate(frequent)}
    read = torch.tensor([number[character] for character in text if character in number])
    pairs_VV = torch.bincount(read[:-1] * tokens + read[1:], minlength=tokens**2).reshape(tokens, tokens).double()
    unigram_V = torch.bincount(read, minlength=tokens).double()
    # A character that only ends the text is followed as any other is on average.
    pairs_VV = torch.where(pairs_VV.sum(1, keepdim=True) > 0, pairs_VV, unigram_V)
    return unigram_V / unigram_V.sum(), pairs_VV / pairs_VV.sum(1, keepdim=True)


def sequences(unigram_V: Tensor, bigram_VV: Tensor, says_NV: Tensor, length: int, source: Generator) -> Tensor:
    """Tokens from 0 on, (n, length); see :class:`BigramTrigger`.

    Args:
        says_NV: what each trigger is followed by; -1 for tokens that are none.
    """
    n = len(says_NV)
    tokens = [categorical(unigram_V.expand(n, -1), source)]
    for _ in range(1, length):
        own_N = says_NV.gather(1, tokens[-1][:, None])[:, 0]
        tokens.append(torch.where(own_N >= 0, own_N, categorical(bigram_VV[tokens[-1]], source)))
    return torch.stack(tokens, 1)


def _seen_before(x_NT: Tensor, tokens: int) -> Tensor:
    """Whether the token of each step has occurred before."""
    one_NTV = nnf.one_hot(x_NT, tokens)
    return (one_NTV.cumsum(1) - one_NTV).gather(2, x_NT[..., None])[..., 0] > 0
