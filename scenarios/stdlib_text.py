"""Language modelling over texts that every Python installation carries."""

from __future__ import annotations

import ast
import sysconfig
import unicodedata
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import torch

from clplat.data import text
from clplat.data.text import Document, Domain
from clplat.errors import MissingError, UsageError, suggestion
from clplat.randomness import generator
from clplat.scenario import Scenario

# Parts of the library that are no code of it, or tables for the most part, or not there on every system.
_ASIDE = {"encodings", "idlelib", "lib2to3", "pydoc_data", "test", "tests", "turtledemo"}
_ASIDE |= {"dist-packages", "site-packages"}


class StdlibText(Scenario):
    """Predict the next byte, or word, of real texts that every Python installation carries; no network is needed.

    A sample is a window of ``length`` tokens x_t with the targets y_t = x_(t+1), and goes on where the one before it
    ended (``trainer.carry_state=true`` lets the network remember across windows). Bytes are UTF-8, 0 ends a document;
    words are runs of letters and digits, other marks one by one, and line ends, where 0 ends a document and 1 is any
    word that is not among the ``vocabulary`` most frequent ones of the training texts of all domains.

    An experience is a domain (domain-incremental, no task labels):

    - help: the articles of the language reference that ``help()`` prints: English prose;
    - source: the modules of the standard library, without their docstrings;
    - docstrings: the docstrings alone;
    - characters: the names of Unicode's characters, one in a line, a block of 256 in a document;
    - headers: Python's C headers (on Debian in python3-dev);
    - licence: Python's licence;
    - idle: IDLE's notes and help (on Debian in idle);
    - source:NAME and docstrings:NAME: of one module or package of the library alone, such as source:email, also of
      those that plain source leaves out (encodings, idlelib, lib2to3, test).

    help, source, docstrings and characters are there on every CPython from 3.11 with its library in files, in a virtual
    environment as well. The first ``size`` bytes of a domain's documents in an order by the seed are its text, and the
    last ``test`` of them are held out, a piece of text that training never sees. It is the same text on the same
    Python, and another one on another version: compare runs of one interpreter only. Nothing keeps a text from
    repeating itself (a line of dashes, a licence at the top), so that rarely a window of the test is in training too.

    Success is bits for each byte (for words the perplexity, which is ``vocabulary`` by chance): 8 by chance, 4 to 5 for
    who knows how frequent each byte is in the domain. Forgetting is then in bits.

    Args:
        domains: what the experiences are, in this order.
        level: what a token is.
        length: tokens in a window.
        size: bytes of text in a domain, its test part included.
        vocabulary: number of different tokens, for words.
        test: share at the end of each domain that is kept for testing.
        validation: share before it that is kept for the validation stream.
    """

    def __init__(
        self,
        seed: int,
        *,
        domains: list[str] = ["help", "source", "docstrings", "characters"],  # noqa: B006 - options are read from here
        level: Literal["byte", "word"] = "byte",
        length: int = 64,
        size: int = 40000,
        vocabulary: int = 1000,
        test: float = 0.2,
        validation: float = 0.0,
    ) -> None:
        problems = text.check(length=length, vocabulary=vocabulary, test=test, validation=validation)
        problems += _refused(domains)
        if size < 1:
            problems.append(f"scenario.size={size}: at least one byte is needed")
        if problems:
            raise UsageError(*problems)
        chosen = [_chosen(domain, size, seed) for domain in domains]
        self.documents = {domain.name: [document.name for document in domain.train] for domain in chosen}
        built = text.language(
            chosen, length=length, level=level, vocabulary=vocabulary, test=test, validation=validation
        )
        super().__init__(built.spec, built.train_stream, built.test_stream, built.valid_stream)


def _refused(domains: Sequence[str]) -> list[str]:
    problems = [] if domains else ["scenario.domains: at least one is needed"]
    for i, domain in enumerate(domains):
        kind, colon, part = domain.partition(":")
        if kind not in _KINDS:
            problems.append(f"scenario.domains: there is no domain '{domain}'.{suggestion(kind, _KINDS)}")
        elif colon and (kind not in _BY_NAME or not part.isidentifier()):
            problems.append(f"scenario.domains: '{domain}' is not of the form source:NAME or docstrings:NAME")
        elif domain in domains[:i]:
            problems.append(f"scenario.domains: '{domain}' is there twice")
        elif colon and kind in domains and part not in _ASIDE:
            problems.append(f"scenario.domains: '{kind}' may hold '{domain}', and test texts would be learned from")
    return problems


