"""The runs below some folders, kept up to date: of each file only what has changed is read again.

Of every run there is what a table shows. Matrices and curves are kept for the runs that were looked at last.
"""

from __future__ import annotations

import contextlib
import os
import stat
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path

from clplat.errors import UsageError
from clplat.report.runs import RunData, find, follow, load, text, why_none

WHOLE = 64  # runs of which everything is kept
SMALL = ("config.yaml", "status.json", "results.json")  # files that are read at one go
LARGEST = 1 << 26  # bytes of such a file; a larger one is no record of ours
GROWING = ("metrics.jsonl", "timings.jsonl")
PAUSE = 1.0  # seconds between two looks at the folders, at least

Stamp = tuple[tuple[int, int, int] | None, ...]


class Followed:
    """A run directory that is read again whenever it has changed.

    Args:
        path: the run directory.
        label: what to call it.
        root: the folder that nothing may be read outside of.
        whole: with its matrix and curves; else only what a table shows.
    """

    def __init__(self, path: Path, label: str, root: Path, *, whole: bool) -> None:
        self.path, self.label, self.root, self.whole = path, label, root, whole
        self.run = RunData(path, label=label)
        self._stamp: Stamp | None = None

    def refresh(self) -> bool:
        """Read what has changed; returns whether anything has."""
        before, state = self._stamp, self.run.state
        self._stamp = tuple(_stamp(self.path / name) for name in (*SMALL, *GROWING))
        if self._stamp == before and self.run.status != "running":
            return False
        config, _, results = self._stamp[: len(SMALL)]
        try:
            self._read(again=before is None or before[0] != config or results is not None)
        except Exception as error:  # one directory, whatever is in it, must not cost the others their place
            self.run = RunData(self.path, problems=[text(f"cannot be read: {type(error).__name__}: {error}")])
        self.run.label = self.label
        return self._stamp != before or self.run.state != state

    def _read(self, again: bool) -> None:
        if problem := stray(self.path, self.root, deep=self.whole):
            self.run = RunData(self.path, problems=[problem])
        elif again or not follow(self.run):
            self.run = load(self.path)
        if not self.whole:
            _shed(self.run)


class Index:
    """All runs below some folders. Use it within :attr:`lock`: requests come at the same time.

    Args:
        places: run directories, or folders with runs below; also such as hold none yet.

    Raises:
        UsageError: there is no such folder.
    """

    def __init__(self, places: Sequence[Path]) -> None:
        missing = [f"{place}: {why_none(place)}" for place in places if not place.is_dir()]
        if missing:
            raise UsageError(*missing)
        self.lock = threading.RLock()
        self.version = 0
        self._roots = [place.resolve() for place in places]
        parents = [str(root.parent if (root / "config.yaml").is_file() else root) for root in self._roots]
        self._common = os.path.commonpath(parents)
        self._entries: dict[str, Followed] = {}
        self._changed: dict[str, int] = {}  # the version in which each run changed last
        self._whole: OrderedDict[str, Followed] = OrderedDict()
        self._next = 0.0

    def refresh(self) -> None:
        """Look for new, changed and vanished runs, unless that was done just now."""
        with self.lock:
            self._refresh()

    def _refresh(self) -> None:
        begun = time.monotonic()
        if begun < self._next:
            return
        found = self._found()
        changed = self._entries.keys() - found.keys()
        for label, (path, root) in found.items():
            entry = self._entries.get(label)
            if entry is None:
                entry = self._entries[label] = Followed(path, label, root, whole=False)
            if entry.refresh():
                changed.add(label)
        for label in self._entries.keys() - found.keys():
            del self._entries[label]
            self._whole.pop(label, None)
        if changed:
            self.version += 1
            self._changed = {
                label: self.version if label in changed else self._changed[label] for label in self._entries
            }
        took = time.monotonic() - begun
        # On a slow file system most of the time is the runs', and still no change waits for long.
        self._next = time.monotonic() + PAUSE * min(max(1.0, 4 * took), 5.0)

    def runs(self) -> list[RunData]:
        """What a table shows of each run, by label."""
        return [self._entries[label].run for label in sorted(self._entries)]

    def changed(self, label: str) -> int:
        """The version in which a run changed last."""
        return self._changed[label]

    def path(self, label: str) -> Path:
        """The directory of a run.

        Raises:
            KeyError: there is no such run.
        """
        return self._entries[label].path

    def whole(self, labels: Sequence[str]) -> list[RunData]:
        """Runs with all that they hold.

        Raises:
            KeyError: there is no such run.
        """
        return [self._one(label) for label in labels]

    def _one(self, label: str) -> RunData:
        known = self._entries[label]
        kept = self._whole.pop(label, None) or Followed(known.path, label, known.root, whole=True)
        self._whole[label] = kept
        while len(self._whole) > WHOLE:
            self._whole.popitem(last=False)
        kept.refresh()
        return kept.run

    def _found(self) -> dict[str, tuple[Path, Path]]:
        """The directory and the root of each run by its label; names may look alike once they can be printed."""
        found: dict[str, tuple[Path, Path]] = {}
        seen: set[Path] = set()
        for root in self._roots:
            with contextlib.suppress(UsageError):  # no run yet, or none any more
                for path in find([root]):
                    label = plain = text(os.path.relpath(path, self._common))
                    number = 2
                    while label in found:
                        label, number = f"{plain} ({number})", number + 1
                    if path not in seen:
                        seen.add(path)
                        found[label] = (path, root)
        return found


def stray(run_dir: Path, root: Path, *, deep: bool) -> str | None:
    """Why a run directory is not to be read, or None: something in it leads out of the root, is no file (a pipe would
    be waited for), or is too large to be what its name says.

    Args:
        deep: look into its folders as well.
    """
    for folder, below, names in os.walk(run_dir):
        for name in (*below, *names):
            path = Path(folder, name)
            try:
                kind = path.stat()
            except OSError:  # removed just now, or a link to nothing
                continue
            if path.is_symlink() and not path.resolve().is_relative_to(root):
                return text(f"{path.relative_to(run_dir)} leads out of the folder that is shown; the run is not read")
            if not stat.S_ISREG(kind.st_mode) and not stat.S_ISDIR(kind.st_mode):
                return text(f"{path.relative_to(run_dir)} is no file; the run is not read")
            if name in SMALL and kind.st_size > LARGEST:
                return text(f"{path.relative_to(run_dir)} has {kind.st_size} bytes; the run is not read")
        if not deep:
            break
    return None


def _stamp(path: Path) -> tuple[int, int, int] | None:
    """What changes when a file does."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def _shed(run: RunData) -> None:
    """Let go of what a table does not show; only the number of rows is counted."""
    run.matrix = [[] for _ in run.matrix]
    run.baseline, run.looks, run.kept, run.results = None, [], {}, {}
