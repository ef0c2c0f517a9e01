"""Which files make which experience."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from clplat.data import folders
from clplat.errors import MissingError, UsageError

CSV, PNG = ("*.csv",), ("*.png",)


def make(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("x", encoding="utf-8")
    return root


def found(root: Path, patterns: tuple[str, ...] = CSV, depth: int = 0) -> dict[str, dict[str, list[str]]]:
    made = folders.layout(root, patterns, depth)
    return {
        part: {name: [path.relative_to(root).as_posix() for path in files] for name, files in own.items()}
        for part, own in made.items()
    }


def test_files_are_experiences_in_natural_order(tmp_path: Path) -> None:
    make(tmp_path, "task10.csv", "task2.csv", "README.md", ".hidden.csv", "__MACOSX/task2.csv", "manifest.yaml")
    assert found(tmp_path) == {"train": {"task2": ["task2.csv"], "task10": ["task10.csv"]}}


def test_folders_are_experiences(tmp_path: Path) -> None:
    make(tmp_path, "b/2.csv", "b/1.csv", "a/deep/x.csv", ".git/c.csv")
    assert found(tmp_path) == {"train": {"a": ["a/deep/x.csv"], "b": ["b/1.csv", "b/2.csv"]}}


def test_parts_are_folders_or_files_above(tmp_path: Path) -> None:
    make(tmp_path / "one", "train/a.csv", "train/b.csv", "test/b.csv", "test/a.csv", "val/a.csv", "val/b.csv")
    assert found(tmp_path / "one") == {
        part: {name: [f"{folder}/{name}.csv"] for name in "ab"}
        for part, folder in (("test", "test"), ("train", "train"), ("valid", "val"))
    }
    make(tmp_path / "two", "train.csv", "test.csv")
    assert found(tmp_path / "two") == {"train": {"": ["train.csv"]}, "test": {"": ["test.csv"]}}


def test_images_lie_in_folders_of_classes(tmp_path: Path) -> None:
    make(tmp_path / "pool", "cat/1.png", "dog/1.png")
    make(tmp_path / "own", "e1/cat/1.png", "e1/dog/1.png", "e2/cat/1.png")
    assert found(tmp_path / "pool", PNG, 1) == {"train": {"": ["cat/1.png", "dog/1.png"]}}
    assert found(tmp_path / "own", PNG, 1) == {
        "train": {"e1": ["e1/cat/1.png", "e1/dog/1.png"], "e2": ["e2/cat/1.png"]}
    }


def test_a_link_in_a_circle_is_refused(tmp_path: Path) -> None:
    make(tmp_path, "a/1.csv")
    (tmp_path / "a" / "back").symlink_to(tmp_path)
    with pytest.raises(UsageError, match="leads back"):
        found(tmp_path)


@pytest.mark.parametrize(
    ("names", "depth", "error", "message"),
    [
        ([], 0, MissingError, "no file of the kind"),
        (["x.md"], 0, MissingError, "no file of the kind"),
        (["a/1.csv", "b.csv"], 0, UsageError, "b.csv: a file beside folders"),
        (["a/1.csv", "b/1.md"], 0, UsageError, "b: there is no file"),
        (["a/train/1.csv", "a/test/1.csv"], 0, UsageError, "should lie above the experiences"),
        (["test/a.csv"], 0, UsageError, "but no train"),
        (["train/a.csv", "test/a.csv", "c.csv"], 0, UsageError, "what is this beside"),
        (["train/a.csv", "train/b.csv", "test/a.csv"], 0, UsageError, "experience 'b' has nothing in test"),
        (["train/a.csv", "test/a.csv", "test/b.csv"], 0, UsageError, "experience 'b' has nothing in train"),
        (["train/a.csv", "train.csv"], 0, UsageError, "are the train part"),
        (["1.png"], 1, UsageError, "named after their classes"),
        (["a/1.png", "b/c/1.png"], 1, UsageError, "another depth"),
        (["a/b/c/1.png"], 1, UsageError, "too deep"),
    ],
)
def test_what_is_not_clear_is_refused(
    tmp_path: Path, names: list[str], depth: int, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        found(make(tmp_path, *names), PNG if depth else CSV, depth)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").symlink_to(tmp_path / "nothing")
    with pytest.raises(UsageError, match="a broken link"):
        found(tmp_path)
    make(tmp_path / "deep", "e/1.csv")
    os.mkfifo(tmp_path / "deep" / "e" / "2.csv")
    with pytest.raises(UsageError, match=r"2.csv: this is no file"):
        found(tmp_path / "deep")


def test_nothing_at_all_is_missing(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="nothing is there"):
        folders.layout(tmp_path / "no", CSV)