def _chosen(domain: str, size: int, seed: int) -> Domain:
    """The first ``size`` bytes of a domain's documents, in an order by the seed.

    Raises:
        MissingError: this installation has no such domain, or not as much of it.
    """
    kind, _, part = domain.partition(":")
    names, read = _KINDS[kind](part)
    taken, total = [], 0
    for number in torch.randperm(len(names), generator=generator(seed, f"stdlib-text/{domain}")).tolist():
        content = read(names[number]).encode()[: size - total - 1]
        if content.strip():
            taken.append(Document(names[number], content.decode(errors="ignore")))
            total += len(content) + 1
        if total >= size - 1:
            return Domain(domain, taken)
    if total:
        raise MissingError(f"scenario.size={size}: the domain '{domain}' has only {total} bytes in this installation")
    there = [kind for kind in _KINDS if _KINDS[kind]("")[0]]
    raise MissingError(
        f"this installation of Python has no texts for the domain '{domain}'; it has those for {', '.join(there)}"
    )


Documents = tuple[Sequence[str], Callable[[str], str]]  # names, and what reads the text of one


def _help(part: str) -> Documents:
    try:
        from pydoc_data.topics import topics
    except ImportError:  # a distribution may leave it out
        return (), str
    return sorted(topics), lambda name: topics[name]


def _characters(part: str) -> Documents:
    def read(name: str) -> str:
        codes = range(int(name, 16), int(name, 16) + 256)
        names = [unicodedata.name(chr(code), "") for code in codes]
        # Ideographs are called by their number, which nobody could predict.
        return "".join(f"{own}\n" for code, own in zip(codes, names, strict=True) if own and f"-{code:04X}" not in own)

    blocks = [f"{start:05X}" for start in range(0, 0x20000, 256)]
    return [block for block in blocks if read(block)], read


def _modules(part: str) -> list[str]:
    """Names of the library's source files, of all or of one module or package."""
    library = Path(sysconfig.get_paths()["stdlib"])
    aside = set() if part else _ASIDE
    if part:
        places = [library / f"{part}.py", library / part]
    else:
        places = [path for path in library.glob("*") if path.name not in aside]  # not to walk through site-packages
    files = [path for place in places for path in ([place] if place.suffix == ".py" else place.rglob("*.py"))]
    names = [path.relative_to(library) for path in files if path.is_file()]
    return sorted(name.as_posix() for name in names if not aside & set(name.parts))


def _docstring_lines(source: str) -> list[tuple[int, int]]:
    """First and last line, from 1, of each docstring in a source text."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # such as a backslash that is no escape
        tree = ast.parse(source)
    owners = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found = [
        (node.body[0].lineno, node.body[0].end_lineno or node.body[0].lineno)
        for node in ast.walk(tree)
        if isinstance(node, owners) and ast.get_docstring(node, clean=False) is not None
    ]
    return sorted(found)


def _read_module(name: str) -> str:
    path = Path(sysconfig.get_paths()["stdlib"]) / name
    return text.decode(path.read_bytes(), name, "utf-8")


def _source(part: str) -> Documents:
    def read(name: str) -> str:
        lines = _read_module(name).split("\n")
        for first, last in reversed(_docstring_lines("\n".join(lines))):
            del lines[first - 1 : last]
        return "\n".join(lines)

    return _modules(part), read


def _docstrings(part: str) -> Documents:
    def read(name: str) -> str:
        lines = _read_module(name).split("\n")
        return "\n".join("\n".join(lines[first - 1 : last]) for first, last in _docstring_lines("\n".join(lines)))

    return _modules(part), read


def _plain(folder: str, pattern: str) -> Documents:
    """The text files of a folder."""
    files = {path.name: path for path in sorted(Path(folder).glob(pattern))}
    return list(files), lambda name: text.decode(files[name].read_bytes(), name, "utf-8")


def _headers(part: str) -> Documents:
    return _plain(sysconfig.get_paths()["include"], "**/*.h")


def _licence(part: str) -> Documents:
    return _plain(sysconfig.get_paths()["stdlib"], "LICENSE*")


def _idle(part: str) -> Documents:
    return _plain(f"{sysconfig.get_paths()['stdlib']}/idlelib", "*.txt")


_KINDS: dict[str, Callable[[str], Documents]] = {
    "help": _help,
    "source": _source,
    "docstrings": _docstrings,
    "characters": _characters,
    "headers": _headers,
    "licence": _licence,
    "idle": _idle,
}
_BY_NAME = ("source", "docstrings")
