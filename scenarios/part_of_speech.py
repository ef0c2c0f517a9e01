"""Words whose part of speech can be told by the place they stand in, or known by heart."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Generator, Tensor

from clplat.errors import UsageError
from clplat.metrics.measures import IGNORED
from clplat.scenario import Experience, Scenario, TensorData
from clplat.scenarios.generated import Make, at_least, chosen, in_blocks, streams
from clplat.scenarios.symbols import answered_whole, power_law, within

COPULA, ASKS, WORDS = 0, 1, 2  # tokens; words from there on
Kind = Literal["usual", "held-out", "rare", "switch"]


class PartOfSpeech(Scenario):
    """Adjectives and nouns in two orders, which tell them apart (Anand et al. 2025, Dual Process Learning, ICLR, arXiv
    2406.00053).

    A sample is a sentence of three tokens, ``copula adjective noun`` or ``noun copula adjective`` with equal chance,
    then one of its two words as the query, then three places that ask, T = 7::

        query is the adjective:  adjective adjective adjective
        query is the noun:       adjective noun noun

    A query alone says nothing; what decides is whether it is an adjective, which its place in the sentence tells (in
    context) and which can be known of the word (in weights). Half of the ``words`` are nouns, half adjectives, and
    within each the word of rank r has a probability ~ r^-``exponent``. A share ``ambiguous`` of each, spread over the
    ranks, is of the other part of speech half of the time.

    ``sequence_accuracy`` is judged: all three answers. Slices:

    - ``held-out``: sentences of ``held_out`` words that training never shows. An answer can be such a word only with
      ``learner.head=tied``, and training moves the embedding even of a word that it never shows, away from all answers;
      the probe `novel-tokens` gives them fresh ones;
    - ``rare``: of words of the rarer half alone;
    - ``switch``: nouns in the place of adjectives and the reverse, words drawn as usual without the ambiguous ones;
      right is what the place says;
    - ``switch-by-heart``: the same inputs; right is what the words were in training.

    As a stream (domain-incremental) the experiences have ``words`` words of their own each, or are alike.

    Tokens: 0 is the copula, 1 asks, then words. Checked against the authors' code in form; there V = 10,000 words,
    exponents 1.0001 to 1.5, 10% ambiguous, and a masked encoder, for which any causal network stands here: all that
    answers depend on comes before them.

    Args:
        experiences: how many.
        stream: how they differ.
        words: words in an experience, half of them nouns.
        exponent: of the power law of frequencies; 0 for equal ones.
        ambiguous: share of the words that may be both.
        held_out: words that only the slice held-out has.
        samples: training samples in an experience.
        test_samples: test samples in an experience, and in each of its slices.
    """

    def __init__(
        self,
        seed: int,
        *,
        experiences: int = 3,
        stream: Literal["words", "same"] = "words",
        words: int = 200,
        exponent: float = 1.0,
        ambiguous: float = 0.1,
        held_out: int = 20,
        samples: int = 4096,
        test_samples: int = 512,
    ) -> None:
        problems = at_least(1, experiences=experiences, samples=samples, test_samples=test_samples)
        problems += at_least(2, held_out=held_out) + at_least(4, words=words) + at_least(0, exponent=exponent)
        problems += within(0, 0.5, ambiguous=ambiguous)
        if words % 2:
            problems.append(f"scenario.words={words}: an even number is needed, half of them nouns")
        if problems:
            raise UsageError(*problems)
        alike = stream == "same"
        lexicons = [
            Lexicon(words // 2, held_out, 0 if alike else words * e, exponent, ambiguous) for e in range(experiences)
        ]

        def make(kind: Kind, by_heart: bool = False) -> Make:
            def data(e: int, part: str, n: int, source: Generator) -> TensorData:
                def block(n: int) -> tuple[Tensor, Tensor]:
                    placed_N2, known_N2 = lexicons[e].draw(kind, n, source)
                    return sentences(placed_N2, (known_N2 if by_heart else placed_N2)[:, 0], source)

                return TensorData(*in_blocks(n, 8 + held_out, block))

            return data

        def kept(kind: Kind, by_heart: bool = False) -> tuple[Experience, ...]:
            """The test stream of another kind of sentences."""
            return streams(seed, f"part-of-speech/{kind}", experiences, 1, test_samples, make(kind, by_heart))[1]

        train, test = streams(seed, "part-of-speech", experiences, samples, test_samples, make("usual"))
        slices = {"held-out": kept("held-out"), "rare": kept("rare"), "switch": kept("switch")}
        slices["switch-by-heart"] = kept("switch", by_heart=True)
        super().__init__(answered_whole(7, lexicons[-1].end), train, test, slices=slices)


class Lexicon:
    """The words of an experience as tokens: those kept for the slice come first, then its adjectives, then its nouns.

    Args:
        half: adjectives, and nouns.
        held_out: words that are kept.
        before: words of other experiences.
        exponent: of the power law of frequencies.
        ambiguous: share of the words that may be both.
    """

    def __init__(self, half: int, held_out: int, before: int, exponent: float, ambiguous: float) -> None:
        self.half, self.held_out = half, held_out
        self.first = WORDS + held_out + before
        self.end = self.first + 2 * half
        self.chance_R = power_law(half, exponent)
        self.both_R = ((torch.arange(half) + 1) * ambiguous).floor() > (torch.arange(half) * ambiguous).floor()

    def draw(self, kind: Kind, n: int, source: Generator) -> tuple[Tensor, Tensor]:
        """Adjectives and nouns, (n, 2): by their places in the sentence, and as they are known."""
        if kind == "held-out":
            word_N2 = WORDS + chosen(n, self.held_out, 2, source)
            return word_N2, word_N2
        part_2, chance_R = torch.tensor([0, 1]), self.chance_R
        if kind == "rare":
            chance_R = (torch.arange(self.half) >= self.half // 2).double()
        if kind == "switch":
            chance_R = chance_R * ~self.both_R
        rank_N2 = torch.multinomial(chance_R, 2 * n, True, generator=source).reshape(n, 2)
        word_N2 = self.first + part_2 * self.half + rank_N2
        if kind == "switch":
            return word_N2.flip(1), word_N2
        if kind == "usual":
            other_N2 = self.both_R[rank_N2] & (torch.rand((n, 2), generator=source) < 0.5)
            changed_N2 = self.first + (part_2 ^ other_N2.long()) * self.half + rank_N2
            same_N1 = changed_N2[:, :1] == changed_N2[:, 1:]  # one word cannot be both in one sentence
            word_N2 = torch.where(same_N1, word_N2, changed_N2)
        return word_N2, word_N2


def sentences(placed_N2: Tensor, right_N: Tensor, source: Generator) -> tuple[Tensor, Tensor]:
    """x and y (n, 7) with a word in the place of an adjective and of a noun each; see :class:`PartOfSpeech`.

    Args:
        right_N: the one of them that counts as the adjective.
    """
    n = len(placed_N2)
    copula_N = torch.full((n,), COPULA)
    adjective_N, noun_N = placed_N2.unbind(1)
    one_N3, other_N3 = (torch.stack(s, 1) for s in ((copula_N, adjective_N, noun_N), (noun_N, copula_N, adjective_N)))
    sentence_N3 = torch.where(torch.rand((n, 1), generator=source) < 0.5, one_N3, other_N3)
    query_N1 = placed_N2.gather(1, torch.randint(2, (n, 1), generator=source))
    x_NT = torch.cat([sentence_N3, query_N1, torch.full((n, 3), ASKS)], 1)
    y_NT = torch.cat([torch.full((n, 4), IGNORED), right_N[:, None], query_N1, query_N1], 1)
    return x_NT, y_NT
