"""Which files make an experience: folders, files, and the parts train, valid and test above them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path

from clplat.errors import MissingError, UsageError

PARTS = {"train": "train", "training": "train", "test": "test", "valid": "valid", "val": "valid", "validation": "valid"}
MANIFEST = "manifest.yaml"

Layout = dict[str, dict[str, list[Path]]]  # part -> experience -> its files, in order; "" where there is no structure


def natural(name: str) -> list[tuple[int, str]]:
    """A key that puts 2 before 10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def inside(folder: Path) -> list[Path]:
    """What lies in a folder, in natural order, without what is hidden.

    Raises:
        MissingError: it cannot be read.
    """
    try:
        found = [path for path in folder.iterdir() if not path.name.startswith((".", "__MACOSX"))]
    except OSError as error:
        raise MissingError(f"{folder}: {error.strerror}") from None
    return sorted(found, key=lambda path: (natural(path.name), path.name))


def files(folder: Path, patterns: Sequence[str], above: tuple[str, ...] = ()) -> Iterator[Path]:
    """All files below a folder whose names match a pattern, in natural order.

    Raises:
        UsageError: a link leads back to a folder above it.
    """
    real = os.path.realpath(folder)
    if real in above:
        raise UsageError(f"{folder}: this link leads back to {real}")
    for path in inside(folder):
        if path.is_dir():
            yield from files(path, patterns, (*above, real))
        elif matches(path, patterns):
            if not path.is_file():
                raise UsageError(f"{path}: this is no file that could be read (a broken link?)")
            yield path


def matches(path: Path, patterns: Sequence[str]) -> bool:
    """Whether a file is one of those that are read."""
    return path.name != MANIFEST and any(fnmatch(path.name.lower(), pattern) for pattern in patterns)


def layout(root: Path, patterns: Sequence[str], depth: int = 0) -> Layout:
    """The files of each experience of each part.

    A file stands alone. In a folder there may be train and test (and valid), as folders or files; in each, or in the
    folder itself, an experience is a folder, or a file where there are no folders.

    Args:
        depth: levels of folders within an experience: 1 where classes have folders of their own, else 0, for any.

    Raises:
        UsageError: parts have different experiences, or there is nothing in one.
        MissingError: there is nothing that could be read.
    """
    if not root.exists():
        raise MissingError(f"scenario.root={root}: nothing is there")
    if root.is_file():
        return {"train": {"": [root]}}
    parts: dict[str, Path] = {}
    for path in inside(root):
        part = PARTS.get(path.stem.lower() if path.is_file() else path.name.lower())
        if part and (path.is_dir() or matches(path, patterns)):
            if part in parts:
                raise UsageError(f"{root}: both {parts[part].name} and {path.name} are the {part} part")
            parts[part] = path
    if not parts:
        return {"train": _experiences(root, patterns, depth)}
    if "train" not in parts:
        raise UsageError(f"{root}: there is {' and '.join(p.name for p in parts.values())}, but no train")
    if loose := [path for path in inside(root) if path not in parts.values() and _holds(path, patterns)]:
        raise UsageError(f"{loose[0]}: what is this beside {' and '.join(p.name for p in parts.values())}?")
    found = {
        part: {"": [path]} if path.is_file() else _experiences(path, patterns, depth) for part, path in parts.items()
    }
    for part, own in found.items():
        for name in [*own, *found["train"]]:
            if name not in own or name not in found["train"]:
                there = part if name in own else "train"
                missing = "train" if name in own else part
                raise UsageError(
                    f"{parts[there]}: experience '{name or 'the whole'}' has nothing in {parts[missing].name}"
                )
    return {part: {name: own[name] for name in found["train"]} for part, own in found.items()}


def _holds(path: Path, patterns: Sequence[str]) -> bool:
    return any(True for _ in files(path, patterns)) if path.is_dir() else matches(path, patterns)


def _experiences(folder: Path, patterns: Sequence[str], depth: int) -> dict[str, list[Path]]:
    below = inside(folder)
    folders = [path for path in below if path.is_dir()]
    own = [path for path in below if path not in folders and matches(path, patterns)]
    if broken := [path for path in own if not path.is_file()]:
        raise UsageError(f"{broken[0]}: this is no file that could be read (a broken link?)")
    if not folders and not own:
        raise MissingError(f"{folder}: there is no file of the kind {', '.join(patterns)} in it")
    if folders and own:
        raise UsageError(f"{own[0]}: a file beside folders; where experiences are folders, put it into one")
    if depth and own:
        raise UsageError(f"{own[0]}: images should lie in folders named after their classes")
    if depth and _depth(folder, patterns) == depth:
        return {"": list(files(folder, patterns))}  # classes, and no experiences above them
    if not folders:
        return (
            {path.stem: [path] for path in own}
            if len({path.stem for path in own}) == len(own)
            else {path.name: [path] for path in own}
        )
    found = {path.name: list(files(path, patterns, (os.path.realpath(folder),))) for path in folders}
    for path in folders:
        if not found[path.name]:
            raise UsageError(f"{path}: there is no file of the kind {', '.join(patterns)} in this folder")
        parts = [inner for inner in inside(path) if inner.is_dir() and inner.name.lower() in PARTS]
        if parts:
            raise UsageError(f"{parts[0]}: train and test should lie above the experiences, not within one")
    return found


def _depth(folder: Path, patterns: Sequence[str]) -> int:
    """Levels of folders between a folder and its files.

    Raises:
        UsageError: it is not the same for all.
        MissingError: there is no file.
    """
    first: tuple[int, Path] | None = None
    for path in files(folder, patterns):
        levels = len(path.relative_to(folder).parts) - 1
        if first and levels != first[0]:
            raise UsageError(f"{path}: lies at another depth than {first[1]}")
        first = first or (levels, path)
    if not first:
        raise MissingError(f"{folder}: there is no file of the kind {', '.join(patterns)} in it")
    if first[0] > 2:
        raise UsageError(f"{first[1]}: too deep; images lie in EXPERIENCE/CLASS/ or in CLASS/")
    return first[0]
