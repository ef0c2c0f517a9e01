"""Signals set a flag, and nothing else: who trains looks at it between steps, agrees with the other ranks and saves.

Installed as the first act of every process, because a signal that comes while torch is being imported would kill it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterable, Iterator
from types import FrameType

from clplat.errors import EXIT_INTERRUPTED, EXIT_REQUEUE

ALWAYS = (signal.SIGTERM, signal.SIGINT)
CHOOSABLE = {"USR1": signal.SIGUSR1, "USR2": signal.SIGUSR2}
# All that may be listened to: until the configuration has been read, nobody knows which of them is the chosen one.
SIGNALS = (*ALWAYS, *CHOOSABLE.values())

_listening: tuple[int, ...] = SIGNALS
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
    for number in _listening:
        signal.signal(number, _handle)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def listen(chosen: str) -> None:
    """Listen to SIGTERM, SIGINT and the chosen one (USR1 or USR2) only."""
    _listen_to((*ALWAYS, CHOOSABLE[chosen]))


def ignore() -> None:
    """Listen to none: for commands that do not train, which a signal may simply end."""
    _listen_to(())


def _listen_to(numbers: tuple[int, ...]) -> None:
    """Signals that are listened to no more mean again what they mean to any process; one that came does it now."""
    global _listening, _requested
    _listening = numbers
    if threading.current_thread() is not threading.main_thread():
        return
    for number in SIGNALS:
        if number not in _listening and signal.getsignal(number) is _handle:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    if _requested is not None and _requested not in _listening:
        came, _requested = _requested, None
        os.kill(os.getpid(), came)


def listening() -> tuple[int, ...]:
    """The signals that are listened to."""
    return _listening


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


def interrupted() -> bool:
    """Whether Ctrl-C came twice: the process is to end now, wherever it is."""
    return _interrupts > 1


@contextlib.contextmanager
def received(numbers: Iterable[int]) -> Iterator[list[int]]:
    """A list that grows by each of these signals that comes, which does nothing else; one that came before is in it."""
    came: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        came.append(number)

    before = {number: signal.signal(number, note) for number in numbers}
    if _requested in before:
        came.insert(0, _requested)
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def exit_code() -> int:
    """What a run that was stopped by a signal ends with: 130 after SIGINT, else 75 (to be requeued)."""
    return EXIT_INTERRUPTED if _requested == signal.SIGINT else EXIT_REQUEUE


def reset() -> None:
    """Take the flag down (for tests and for a process that starts a second run)."""
    global _requested, _interrupts, _listening
    _requested, _interrupts, _listening = None, 0, SIGNALS
