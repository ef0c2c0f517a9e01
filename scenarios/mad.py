"""Tasks of the MAD suite other than recall: selective copying, compression and memorisation."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from clplat.errors import UsageError
from clplat.metrics.measures import IGNORED
from clplat.randomness import generator
from clplat.scenario import Scenario, Spec, TensorData
from clplat.scenarios.generated import BLANK, at_least, chosen, evenly, in_blocks, share, streams


class MADSelectiveCopy(Scenario):
    """Selective copying: tokens scattered among blanks, to be said in order after a signal.

    MAD (Poli et al. 2024, arXiv 2403.17844, section 3.1 and the authors' generator). A sequence has T - c - 1 positions
    with c tokens among blanks, then the token 1, the signal, then c blanks, at which the labels are the c tokens in
    order. Tokens: 0 blank, 1 the signal, then V of content. Guessing is right once in V times. All sets of c positions
    are equally likely here; the authors' generator puts blanks before tokens drawn evenly, so that the last token
    always stands right before the signal, and draws the places from a generator that the seed does not set.

    As a stream (domain-incremental) the experiences are: same (alike); disjoint (each with content tokens of its own);
    length (over more and more positions, up to ``length``, blank in front); tokens (of more and more, up to
    ``copied``).

    Published settings: one experience, V = 14, length 256 (also 512, 1024), 16 tokens to copy (also 32 to 96), 12800
    samples for training and 1280 for the test.

    Args:
        experiences: how many.
        stream: how they differ.
        vocabulary: V, content tokens of an experience.
        copied: c, tokens to copy.
        length: T, tokens in a sequence.
        samples: training sequences in an experience.
        test_samples: test sequences in an experience.
    """

    def __init__(
        self,
        seed: int,
        *,
        experiences: int = 3,
        stream: Literal["same", "disjoint", "length", "tokens"] = "disjoint",
        vocabulary: int = 14,
        copied: int = 6,
        length: int = 32,
        samples: int = 2048,
        test_samples: int = 256,
    ) -> None:
        problems = at_least(1, experiences=experiences, copied=copied, samples=samples, test_samples=test_samples)
        problems += at_least(2, vocabulary=vocabulary)
        shortest = share(length, 0, experiences) if stream == "length" and not problems else length
        if shortest < 2 * copied + 1:
            problems.append(
                f"scenario.length={length}: {copied} tokens, the signal and as many answers need {2 * copied + 1} "
                "positions" + (f", and the first experience has {shortest}" if stream == "length" else "")
            )
        if problems:
            raise UsageError(*problems)
        pieces = experiences if stream == "disjoint" else 1

        def make(e: int, name: str, n: int, source: torch.Generator) -> TensorData:
            many = share(copied, e, experiences) if stream == "tokens" else copied
            ends = share(length, e, experiences) if stream == "length" else length
            first = 2 + (e * vocabulary if stream == "disjoint" else 0)

            def block(rows: int) -> tuple[Tensor, Tensor]:
                token_NC = first + torch.randint(vocabulary, (rows, many), generator=source)
                place_NC = chosen(rows, ends - many - 1, many, source).sort(1).values
                x_NT = torch.full((rows, length), BLANK)
                x_NT.scatter_(1, length - ends + place_NC, token_NC)
                x_NT[:, length - many - 1] = 1
                y_NT = torch.full((rows, length), IGNORED)
                y_NT[:, length - many :] = token_NC
                return x_NT, y_NT

            return TensorData(*in_blocks(n, 4 * length, block))

        tokens = 2 + pieces * vocabulary
        spec = Spec((length,), tokens, "domain", encoder="tokens", target="token", vocabulary=tokens)
        super().__init__(spec, *streams(seed, "mad-selective-copy", experiences, samples, test_samples, make))


class MADCompression(Scenario):
    """Compression: the whole sequence is to be told from the output at its last position.

    MAD (Poli et al. 2024, arXiv 2403.17844, section 3.1 and the authors' generator). A sequence is T - 1 random content
    tokens and the token 1, which asks. There an MLP with a positional code decodes each token from the last position's
    vector; here the head does so linearly: each of the V = 2^b content tokens has a number of b bits, and at the last
    position all (T - 1) * b bits are asked at once (target ``bits``), that of token t's bit i being output t * b + i.
    So ``accuracy`` is that of bits, 0.5 by guessing, ``sequence_accuracy`` that of whole sequences, and a perfect
    answer needs as many bits in one vector. Tokens: 0 blank, 1 asks, then content. The authors' generator has noise
    whose targets it does not use; there is none here.

    As a stream (domain-incremental) the experiences are: same (alike); disjoint (each with content tokens of its own,
    numbered anew: what must be said is the same, what is heard is not); length (of more and more tokens, up to T, blank
    in front and not asked there).

    Published settings: one experience, 15 content tokens, length 32 (also 64 to 256), 12800 samples for training and
    1280 for the test.

    Args:
        experiences: how many.
        stream: how they differ.
        vocabulary: V, content tokens of an experience, a power of two.
        length: T, tokens in a sequence.
        samples: training sequences in an experience.
        test_samples: test sequences in an experience.
    """

    def __init__(
        self,
        seed: int,
        *,
        experiences: int = 3,
        stream: Literal["same", "disjoint", "length"] = "disjoint",
        vocabulary: int = 16,
        length: int = 16,
        samples: int = 2048,
        test_samples: int = 256,
    ) -> None:
        problems = at_least(1, experiences=experiences, samples=samples, test_samples=test_samples)
        problems += at_least(2 * max(experiences, 1) if stream == "length" else 2, length=length)
        if vocabulary < 2 or vocabulary & (vocabulary - 1):
            problems.append(f"scenario.vocabulary={vocabulary}: a power of two is needed, 2 at least")
        if problems:
            raise UsageError(*problems)
        bits = vocabulary.bit_length() - 1
        pieces = experiences if stream == "disjoint" else 1

        def make(e: int, name: str, n: int, source: torch.Generator) -> TensorData:
            ends = share(length, e, experiences) if stream == "length" else length
            first = 2 + (e * vocabulary if stream == "disjoint" else 0)
            number_NS = torch.randint(vocabulary, (n, ends - 1), generator=source)
            x_NT = torch.full((n, length), BLANK)
            x_NT[:, length - ends : -1] = first + number_NS
            x_NT[:, -1] = 1
            y_NTF = torch.full((n, length, (length - 1) * bits), IGNORED)
            y_NTF[:, -1, (length - ends) * bits :] = ((number_NS[..., None] >> torch.arange(bits)) & 1).flatten(1)
            return TensorData(x_NT, y_NTF)

        spec = Spec(
            (length,),
            (length - 1) * bits,
            "domain",
            encoder="tokens",
            target="bits",
            vocabulary=2 + pieces * vocabulary,
        )
        super().__init__(spec, *streams(seed, "mad-compression", experiences, samples, test_samples, make))


class MADMemorize(Scenario):
    """Memorisation: a fixed map from keys to values that no sequence shows, a new one in each experience.

    MAD (Poli et al. 2024, arXiv 2403.17844, section 3.1 and the authors' generator). A sequence is ``k i k i ...`` with
    keys drawn evenly and the insert token i after each; the label at i is the key's value. The map is one to one, the
    same in train and test, and must get into the weights. Tokens: 0 blank; an insert token for each map; keys; values
    (``pairs`` of each in a map), so guessing among values is right once in ``pairs`` times. :class:`MQARMemorize` asks
    the same at the key itself, with blanks between.

    As a stream (domain-incremental) the experiences are

    - maps: the same keys with new values each, from the same values. The insert token is the experience's own: it says
      which map is meant, so that no input has two answers, and what is known of a key is in the way of what is new;
    - keys: new keys each, with one insert token, and values from the same set.

    Published settings: one experience, 256 tokens (also 512 to 8192) of which 127 are keys and 127 values, length 32,
    256 samples for training and 1280 for the test.

    Args:
        experiences: how many.
        stream: how they differ.
        pairs: keys, each with its value, in a map.
        length: T, tokens in a sequence, even.
        samples: training sequences in an experience.
        test_samples: test sequences in an experience.
    """

    def __init__(
        self,
        seed: int,
        *,
        experiences: int = 3,
        stream: Literal["maps", "keys"] = "maps",
        pairs: int = 32,
        length: int = 32,
        samples: int = 256,
        test_samples: int = 64,
    ) -> None:
        problems = at_least(1, experiences=experiences) + at_least(2, pairs=pairs, length=length)
        if length % 2:
            problems.append(f"scenario.length={length}: an even number is needed")
        if not problems:
            problems += at_least(-(-2 * pairs // length), samples=samples, test_samples=test_samples)  # all are asked
        if problems:
            raise UsageError(*problems)
        inserts, blocks = (experiences, 1) if stream == "maps" else (1, experiences)
        first_key = 1 + inserts
        first_value = first_key + blocks * pairs
        keys = first_key + torch.randperm(blocks * pairs, generator=generator(seed, "mad-memorize/keys"))
        self.maps: list[Tensor] = []  # of each experience: (pairs, 2), keys and their values
        for e in range(experiences):
            values = first_value + torch.randperm(pairs, generator=generator(seed, "mad-memorize/map", e))
            own = keys if stream == "maps" else keys[e * pairs : (e + 1) * pairs]
            self.maps.append(torch.stack([own, values], 1))

        def make(e: int, name: str, n: int, source: torch.Generator) -> TensorData:
            asked_NS2 = self.maps[e][evenly(n * length // 2, pairs, source)].reshape(n, length // 2, 2)
            insert_NS = torch.full((n, length // 2), 1 + (e if stream == "maps" else 0))
            x_NT = torch.stack([asked_NS2[..., 0], insert_NS], 2).flatten(1)
            y_NT = torch.stack([torch.full_like(insert_NS, IGNORED), asked_NS2[..., 1]], 2).flatten(1)
            return TensorData(x_NT, y_NT)

        tokens = first_value + pairs
        spec = Spec((length,), tokens, "domain", encoder="tokens", target="token", vocabulary=tokens)
        super().__init__(spec, *streams(seed, "mad-memorize", experiences, samples, test_samples, make))
