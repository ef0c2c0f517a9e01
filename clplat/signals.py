"""Signals set a flag, and nothing else: who trains looks at it between steps, agrees with the other ranks and saves.

Installed as the first act of every process, because a signal that comes while torch is being imported would kill it.
"""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType

from clplat.errors import EXIT_INTERRUPTED, EXIT_REQUEUE

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)

_requested: int | None = None
_interrupts = 0
_pid = 0


def install() -> None:
    """Set the handlers, again if somebody replaced them; a flag that is up stays up. Main thread only, else nothing.

    Unblocks the signals as well: a launcher starts its ranks with them blocked, so that one that comes before this
    call waits for it.
    """
    global _pid
    if threading.current_thread() is not threading.main_thread():
        return
    _pid = os.getpid()
    for number in SIGNALS:
        signal.signal(number, _handle)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def _handle(number: int, frame: FrameType | None) -> None:
    global _requested, _interrupts
    if os.getpid() != _pid:  # a forked child, such as a DataLoader worker: its parent decides
        return
    if _requested is None:
        _requested = number
    if number == signal.SIGINT:
        _interrupts += 1
        if _interrupts > 1:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            raise KeyboardInterrupt


def requested() -> int | None:
    """The number of the first signal that came, or None."""
    return _requested


def exit_code() -> int:
    """What a run that was stopped by a signal ends with: 130 after SIGINT, else 75 (to be requeued)."""
    return EXIT_INTERRUPTED if _requested == signal.SIGINT else EXIT_REQUEUE


def reset() -> None:
    """Take the flag down (for tests and for a process that starts a second run)."""
    global _requested, _interrupts
    _requested, _interrupts = None, 0
