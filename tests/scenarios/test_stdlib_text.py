"""Texts of the Python installation, and what language streams are made of."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter

import pytest
import torch

from clplat import fit
from clplat.backbones.rnn.gru import GRU
from clplat.data import text
from clplat.data.text import Document, Domain
from clplat.errors import MissingError, UsageError
from clplat.scenario import Scenario
from clplat.scenarios import stdlib_text
from clplat.scenarios.stdlib_text import StdlibText
from clplat.settings import TrainerSettings


def joined(scenario: Scenario, e: int) -> dict[str, bytes]:
    """The text of an experience, put together again from its windows."""
    streams = {"train": scenario.train_stream, "valid": scenario.valid_stream, "test": scenario.test_stream}
    return {name: bytes(s[e].dataset.x.flatten().tolist()) for name, s in streams.items() if s}


def test_windows_go_on_and_ask_for_the_next_token() -> None:
    tokens = list(range(1, 24))
    data = text.windows(torch.tensor(tokens), 5)
    assert len(data) == 4  # 22 tokens have a next one
    for i in range(4):
        for t in range(5):
            assert data.x[i, t] == tokens[5 * i + t]
            assert data.y[i, t] == tokens[5 * i + t + 1]
    assert len(text.windows(torch.tensor(tokens[:6]), 5)) == 1
    assert len(text.windows(torch.tensor(tokens[:5]), 5)) == 0


def test_parts_lie_one_behind_the_other_and_share_no_token() -> None:
    parts = text.cut(torch.arange(100), 0.2, 0.1)
    assert torch.equal(torch.cat([parts[name] for name in ("train", "valid", "test")]), torch.arange(100))
    assert [len(parts[name]) for name in ("train", "valid", "test")] == [70, 10, 20]


def test_words_are_numbered_by_the_training_texts() -> None:
    domains = [
        Domain("a", [Document("a", "the cat, the hat\nthe end")], [Document("at", "the dog")]),
        Domain("b", [Document("b", "a cat a")], [Document("bt", "dog cat")]),
    ]
    built = text.language(domains, length=2, level="word", vocabulary=5, test=0.5, validation=0)
    # 3 the, 2 a, 2 cat; all others once
    assert built.spec.classes == built.spec.vocabulary == 5
    numbers = {"the": 2, "a": 3, "cat": 4}
    for domain, experience in zip(["the cat , the hat \n the end \0", "a cat a \0"], built.train_stream, strict=True):
        expected = [0 if w == "\0" else numbers.get(w, 1) for w in domain.split(" ")]
        n = len(experience.dataset)
        assert experience.dataset.x.flatten().tolist() == expected[: 2 * n]
        assert experience.dataset.y.flatten().tolist() == expected[1 : 2 * n + 1]
    assert built.test_stream[0].dataset.x.tolist() == [[2, 1]]  # "dog" is in no training text


def test_text_is_decoded_strictly() -> None:
    assert text.decode(b"\xef\xbb\xbfa\r\nb\rc\n", "f") == "a\nb\nc\n"
    assert text.decode("Wörter".encode("latin-1"), "f", "latin-1") == "Wörter"
    for raw, encoding, message in (
        (b"fine\nW\xf6rter", "utf-8", "f: line 2 is not utf-8"),
        (b"ab\n\nc\0d", "utf-8", "f: line 3 has a byte 0"),
        (b"abc", "utf8x", "no such encoding"),
    ):
        with pytest.raises(UsageError, match=message):
            text.decode(raw, "f", encoding)


@pytest.mark.parametrize("level", ["byte", "word"])
def test_each_domain_is_a_piece_of_what_this_python_says(level: str) -> None:
    from pydoc_data.topics import topics

    made = StdlibText(3, size=9000, level=level, length=16)
    assert made.spec.contiguous
    assert [e.task_label for e in made.train_stream] == [0] * 4
    if level == "byte":
        whole = "".join(f"{topics[name]}\0" for name in made.documents["help"]).encode()
        parts = joined(made, 0)
        assert whole.startswith(parts["train"])
        assert parts["test"] in whole[len(parts["train"]) :]
        assert sum(map(len, parts.values())) > 9000 - 4 * 16
        assert b'"""' not in joined(made, 1)["train"]


