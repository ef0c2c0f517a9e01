"""Access to what was learnt by heart: whole passages from their beginning, or a sentence from their middle."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as nnf
from torch import Tensor

from clplat.errors import UsageError
from clplat.metrics.measures import IGNORED
from clplat.randomness import generator
from clplat.scenario import Scenario, TensorData, stream
from clplat.scenarios.generated import BLANK, at_least
from clplat.scenarios.symbols import answered_whole

Part = tuple[Tensor, bool]  # tokens (n, k), and whether they must be said


class RandomMemoryAccess(Scenario):
    """Passages with a number, learnt by heart; asked is a passage by its number, or one sentence of it.

    Zhu et al. 2024, Beyond memorization: the challenge of random memory access in language models (ACL, arXiv
    2403.07805): what a language model wrote into its weights it recites from the start, but hardly from the middle. A
    passage is ``sentences`` sentences of ``words`` random words, so that nothing but memory helps. All samples are
    read token by token, and each token of an answer is asked at the position before it:

    - writing: ``id READ s_1 ... s_m``, all of the passage asked;
    - direct access: ``id j s_j``, the sentence asked;
    - recited access: ``id j s_1 ... s_m j s_j``, all asked behind the question: the passage first, then the sentence;
    - access in context (a control): ``id READ s_1 ... s_m j s_j``, the last sentence asked, the passage being given.

    Training writes all passages of an experience, ``writes`` times each, and shows ``access`` to every sentence of the
    first ``taught`` ones; the test asks the others, which were only written: their sentences in the same way
    (``asks: sentence``), or the whole (``asks: passage``; these are samples of the training itself, since what is
    measured is memory of them). Both tests belong to the same training, so two runs with one seed differ in the test
    alone, and the gap between them is what random access costs. With ``permuted`` each passage is also written that
    many times with its sentences in random order, ``id READ j s_j k s_k ...``, the sentences asked.

    ``sequence_accuracy`` is the main measure: all tokens are right given the right ones before them exactly when greedy
    decoding gives the whole answer. Guessing is right once in ``vocabulary`` words, never in a sentence.

    Experience e has passages (and numbers) of its own: forgetting is of old passages, by either access.
    Domain-incremental. Tokens: 0 blank; READ; sentence numbers; passage numbers; words.

    Measured on small networks: a GRU recites all passages that were only written (1.0), and of their sentences the
    first ones alone (a third, with three in a passage), which are at the start. A transformer of two layers answers in
    context (0.97), with 130 passages taught. That recitation closes the gap (the paper's finding on GPT-2) did not show
    at this size: 0.88 to 1.0 of the passage's tokens are recited, but the sentence is not taken from them (0.1 exact).

    Assumed: sizes (the paper's passages are texts of SQuAD, its questions in words), random words, and how sentences
    are marked in a permuted writing. Questions that need a span, and questions on open domains, are not here.

    Args:
        experiences: how many.
        passages: in an experience.
        taught: of these, how many have their sentences asked in training.
        sentences: m, in a passage.
        words: in a sentence.
        vocabulary: different words.
        access: how a sentence is asked, in training and test.
        asks: what the test asks: sentences or whole passages.
        writes: how often each passage is in the training data.
        permuted: further writings of each, with the sentences in random order.
    """

    def __init__(
        self,
        seed: int,
        *,
        experiences: int = 3,
        passages: int = 16,
        taught: int = 8,
        sentences: int = 5,
        words: int = 4,
        vocabulary: int = 16,
        access: Literal["direct", "recited", "context"] = "direct",
        asks: Literal["sentence", "passage"] = "sentence",
        writes: int = 4,
        permuted: int = 0,
    ) -> None:
        problems = at_least(1, experiences=experiences, sentences=sentences, words=words, writes=writes)
        problems += at_least(0, taught=taught, permuted=permuted) + at_least(2, vocabulary=vocabulary)
        if passages <= taught:
            problems.append(
                f"scenario.passages={passages}: more than scenario.taught={taught} are needed, for the test"
            )
        if problems:
            raise UsageError(*problems)
        first_id = 2 + sentences
        first_word = first_id + experiences * passages
        length = 2 + sentences * words + max(1 + words if access != "direct" else 0, sentences if permuted else 0)
        train, test = [], []
        for e in range(experiences):
            source = generator(seed, "random-memory-access", e)
            text_PSW = first_word + torch.randint(vocabulary, (passages, sentences, words), generator=source)
            id_P = first_id + e * passages + torch.arange(passages)
            rows = [_written(id_P, text_PSW)] * writes
            rows += [_permuted(id_P, text_PSW, source) for _ in range(permuted)]
            rows.append(_accessed(id_P[:taught], text_PSW[:taught], access))
            train.append(_samples(rows, length))
            asked = id_P[taught:], text_PSW[taught:]
            test.append(_samples([_written(*asked) if asks == "passage" else _accessed(*asked, access)], length))
        tokens = first_word + vocabulary
        spec = answered_whole(length, tokens)
        super().__init__(spec, stream("train", train), stream("test", test))


def _written(id_P: Tensor, text_PSW: Tensor) -> list[Part]:
    return [(torch.stack([id_P, torch.ones_like(id_P)], 1), False), (text_PSW.flatten(1), True)]


def _permuted(id_P: Tensor, text_PSW: Tensor, source: torch.Generator) -> list[Part]:
    order_PS = torch.rand(text_PSW.shape[:2], generator=source).argsort(1)
    parts = _written(id_P, text_PSW)[:1]
    for number_P in order_PS.T:
        parts += [(2 + number_P[:, None], False), (text_PSW[torch.arange(len(id_P)), number_P], True)]
    return parts


def _accessed(id_P: Tensor, text_PSW: Tensor, access: str) -> list[Part]:
    """A row for each sentence of each passage."""
    P, S, _ = text_PSW.shape
    number = torch.arange(S).repeat(P)[:, None]
    head, (begin, passage) = id_P.repeat_interleave(S)[:, None], _repeated(_written(id_P, text_PSW), S)
    sentence = (text_PSW.flatten(0, 1), True)
    if access == "direct":
        return [(torch.cat([head, 2 + number], 1), False), sentence]
    if access == "recited":
        return [(torch.cat([head, 2 + number], 1), False), passage, (2 + number, True), sentence]
    return [begin, (passage[0], False), (2 + number, False), sentence]


def _repeated(parts: list[Part], times: int) -> list[Part]:
    return [(tokens.repeat_interleave(times, 0), asked) for tokens, asked in parts]


def _samples(rows: list[list[Part]], length: int) -> TensorData:
    """Samples from rows in parts: what is asked is the label of the position before it; blank behind."""
    x, y = [], []
    for parts in rows:
        x_NT = torch.cat([tokens for tokens, _ in parts], 1)
        asked_T = torch.cat([torch.full((tokens.shape[1],), asked) for tokens, asked in parts])
        y_NT = torch.where(asked_T, x_NT, IGNORED).roll(-1, 1)  # the first token of a sample is never asked
        beyond = (0, length - x_NT.shape[1])
        x.append(nnf.pad(x_NT, beyond, value=BLANK))
        y.append(nnf.pad(y_NT, beyond, value=IGNORED))
    return TensorData(torch.cat(x), torch.cat(y))
