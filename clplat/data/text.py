"""Language modelling over texts: bytes or words, in windows that go on from one another."""

from __future__ import annotations

import codecs
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from clplat.errors import UsageError
from clplat.scenario import Scenario, Spec, TensorData, stream

Level = Literal["byte", "word"]
END = 0  # the token that ends a document; no text has a byte 0
UNKNOWN = 1  # any word that has no token of its own
Text = TypeVar("Text", Tensor, list[str])
_WORD = re.compile(r"\w+|[^\w\s]|\n")


@dataclass(frozen=True)
class Document:
    """A text, and what to call it in an error."""

    name: str
    text: str


@dataclass(frozen=True)
class Domain:
    """The documents of an experience.

    Args:
        name: what to call it.
        train: to learn from; where ``test`` is empty, also to cut the tail off that is tested.
        test, valid: documents that were set apart.
    """

    name: str
    train: Sequence[Document]
    test: Sequence[Document] = ()
    valid: Sequence[Document] = ()


def decode(raw: bytes, name: str, encoding: str = "utf-8") -> str:
    """A text without byte-order mark, its lines ended by a newline alone.

    Raises:
        UsageError: these bytes are no text in this encoding; the message says where.
    """
    if encoding.replace("_", "-").lower() in ("utf-8", "utf8"):
        encoding = "utf-8-sig"
    try:
        text = raw.decode(encoding)
    except LookupError:
        raise UsageError(f"scenario.encoding={encoding}: there is no such encoding") from None
    except UnicodeError as error:
        line = 1 + (raw[: error.start].count(b"\n") if isinstance(error, UnicodeDecodeError) else 0)
        likely = "utf-16" if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "latin-1"
        raise UsageError(
            f"{name}: line {line} is not {encoding.removesuffix('-sig')}; try scenario.encoding={likely}"
        ) from None
    if "\0" in text:
        line = 1 + text[: text.index("\0")].count("\n")
        raise UsageError(f"{name}: line {line} has a byte 0, so this is no text (or scenario.encoding is another)")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def in_bytes(documents: Sequence[Document]) -> Tensor:
    """The bytes (UTF-8) of documents, each ended by :data:`END`."""
    text = "".join(f"{document.text}\0" for document in documents)
    return torch.tensor(bytearray(text.encode()), dtype=torch.long)


def in_words(documents: Sequence[Document]) -> list[str]:
    """Words, marks one by one, and line ends of documents, each ended by a byte 0; other white space is left out."""
    return [word for document in documents for word in (*_WORD.findall(document.text), "\0")]


def numbering(texts: Iterable[Sequence[str]], vocabulary: int) -> dict[str, int]:
    """A token for each of the most frequent words, so that there are ``vocabulary`` tokens at most."""
    counts = Counter(word for text in texts for word in text if word != "\0")
    kept = sorted(counts, key=lambda word: (-counts[word], word))[: vocabulary - 2]
    return {"\0": END, **{word: number for number, word in enumerate(kept, UNKNOWN + 1)}}


def windows(tokens: Tensor, length: int) -> TensorData:
    """Windows that follow one another without a gap, the target being the next token; what is left over at the end
    makes no window."""
    n = max(0, (len(tokens) - 1) // length)
    return TensorData(tokens[: n * length].reshape(n, length), tokens[1 : n * length + 1].reshape(n, length))


def cut(text: Text, test: float, validation: float) -> dict[str, Text]:
    """Train, valid and test, one behind the other; no token of one is a target in another."""
    n_test, n_valid = round(test * len(text)), round(validation * len(text))
    first = len(text) - n_valid - n_test
    return {"train": text[:first], "valid": text[first : first + n_valid], "test": text[first + n_valid :]}


def check(*, length: int, vocabulary: int, test: float, validation: float) -> list[str]:
    """What is wrong with the options of a language stream."""
    problems = []
    if length < 1:
        problems.append(f"scenario.length={length}: at least one is needed")
    if vocabulary < 3:
        problems.append(f"scenario.vocabulary={vocabulary}: at least 3 are needed, of which one stands for other words")
    if not 0 < test < 1 or not 0 <= validation < 1 or test + validation >= 1:
        problems.append(
            f"scenario.test={test} and scenario.validation={validation}: shares between 0 and 1 that leave something "
            "to train on are needed"
        )
    return problems


def language(
    domains: Sequence[Domain], *, length: int, level: Level, vocabulary: int, test: float, validation: float
) -> Scenario:
    """A stream whose experiences are domains of text.

    Args:
        length: tokens in a window.
        level: what a token is.
        vocabulary: number of different tokens, for words.
        test, validation: the shares at the end of a domain that are set apart, where it has no documents for that.

    Raises:
        UsageError: a domain is too short for a window; names all that are.
    """
    symbols = in_bytes if level == "byte" else in_words
    parts = [_parts(domain, symbols, test, validation) for domain in domains]
    tokens = 256
    if level == "word":
        # The words of all domains have a place in the output from the start; test texts have no say in it.
        numbers = numbering((own["train"] for own in parts), vocabulary)
        tokens = UNKNOWN + len(numbers)
        parts = [
            {name: torch.tensor([numbers.get(word, UNKNOWN) for word in text]) for name, text in own.items()}
            for own in parts
        ]
    names = ["train", "test", *(["valid"] if validation or any(domain.valid for domain in domains) else [])]
    streams = {name: [windows(own[name], length) for own in parts] for name in names}
    problems = [
        f"{domain.name}: its {name} part has {len(own[name])} tokens, and a window needs {length + 1}"
        for domain, own in zip(domains, parts, strict=True)
        for name in names
        if len(own[name]) <= length
    ]
    if problems:
        raise UsageError(*problems)
    made = {name: stream(name, data) for name, data in streams.items()}
    spec = Spec(
        (length,),
        tokens,
        "domain",
        contiguous=True,
        encoder="tokens",
        target="token",
        vocabulary=tokens,
        metric="bits" if level == "byte" else "perplexity",
        direction="min",
    )
    return Scenario(spec, made["train"], made["test"], made.get("valid", ()))


def _parts(
    domain: Domain, symbols: Callable[[Sequence[Document]], Any], test: float, validation: float
) -> dict[str, Any]:
    found = cut(symbols(domain.train), 0.0 if domain.test else test, 0.0 if domain.valid else validation)
    own = {"test": domain.test, "valid": domain.valid}
    return found | {name: symbols(documents) for name, documents in own.items() if documents}