def test_source_and_docstrings_are_cut_apart(tmp_path, monkeypatch) -> None:
    code = '"""Of the module."""\nx = 1  # one\n\n\ndef f():\n    """Of f,\n    twice."""\n    return "no docstring"\n'
    (tmp_path / "mod.py").write_text(code, encoding="utf-8")
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "thing.py").write_text("y = 2\n", encoding="utf-8")
    monkeypatch.setattr(stdlib_text.sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    names, read = stdlib_text._source("")
    assert list(names) == ["mod.py"]
    assert read("mod.py") == 'x = 1  # one\n\n\ndef f():\n    return "no docstring"\n'
    _, read = stdlib_text._docstrings("")
    assert read("mod.py") == '"""Of the module."""\n    """Of f,\n    twice."""'
    assert stdlib_text._source("test")[0] == ["test/thing.py"]


def test_what_is_not_there_is_missing_and_not_skipped(tmp_path, monkeypatch) -> None:
    with pytest.raises(MissingError, match=r"only 1\d+ bytes in this installation"):
        StdlibText(0, domains=["licence"], size=10**6)
    paths = {"stdlib": str(tmp_path), "include": str(tmp_path)}
    monkeypatch.setattr(stdlib_text.sysconfig, "get_paths", lambda: paths)
    with pytest.raises(MissingError, match="'headers'; it has those for help, characters") as error:
        StdlibText(0, domains=["help", "headers"])
    assert error.value.exit_code == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"domains": []}, "at least one"),
        ({"domains": ["hlp"]}, "Did you mean 'help'"),
        ({"domains": ["help:email"]}, "form source:NAME"),
        ({"domains": ["source:../x"]}, "form source:NAME"),
        ({"domains": ["help", "help"]}, "twice"),
        ({"domains": ["source", "source:email"]}, "may hold 'source:email'"),
        ({"size": 0}, "scenario.size=0"),
        ({"length": 0}, "scenario.length=0"),
        ({"vocabulary": 2}, "scenario.vocabulary=2"),
        ({"test": 0.6, "validation": 0.4}, "leave something"),
        ({"size": 300}, "help: its test part has 60 tokens, and a window needs 65"),
    ],
)
def test_impossible_options_are_refused(options: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        StdlibText(0, **options)


def test_the_standard_domains_are_there_in_a_bare_interpreter() -> None:
    """No package but the library is needed to read them: only its files count."""
    code = "import pydoc_data.topics, sysconfig, pathlib; print(len(pydoc_data.topics.topics)); "
    code += "print(len(list(pathlib.Path(sysconfig.get_paths()['stdlib']).glob('*.py'))))"
    command = [sys.executable, "-I", "-S", "-c", code]
    topics, modules = map(int, subprocess.run(command, check=True, capture_output=True, text=True).stdout.split())
    assert topics > 50
    assert modules > 100


def test_a_network_learns_the_texts_and_forgets_them_in_bits() -> None:
    made = StdlibText(0, domains=["characters", "help"], size=20000, length=32)
    y = made.train_stream[0].dataset.y.flatten().tolist()
    counts = Counter(y)
    entropy = -sum(n / len(y) * torch.tensor(n / len(y)).log2().item() for n in counts.values())
    assert 3.5 < entropy < 5
    settings = TrainerSettings(max_epochs=3, batch_size=16, progress="none", accelerator="cpu")
    found = fit("naive", made, lambda D: GRU(D, hidden=48), trainer=settings)
    R = found["matrix"]
    assert R[0][0] < entropy  # better than the frequencies of bytes alone
    assert R[1][1] < R[0][1]
    assert R[1][0] > R[0][0] + 0.5  # forgotten: bits, of which 2.0 were measured
