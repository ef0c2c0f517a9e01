"""The Children's Book Test, from small files in the format of the authors' archive."""

from __future__ import annotations

from pathlib import Path

import pytest

from clplat import registry
from clplat.errors import MissingError, UsageError
from clplat.scenario import Scenario
from clplat.scenarios.cbt import FILES
from tests.scenarios.streams import two_steps

NAMES = ("Alice", "Bill", "Cat", "Dinah", "Edwin", "Fury", "Gryphon", "Hatta", "Jack", "King")


def question(number: int) -> tuple[list[str], str]:
    """The lines of a question, and its answer, which is in the third sentence."""
    answer = NAMES[number % 10]
    lines = [f"{i} the word no{number} came in sentence s{i} ." for i in range(1, 21)]
    lines[2] = f"3 it was {answer} who spoke ."
    candidates = "|".join(NAMES[(number + k) % 10] for k in range(3, 13))
    return [*lines, f"21 `` Well , '' said XXXXX at last .\t{answer}\t\t{candidates}"], answer


def write(folder: Path, kinds: tuple[str, ...], each: int = 12) -> None:
    folder.mkdir(parents=True)
    for kind in kinds:
        for part, name in enumerate(FILES.values()):
            texts = ["\n".join(question(100 * part + n)[0]) for n in range(each)]
            (folder / name.format(kind)).write_text("\n\n".join(texts) + "\n\n", encoding="utf-8")


def cbt(root: Path, **options: object) -> Scenario:
    return registry.find("scenario", "cbt").build(0, root=str(root), **options)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write(tmp_path / "CBTest" / "data", ("NE", "V"))
    return tmp_path


def test_the_class_is_the_place_of_the_answer_among_the_last_ten(root: Path) -> None:
    scenario = cbt(root, words=["NE", "V"], length=200)
    assert scenario.spec.shape == (200,)
    assert [len(scenario.train_stream), len(scenario.test_stream), len(scenario.valid_stream)] == [2, 2, 2]
    orders = set()
    for stream in (scenario.train_stream, scenario.test_stream):
        for experience in stream:
            data = experience.dataset
            for x, y in zip(data.x.tolist(), data.y.tolist(), strict=True):
                words = [token for token in x if token]
                assert len(words) == 19 * 8 + 6 + 9 + 10  # what the lines hold, without their numbers
                assert x[: 200 - len(words)] == [0] * (200 - len(words))
                named = words[2 * 8 + 2]  # "it was NAME"
                assert words[-10:].count(named) == 1
                assert words[-10:][y] == named != 1
                orders.add(y)
    assert len(orders) > 5


def test_a_long_context_keeps_its_end(root: Path) -> None:
    whole, short = (cbt(root, words=["V"], length=n).train_stream[0].dataset for n in (300, 40))
    assert whole.x[:, -40:].tolist() == short.x.tolist()
    assert whole.y.tolist() == short.y.tolist()


def test_rare_words_share_a_token_and_questions_can_be_drawn(root: Path) -> None:
    scenario = cbt(root, words=["NE"], vocabulary=12, samples=5, test_samples=3)
    assert scenario.spec.vocabulary == 12
    sizes = [len(getattr(scenario, name)[0].dataset) for name in ("train_stream", "valid_stream", "test_stream")]
    assert sizes == [5, 3, 3]
    everything = {row.numpy().tobytes() for row in cbt(root, words=["NE"]).train_stream[0].dataset.x[:, :-10]}
    assert len(everything) == 12


def test_a_network_trains_on_it(root: Path) -> None:
    assert len(two_steps(cbt(root, words=["NE", "V"], length=64))["matrix"]) == 2


def test_what_is_not_there_is_named(root: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"CBTest\.tgz.*cbtest_NE_train\.txt"):
        cbt(tmp_path / "elsewhere")
    with pytest.raises(MissingError, match=r"cbtest_CN_train.txt, .* is missing"):
        cbt(root, words=["NE", "CN"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("5 the", "6 the"), "line 5 should begin with 5"),
        (("XXXXX", "Jack"), "line 21 should have a sentence with XXXXX"),
        (("|", ","), "10 candidates"),
        (("\t\t", " "), "line 21"),
    ],
)
def test_another_format_is_refused_with_its_line(root: Path, change: tuple[str, str], message: str) -> None:
    path = root / "CBTest" / "data" / "cbtest_V_train.txt"
    path.write_text(path.read_text(encoding="utf-8").replace(*change), encoding="utf-8")
    with pytest.raises(UsageError, match=message):
        cbt(root, words=["V"])


def test_nonsense_is_refused(root: Path) -> None:
    path = root / "CBTest" / "data" / "cbtest_V_train.txt"
    path.write_text("\n".join(question(0)[0][:9]), encoding="utf-8")
    with pytest.raises(UsageError, match="ends before a question does"):
        cbt(root, words=["V"])
    with pytest.raises(UsageError) as error:
        cbt(root, words=["V", "V"], length=10, vocabulary=2, samples=0)
    words = ("words=V,V", "length=10", "vocabulary=2", "samples=0")
    assert all(word in str(error.value) for word in words)
