"""Checkpoints: one directory each, complete or not there.

A checkpoint is written aside (``.tmp-...``), every file and the folder are fsynced, the manifest with the sha256 and
size of each file is written last, and then the folder is renamed. Whoever reads one checks it against its manifest
first; one that is torn or altered is named, and the one before it is used. Tensors load with ``weights_only=True``.
Only what reads or writes tensors imports torch: commands look at names and manifests without it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clplat import faults
from clplat.errors import RunFailedError, UsageError

FORMAT = 2
BOUNDARY = "evaluate"  # the marker of a checkpoint at the end of an experience
_NAME = re.compile(r"(\d{8})-e(\d+)-([a-z]+)")


@dataclass(frozen=True)
class Found:
    """A good checkpoint and what had to be passed over to get to it."""

    path: Path
    state: dict[str, Any]
    manifest: dict[str, Any]
    passed_over: tuple[str, ...]

    @property
    def bytes(self) -> int:
        """Its size on disk, without the manifest."""
        return size(self.manifest)


def size(manifest: Mapping[str, Any]) -> int:
    """Bytes of the files that a manifest names."""
    return sum(int(file["bytes"]) for file in manifest["files"].values())


def save(
    folder: Path,
    state: Mapping[str, Any],
    *,
    experience: int,
    marker: str,
    keep: int,
    keep_boundaries: bool = False,
    about: Mapping[str, Any] | None = None,
) -> Path:
    """Write a checkpoint and then remove all but the newest ``keep``.

    Args:
        folder: ``RUN/checkpoints``.
        state: tensors and plain values (``weights_only`` loadable).
        experience, marker: where in the run, for the name: ``00000012-e003-train``; the number is a running one.
        keep: how many checkpoints stay, at least 1.
        keep_boundaries: those at the ends of experiences stay as well.
        about: what the manifest says besides: what the checkpoint was made with, and how long the record was.

    Raises:
        RunFailedError: it could not be written; what was there before is untouched.
    """
    import torch

    aside: Path | None = None
    try:
        folder.mkdir(exist_ok=True)
        for leftover in folder.glob(".tmp-*"):
            shutil.rmtree(leftover)
        number = 1 + max((int(path.name[:8]) for path in named(folder)), default=0)
        name = f"{number:08d}-e{experience:03d}-{marker}"
        aside = folder / f".tmp-{name}"
        aside.mkdir()
        with open(aside / "state.pt", "wb") as file:
            torch.save(dict(state), file)
            faults.point("save.write")
            file.flush()
            os.fsync(file.fileno())
        length, digest = _digest(aside / "state.pt")
        manifest = {
            "format": FORMAT,
            "experience": experience,
            "marker": marker,
            **(about or {}),
            "files": {"state.pt": {"bytes": length, "sha256": digest}},
        }
        with open(aside / "manifest.json", "w", encoding="utf-8") as text:
            json.dump(manifest, text)
            text.flush()
            os.fsync(text.fileno())
        _sync(aside)
        faults.point("save.rename")
        os.rename(aside, folder / name)
        _sync(folder)
    except (OSError, RuntimeError) as error:  # torch.save reports a full disk as a RuntimeError
        if aside is not None:
            shutil.rmtree(aside, ignore_errors=True)  # on a full disk the space is needed to say so
        raise RunFailedError(
            f"{folder}: the checkpoint could not be written: {_reason(error)}; those before it are untouched"
        ) from error
    faults.point("save.done")
    whole = named(folder)
    for old in whole[: -max(keep, 1)]:
        if not (keep_boundaries and old.name.endswith(f"-{BOUNDARY}")):
            shutil.rmtree(old, ignore_errors=True)
    return folder / name


def newest(folder: Path, fits: Callable[[Mapping[str, Any]], str | None] = lambda manifest: None) -> Found | None:
    """The newest checkpoint that is whole and fits, or None where there is none at all.

    Args:
        fits: looks at a manifest and says what does not fit this run, or None.

    Raises:
        RunFailedError: there are some, and none is whole.
        UsageError: there are whole ones, and none fits.
    """
    import torch

    problems: list[str] = []
    misfits = 0
    for path in reversed(named(folder)):
        problem = check(path)
        if problem is None:
            manifest = read_manifest(path)
            problem = fits(manifest)
            misfits += problem is not None
            if problem is None:
                try:
                    state = torch.load(path / "state.pt", map_location="cpu", weights_only=True)
                    return Found(path, state, manifest, tuple(problems))
                except Exception as error:  # the loader refuses what is not plain data in many ways
                    problem = f"it cannot be loaded: {_reason(error)}"
        problems.append(f"checkpoint {path.name} is not used: {problem}")
    if misfits and misfits == len(problems):
        raise UsageError(*problems)
    if problems:
        raise RunFailedError("\n".join([*problems, f"{folder}: no checkpoint is whole"]))
    return None


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a checkpoint.

    Raises:
        ValueError: it is missing, is not one, or has a format that this version does not read; says which.
    """
    try:
        manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError("its manifest is missing") from None
    except (OSError, ValueError, RecursionError):
        raise ValueError("its manifest cannot be read") from None
    if not isinstance(manifest, dict) or "format" not in manifest:
        raise ValueError("its manifest cannot be read")
    if manifest["format"] != FORMAT:
        raise ValueError(f"it has format {manifest['format']}, this version reads {FORMAT}")
    return manifest


def check(path: Path) -> str | None:
    """What is wrong with a checkpoint, or None."""
    try:
        files = dict(read_manifest(path)["files"])
        for name, expected in files.items():
            try:
                length, digest = _digest(path / name)
            except OSError:
                return f"{name} is missing"
            if length != expected["bytes"]:
                return f"{name} is torn: {length} of {expected['bytes']} bytes"
            if digest != expected["sha256"]:
                return f"{name} was altered (sha256 differs)"
    except (KeyError, TypeError):
        return "its manifest cannot be read"
    except ValueError as error:
        return str(error)
    return None


def named(folder: Path) -> list[Path]:
    """All that look like checkpoints by their names, oldest first."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if _NAME.fullmatch(path.name))


def boundaries(folder: Path) -> dict[int, Path]:
    """The checkpoints at the ends of experiences, by the number of experiences learned by then."""
    ends = (_NAME.fullmatch(path.name) for path in named(folder))
    return {1 + int(end[2]): folder / end[0] for end in ends if end and end[3] == BOUNDARY}


def ended(manifest: Mapping[str, Any]) -> int | None:
    """At the end of how many experiences a checkpoint stands; None inside of one."""
    return 1 + int(manifest["experience"]) if manifest["marker"] == BOUNDARY else None


def _reason(error: BaseException) -> str:
    """The first line of an error; for a failed write the system's own word for it, which torch hides."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        cause = cause.__cause__ or cause.__context__
    return (str(error).splitlines() or [type(error).__name__])[0]


def _digest(path: Path) -> tuple[int, str]:
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return file.tell(), digest


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
