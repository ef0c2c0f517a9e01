"""Which of two passages came first? Memory for the order of what was read, from the context or from training."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as nnf
from torch import Tensor

from clplat.errors import UsageError
from clplat.metrics.measures import IGNORED
from clplat.randomness import generator
from clplat.scenario import Experience, Scenario, Spec, TensorData, stream
from clplat.scenarios.generated import BLANK, at_least, chosen, evenly

READ, ASK, FIRST, SECOND = 1, 2, 3, 4
WORDS = 5  # the first token that is a book's number, or a word
BINS = ("near", "middle", "far")


class SequenceOrder(Scenario):
    """Sequence order recall: of two segments of a book, say which one came first.

    Pink et al. 2024, Assessing Episodic Memory in LLMs with Sequence Order Recall Tasks (SORT, arXiv 2410.08133), with
    books of random words in place of texts, none twice in a book: no knowledge of language tells the order, and any
    part of a book is in one place of it. The question is ``ASK A B``, A and B being two segments of ``segment`` words
    that do not overlap, all such pairs alike; at its last token FIRST or SECOND is asked: the place in the question of
    the one that came first in the book. Each is right in half of the questions, so chance is 0.5. Where the book is

    - context: in the sample, ``READ words ASK A B``, another book in each;
    - parametric: in the training data alone. Books have numbers; training reads all of an experience, ``writes`` times
      each (``number READ words``, each word asked at the token before it), and asks questions ``number ASK A B`` about
      the first ``taught`` of them; the test asks about the others;
    - none: nowhere. As parametric, but the books of the test are not read: a control that must stay at 0.5.

    Slices of the test by the number of words between A and B, in thirds of the largest there can be: ``near``,
    ``middle``, ``far``. Experience e has words of its own in context, and books of its own otherwise, so forgetting is
    of episodes. Domain-incremental. Tokens: 0 blank, READ, ASK, FIRST, SECOND, numbers of books, words.

    In the paper segments have 20 or 50 words, books are nine novels, and the instruction is in words. Scoring a pair by
    the likelihood of one segment behind the other, without any question in training, is not here.

    Args:
        experiences: how many.
        memory: where the book is.
        books: in an experience, unless they are in the context.
        taught: of these, how many have questions in training.
        length: words in a book.
        segment: words in a segment.
        vocabulary: different words in an experience.
        writes: how often each book is in the training data.
        samples: training questions in an experience.
        test_samples: test questions in an experience.
    """

    def __init__(
        self,
        seed: int,
        *,
        experiences: int = 3,
        memory: Literal["context", "parametric", "none"] = "context",
        books: int = 16,
        taught: int = 8,
        length: int = 16,
        segment: int = 3,
        vocabulary: int = 32,
        writes: int = 4,
        samples: int = 1024,
        test_samples: int = 256,
    ) -> None:
        problems = at_least(1, experiences=experiences, segment=segment, writes=writes, taught=taught)
        problems += at_least(1, samples=samples, test_samples=test_samples)
        if books <= taught:
            problems.append(f"scenario.books={books}: more than scenario.taught={taught} are needed, for the test")
        if length < 2 * segment + len(BINS) - 1:
            problems.append(
                f"scenario.length={length}: two segments of {segment} words at three distances need "
                f"{2 * segment + len(BINS) - 1}"
            )
        if vocabulary < length:
            problems.append(f"scenario.vocabulary={vocabulary}: {length} words are needed, for none is twice in a book")
        if problems:
            raise UsageError(*problems)
        in_context = memory == "context"
        first_word = WORDS if in_context else WORDS + experiences * books
        steps = 2 + length + (2 * segment if in_context else max(0, 2 * segment - length))
        parts: dict[str, list[TensorData]] = {"train": [], "test": []}
        gaps: list[Tensor] = []
        for e in range(experiences):
            source = generator(seed, "sort/books", e)
            if in_context:
                many, first = samples + test_samples, first_word + e * vocabulary
                text_BT = first + chosen(many, vocabulary, length, source)
                head_BT = torch.cat([torch.full((many, 1), READ), text_BT], 1)
                index = {"train": torch.arange(samples), "test": samples + torch.arange(test_samples)}
            else:
                text_BT = first_word + chosen(books, vocabulary, length, source)
                head_BT = WORDS + e * books + torch.arange(books)[:, None]
                index = {
                    "train": evenly(samples, taught, generator(seed, "sort/train", e)),
                    "test": taught + evenly(test_samples, books - taught, generator(seed, "sort/test", e)),
                }
            for name, rows_N in index.items():
                question_NT, answer_N, gap_N = _asked(text_BT[rows_N], segment, generator(seed, f"sort/{name}/ask", e))
                x_NT = torch.cat([head_BT[rows_N], question_NT], 1)
                y_NT = torch.full_like(x_NT, IGNORED)
                y_NT[:, -1] = answer_N
                data = [_padded(x_NT, y_NT, steps)]
                if name == "train" and not in_context:
                    read = slice(0, taught if memory == "none" else books)
                    data = [_read(head_BT[read], text_BT[read], steps)] * writes + data
                x, y = (torch.cat(tensors) for tensors in zip(*data, strict=True))
                parts[name].append(TensorData(x, y))
                if name == "test":
                    gaps.append(gap_N)
        tokens = first_word + vocabulary * (experiences if in_context else 1)
        spec = Spec((steps,), tokens, "domain", encoder="tokens", target="token", vocabulary=tokens)
        test = stream("test", parts["test"])
        slices = _by_distance(test, gaps, length - 2 * segment)
        super().__init__(spec, stream("train", parts["train"]), test, slices=slices)


def _asked(text_NT: Tensor, segment: int, source: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Questions (n, 1 + 2 * segment), answers (n,), and how many words are between the segments (n,)."""
    n, length = text_NT.shape
    free = length - 2 * segment
    pairs_P2 = torch.combinations(torch.arange(free + 1), with_replacement=True)
    start_N2 = pairs_P2[torch.randint(len(pairs_P2), (n,), generator=source)]
    gap_N = start_N2[:, 1] - start_N2[:, 0]
    swapped_N = evenly(n, 2, source)
    start_N2 = start_N2 + torch.tensor([0, segment])
    start_N2 = torch.where(swapped_N[:, None] == 1, start_N2.flip(1), start_N2)
    place_NP = (start_N2[..., None] + torch.arange(segment)).flatten(1)
    question_NT = torch.cat([torch.full((n, 1), ASK), text_NT.gather(1, place_NP)], 1)
    return question_NT, torch.where(swapped_N == 1, SECOND, FIRST), gap_N


def _read(head_B1: Tensor, text_BT: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    x_BT = torch.cat([head_B1, torch.full_like(head_B1, READ), text_BT], 1)
    y_BT = x_BT.roll(-1, 1)
    y_BT[:, 0] = y_BT[:, -1] = IGNORED
    return _padded(x_BT, y_BT, steps)


def _padded(x_NT: Tensor, y_NT: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    beyond = (0, steps - x_NT.shape[1])
    return nnf.pad(x_NT, beyond, value=BLANK), nnf.pad(y_NT, beyond, value=IGNORED)


def _by_distance(test: tuple[Experience, ...], gaps: list[Tensor], largest: int) -> dict[str, tuple[Experience, ...]]:
    """The questions of the test by the words between the segments, those of a bin only; none is left without."""
    found: dict[str, tuple[Experience, ...]] = {}
    for number, name in enumerate(BINS):
        parts = []
        for experience, gap_N in zip(test, gaps, strict=True):
            rows = (gap_N * len(BINS) // (largest + 1) == number).nonzero()[:, 0]
            if not len(rows):
                return {}
            parts.append(experience.dataset.subset(rows))
        found[name] = stream("test", parts)
    return found
