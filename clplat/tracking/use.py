"""What the ranks of a run use of their machines."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from pathlib import Path

import torch

from clplat.ranks import Ranks

STATM = Path("/proc/self/statm")  # sizes in pages; the second is what is resident


class Use:
    """Asks each rank what it uses, and tells the answers of all.

    - ``cpu``: processor seconds in a second since the last time, over all threads of the process: how many cores were
      busy;
    - ``memory_bytes``: memory of the process that is resident;
    - ``gpu``: how busy its GPU was in percent, by whatever process, as the driver last sampled it (``nvidia-smi`` says
      the same);
    - ``gpu_memory_bytes``: memory of its GPU that its tensors hold.

    What does not exist is left out: the last two without a GPU, ``gpu`` also without the package nvidia-ml-py (extra
    ``gpu``), by which torch asks the driver, and memory where the system has no ``/proc``.

    Args:
        ranks: the processes of the run; all of them call :meth:`taken` alike.
        note: is told once why something cannot be asked.
    """

    def __init__(self, ranks: Ranks, note: Callable[[str], None] = lambda message: None) -> None:
        self.ranks, self.note = ranks, note
        self._page = os.sysconf("SC_PAGE_SIZE")
        self._before = (time.monotonic(), time.process_time())
        self._asks: dict[str, Callable[[], float]] = {"cpu": self._cpu, "memory_bytes": self._memory}
        if ranks.device.type == "cuda":
            self._asks["gpu"] = lambda: float(torch.cuda.utilization(ranks.device))
            self._asks["gpu_memory_bytes"] = lambda: float(torch.cuda.memory_allocated(ranks.device))
        self._failed: set[str] = set()

    def taken(self) -> dict[str, list[float | None]]:
        """By name one value for each rank; None where only that rank cannot say."""
        rows = self.ranks.each([self._asked(name) for name in self._asks])
        found = {
            name: [None if math.isnan(value) else value for value in column]
            for name, column in zip(self._asks, zip(*rows, strict=True), strict=True)
        }
        return {name: values for name, values in found.items() if any(value is not None for value in values)}

    def _asked(self, name: str) -> float:
        """NaN where it cannot be asked, once and for all: ranks still send equal messages."""
        if name not in self._failed:
            try:
                return self._asks[name]()
            except Exception as error:  # of the driver's library, of many kinds; none is worth a run
                self._failed.add(name)
                self.note(f"the use of the machine is recorded without {name}: {type(error).__name__}: {error}")
        return math.nan

    def _cpu(self) -> float:
        now = (time.monotonic(), time.process_time())
        (wall, busy), self._before = self._before, now
        return round((now[1] - busy) / max(now[0] - wall, 1e-9), 3)

    def _memory(self) -> float:
        return float(int(STATM.read_bytes().split()[1]) * self._page)
