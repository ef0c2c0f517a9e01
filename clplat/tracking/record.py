"""The run's own record: metrics, timings, log, status. It is the truth; mirrors (W&B, ...) may fail, it may not."""

from __future__ import annotations

import contextlib
import json
import math
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Protocol

from clplat.errors import RunFailedError
from clplat.tracking.background import Background, MirrorFailedError
from clplat.tracking.directory import write_atomic, write_status

HEARTBEAT_SECONDS = 5.0


class Mirror(Protocol):
    """Somewhere else that shows a run. It is called from a thread of its own, however long it takes; whatever it raises
    is logged once, and the run goes on without it."""

    def start(self, run_dir: Path, config: Mapping[str, Any], lines: Sequence[Mapping[str, Any]]) -> None:
        """The run starts or goes on; ``lines`` are those that its record holds by now."""

    def log(self, line: Mapping[str, Any]) -> None:
        """A line of ``metrics.jsonl``, of training with the ``use`` of the machine."""

    def finish(self, results: Mapping[str, Any] | None) -> None:
        """The run is done (with its results) or stops for now (None)."""


class Record:
    """Writes into the run directory. Only the first rank has one that writes; the others hold a silent one.

    Args:
        run_dir: the directory, or None to write nothing.
        mirrors: where lines go as well.

    Raises:
        RunFailedError: the run directory cannot be written.
    """

    def __init__(self, run_dir: Path | None, mirrors: Sequence[Mirror] = ()) -> None:
        self.run_dir, self.mirrors = run_dir, list(mirrors)
        self.quiet = False  # then only errors are told on standard error
        self._told: list[Background] = []
        self._files: dict[str, IO[str]] = {}
        self._beat = 0.0
        self._before = 0.0  # seconds of earlier parts of the run
        self._started = time.monotonic()

    @property
    def seconds(self) -> float:
        """Seconds this run has taken, over all its parts."""
        return self._before + time.monotonic() - self._started

    def begin(self, lengths: Mapping[str, int], seconds: float, config: Mapping[str, Any]) -> None:
        """Open the files, cut to the lengths that the checkpoint knew, and start the mirrors."""
        self._before, self._started = seconds, time.monotonic()
        if self.run_dir is None:
            return
        with self._obligatory():
            for name in ("metrics.jsonl", "timings.jsonl"):
                file = open(self.run_dir / name, "a", encoding="utf-8")  # noqa: SIM115 - closed in close()
                file.truncate(lengths.get(name, 0))
                file.seek(0, os.SEEK_END)  # tell() is asked for the length before anything is written
                self._files[name] = file
        self.status("running")
        run_dir, past = self.run_dir, shown_lines(self.run_dir)
        self._told = [Background(mirror) for mirror in self.mirrors]
        self._mirror(lambda mirror: mirror.start(run_dir, config, past))

    def log(self, use: Mapping[str, Any] | None = None, /, **line: Any) -> None:
        """A line of ``metrics.jsonl``: nothing in it may depend on the clock.

        Args:
            use: what was used of the machine up to an optimiser step, which does depend on it: it goes to
                ``timings.jsonl``. Mirrors get both together, as in :func:`shown_lines`.
        """
        plain = {key: finite(value) for key, value in line.items()}
        self._write("metrics.jsonl", plain)
        if use:
            self.timing(event="use", experience=line["experience"], step=line["step"], use=use)
        shown = {**plain, "use": use} if use else plain
        self._mirror(lambda mirror: mirror.log(shown))

    def timing(self, **line: Any) -> None:
        """A line of ``timings.jsonl``, with the seconds since the start of the run."""
        self._write("timings.jsonl", {**line, "at_seconds": round(self.seconds, 4)})

    def lengths(self) -> dict[str, int]:
        """Bytes in each file, safely on disk."""
        with self._obligatory():
            for file in self._files.values():
                file.flush()
                os.fsync(file.fileno())
        return {name: file.tell() for name, file in self._files.items()}

    def status(self, status: str, **extra: Any) -> None:
        """Write ``status.json``."""
        if self.run_dir is not None:
            with self._obligatory():
                write_status(self.run_dir, status, pid=os.getpid(), time=time.time(), **extra)
            self._beat = time.monotonic()

    def heartbeat(self, **where: Any) -> None:
        """Say where the run stands, at most every few seconds."""
        if self.run_dir is not None and time.monotonic() - self._beat > HEARTBEAT_SECONDS:
            self.status("running", **where)

    def write(self, name: str, content: Mapping[str, Any]) -> None:
        """Write a JSON file into the run directory."""
        if self.run_dir is not None:
            with self._obligatory():
                (self.run_dir / name).parent.mkdir(exist_ok=True)
                write_atomic(self.run_dir / name, json.dumps(content, indent=2) + "\n")

    def say(self, message: str) -> None:
        """A line for the log and for standard error."""
        if self.run_dir is None:
            return
        if not self.quiet:
            print(message, file=sys.stderr, flush=True)
        with self._obligatory(), open(self.run_dir / "log.txt", "a", encoding="utf-8") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {message}\n")

    def close(self, results: Mapping[str, Any] | None = None) -> None:
        """Close files and mirrors."""
        self._mirror(lambda mirror: mirror.finish(results))
        for file in self._files.values():
            file.close()
        self._files = {}

    def _write(self, name: str, line: Mapping[str, Any]) -> None:
        if name in self._files:
            with self._obligatory():
                self._files[name].write(json.dumps(line) + "\n")
                self._files[name].flush()

    def _mirror(self, call: Callable[[Background], None]) -> None:
        for mirror in list(self._told):
            try:
                call(mirror)
            except MirrorFailedError as error:  # whatever a mirror does, the run goes on
                self._told.remove(mirror)
                self.say(f"warning: {mirror.name} failed and is switched off: {error}")

    def _obligatory(self) -> _Obligatory:
        return _Obligatory(self.run_dir)


class _Obligatory:
    """Turns a failed write into the run directory into one clear error."""

    def __init__(self, run_dir: Path | None) -> None:
        self.run_dir = run_dir

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError):
            raise RunFailedError(f"{self.run_dir}: the run directory cannot be written: {error}") from error


def lines(run_dir: Path, name: str) -> list[dict[str, Any]]:
    """The whole lines of a file of the record; one that is still being written, or damaged, is left out."""
    try:
        content = (run_dir / name).read_bytes()
    except FileNotFoundError:
        return []
    found = []
    for text in content.split(b"\n")[:-1]:
        with contextlib.suppress(ValueError, RecursionError):
            line = json.loads(text)
            if isinstance(line, dict):
                found.append(line)
    return found


def shown_lines(run_dir: Path) -> list[dict[str, Any]]:
    """What mirrors are given: the lines of ``metrics.jsonl``, those of training with the ``use`` of the machine up to
    their steps, where ``timings.jsonl`` has it."""
    timed = lines(run_dir, "timings.jsonl")
    use = {line["step"]: line["use"] for line in timed if line.get("event") == "use" and {"step", "use"} <= line.keys()}
    return [
        {**line, "use": use[line["step"]]} if line.get("event") == "train" and line.get("step") in use else line
        for line in lines(run_dir, "metrics.jsonl")
    ]


def finite(value: Any) -> Any:
    """A value as JSON can hold it: JSON has no NaN: a number that is not finite becomes null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: finite(part) for key, part in value.items()}
    return [finite(part) for part in value] if isinstance(value, (list, tuple)) else value
