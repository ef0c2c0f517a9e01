"""How long training takes, over all parts of a run."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any


class Stopwatch:
    """Counts seconds of training: of all phases (``total``), and of the one that runs (``phase``).

    A run that goes on from a checkpoint goes on counting from what :meth:`state` said in it, so what is trained once in
    the end is counted once, however often the run was stopped. What a killed run did after its last checkpoint is done
    again and counted then; the writing of the checkpoint that a run goes on from is in neither part.
    """

    def __init__(self) -> None:
        self.first = 0  # the position in the phase from which on its seconds are known
        self._total = self._phase = 0.0  # up to when it was last started
        self._started: float | None = None

    @property
    def total(self) -> float:
        """Seconds in all phases so far."""
        return self._total + self._running()

    @property
    def phase(self) -> float:
        """Seconds in the phase that runs, or has just ended."""
        return self._phase + self._running()

    def start(self, position: int) -> None:
        """A phase begins (position 0) or goes on."""
        if position == 0:
            self.first, self._phase = 0, 0.0
        self._started = time.monotonic()

    def stop(self) -> None:
        """The phase has ended."""
        spent, self._started = self._running(), None
        self._total += spent
        self._phase += spent

    def state(self) -> dict[str, Any]:
        """What a checkpoint holds of it."""
        return {"train_seconds": self.total, "phase_seconds": self.phase, "phase_timed_from": self.first}

    def load(self, progress: Mapping[str, Any]) -> None:
        """Go on counting from a checkpoint's progress; older ones know nothing of the phase that was interrupted."""
        self._total, self._phase = progress["train_seconds"], progress.get("phase_seconds", 0.0)
        self.first = progress.get("phase_timed_from", progress["position"])

    def _running(self) -> float:
        return 0.0 if self._started is None else time.monotonic() - self._started
