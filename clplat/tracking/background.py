"""A mirror in a thread of its own: training waits for no mirror, and fails by none."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clplat.tracking.record import Mirror

WAITING = 10_000  # lines that a mirror may be behind
# Seconds that a mirror has for what is left when a run is done, and when it was stopped and has to leave.
LEFT_DONE, LEFT_STOPPED = 90.0, 20.0


class MirrorFailedError(Exception):
    """A mirror raised something, or is too slow; the message says what."""


class Background:
    """Passes what it is told on to a mirror, in order, from a thread.

    The run directory holds what a mirror did not get.

    Args:
        mirror: used by no one else.

    Raises:
        MirrorFailedError: by any call after the mirror has raised something, or when it is too far behind, or does not
            come to its end. It is to be dropped then.
    """

    def __init__(self, mirror: Mirror) -> None:
        self.mirror, self.name = mirror, type(mirror).__name__
        self._calls: queue.Queue[Callable[[], None]] = queue.Queue(WAITING)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name=self.name, daemon=True)
        self._over = False

    def start(self, run_dir: Path, config: Mapping[str, Any], lines: Sequence[Mapping[str, Any]]) -> None:
        """The run starts or goes on."""
        self._thread.start()
        self._tell(lambda: self.mirror.start(run_dir, config, lines))

    def log(self, line: Mapping[str, Any]) -> None:
        """A line of ``metrics.jsonl``."""
        self._tell(lambda: self.mirror.log(line))

    def finish(self, results: Mapping[str, Any] | None) -> None:
        """The run is done or stops for now."""
        limit = LEFT_STOPPED if results is None else LEFT_DONE

        def last() -> None:
            self._over = True
            self.mirror.finish(results)

        self._tell(last)
        self._thread.join(limit)
        self._check()
        if self._thread.is_alive():
            raise MirrorFailedError(f"it did not take the end of the run within {limit:.0f} s")

    def _tell(self, call: Callable[[], None]) -> None:
        self._check()
        try:
            self._calls.put_nowait(call)
        except queue.Full:
            raise MirrorFailedError(f"it is {WAITING} lines behind") from None

    def _check(self) -> None:
        if self._error is not None:
            raise MirrorFailedError(f"{type(self._error).__name__}: {self._error}") from self._error

    def _work(self) -> None:
        try:
            while not self._over:
                self._calls.get()()
        except BaseException as error:  # also SystemExit, by which some libraries give up
            self._error = error
