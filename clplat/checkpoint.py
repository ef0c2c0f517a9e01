"""Checkpoints: one directory each, complete or not there.

A checkpoint is written aside (``.tmp-...``), every file and the folder are fsynced, the manifest with the sha256 and
size of each file is written last, and then the folder is renamed. Whoever reads one checks it against its manifest
first; one that is torn or altered is named, and the one before it is used. Tensors load with ``weights_only=True``.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from clplat import faults
from clplat.errors import RunFailedError

FORMAT = 1
_NAME = re.compile(r"(\d{8})-e(\d+)-([a-z]+)")


@dataclass(frozen=True)
class Found:
    """A good checkpoint and what had to be passed over to get to it."""

    path: Path
    state: dict[str, Any]
    passed_over: tuple[str, ...]


def save(folder: Path, state: Mapping[str, Any], *, experience: int, marker: str, keep: int) -> Path:
    """Write a checkpoint and then remove all but the newest ``keep``.

    Args:
        folder: ``RUN/checkpoints``.
        state: tensors and plain values (``weights_only`` loadable).
        experience, marker: where in the run, for the name: ``00000012-e003-train``; the number is a running one.
        keep: how many checkpoints stay, at least 1.

    Raises:
        RunFailedError: it could not be written; what was there before is untouched.
    """
    try:
        folder.mkdir(exist_ok=True)
        for leftover in folder.glob(".tmp-*"):
            shutil.rmtree(leftover)
        number = 1 + max((int(path.name[:8]) for path in _all(folder)), default=0)
        name = f"{number:08d}-e{experience:03d}-{marker}"
        aside = folder / f".tmp-{name}"
        aside.mkdir()
        with open(aside / "state.pt", "wb") as file:
            torch.save(dict(state), file)
            faults.point("save.write")
            file.flush()
            os.fsync(file.fileno())
        size, digest = _digest(aside / "state.pt")
        manifest = {"format": FORMAT, "files": {"state.pt": {"bytes": size, "sha256": digest}}}
        with open(aside / "manifest.json", "w", encoding="utf-8") as text:
            json.dump(manifest, text)
            text.flush()
            os.fsync(text.fileno())
        _sync(aside)
        faults.point("save.rename")
        os.rename(aside, folder / name)
        _sync(folder)
    except (OSError, RuntimeError) as error:  # torch.save reports a full disk as a RuntimeError
        raise RunFailedError(f"{folder}: the checkpoint could not be written: {error}") from error
    faults.point("save.done")
    for old in _all(folder)[: -max(keep, 1)]:
        shutil.rmtree(old, ignore_errors=True)
    return folder / name


def newest(folder: Path) -> Found | None:
    """The newest checkpoint that is whole, or None when there is none; the reasons for passing over others go along."""
    problems: list[str] = []
    for path in reversed(_all(folder)):
        problem = check(path)
        if problem is None:
            state = torch.load(path / "state.pt", map_location="cpu", weights_only=True)
            return Found(path, state, tuple(problems))
        problems.append(f"checkpoint {path.name} is not used: {problem}")
    if problems:
        raise RunFailedError("\n".join([*problems, f"{folder}: no checkpoint is whole"]))
    return None


def check(path: Path) -> str | None:
    """What is wrong with a checkpoint, or None."""
    try:
        manifest = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
        version, files = manifest["format"], dict(manifest["files"])
    except FileNotFoundError:
        return "its manifest is missing"
    except (OSError, ValueError, KeyError, TypeError):
        return "its manifest cannot be read"
    if version != FORMAT:
        return f"it has format {version}, this version reads {FORMAT}"
    for name, expected in files.items():
        try:
            size, digest = _digest(path / name)
        except OSError:
            return f"{name} is missing"
        if size != expected["bytes"]:
            return f"{name} is torn: {size} of {expected['bytes']} bytes"
        if digest != expected["sha256"]:
            return f"{name} was altered (sha256 differs)"
    return None


def _all(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if _NAME.fullmatch(path.name))


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
