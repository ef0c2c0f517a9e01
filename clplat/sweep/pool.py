"""Runs side by side on this machine, each in a process of its own.

One process imports torch once; every run is forked from it, which takes a tenth of a second where an import takes ten.
A run's own output goes to ``output.log`` in its directory. What stops or kills this process stops the runs, which save
what they have and go on from there when the sweep is called again.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from clplat import machine, signals
from clplat.errors import EXIT_INTERRUPTED, EXIT_REQUEUE

ROOM = 1.5 * 2**30  # bytes that must be free for one more run to start beside others
IMPATIENCE = 20.0  # seconds that runs have to save themselves after a second signal
PRELOAD = ("clplat.worker", "clplat.lightning", "sklearn.datasets")


def default_jobs(devices: int) -> int:
    """As many runs at a time as there are cores for their ranks, and one and a half gigabytes for each."""
    return max(1, min(machine.cores() // max(1, devices), int(min(machine.free_memory() / ROOM, 1e6))))


def run_all(
    runs: Sequence[Path],
    jobs: int,
    *,
    started: Callable[[Path], None] = lambda path: None,
    ended: Callable[[Path, int], None] = lambda path, code: None,
    idle: Callable[[], None] = lambda: None,
) -> bool:
    """Run, or continue, all run directories; returns whether a signal stopped it before all had ended.

    Args:
        jobs: how many at a time.
        started, ended, idle: called when a run begins, when it ends with its exit code, and again and again.
    """
    if not runs:
        return False
    threads = max(1, machine.cores() // jobs)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))  # before the process that imports torch
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOAD))
    waiting, active = list(runs), dict[Path, Any]()
    deadline = None
    listening, held = context.Pipe(duplex=False)  # its other end closes with this process at the latest
    with signals.received((signal.SIGINT, signal.SIGTERM)) as received:
        try:
            while active or (waiting and not received):
                while waiting and not received and len(active) < jobs and (not active or machine.free_memory() > ROOM):
                    path = waiting.pop(0)
                    active[path] = context.Process(target=_run, args=(str(path), listening))
                    active[path].start()
                    started(path)
                if received and deadline is None:
                    held.close()  # a signal would be lost on a run that has just been forked and does not listen yet
                    deadline = float("inf")
                if len(received) > 1 and deadline == float("inf"):
                    deadline = time.monotonic() + IMPATIENCE
                if deadline is not None and time.monotonic() > deadline:
                    _send(active.values(), signal.SIGKILL)
                for path in [path for path, process in active.items() if process.exitcode is not None]:
                    ended(path, active.pop(path).exitcode)
                idle()
                time.sleep(0.1)
        finally:
            _send(active.values(), signal.SIGKILL)
            for process in active.values():
                process.join()
            held.close()
            listening.close()
    return bool(received)


def stopped(code: int) -> bool:
    """Whether a run ended with this code because it was asked to, with a checkpoint to go on from."""
    return code in (EXIT_REQUEUE, EXIT_INTERRUPTED)


def _send(processes: Any, number: int) -> None:
    for process in processes:
        if process.is_alive():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, number)


def _run(path: str, parent: Connection) -> None:
    """In the forked process: run a directory to its end, with its output in a file, and leave with its exit code."""
    os.setsid()  # Ctrl-C reaches the sweep alone, which passes it on
    output = os.open(Path(path) / "output.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    null = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((null, 0), (output, 1), (output, 2)):
        os.dup2(source, target)
    from clplat import config
    from clplat.cli.app import guarded
    from clplat.cluster import local

    signals.reset()
    signals.install()
    threading.Thread(target=_stop_with, args=(parent,), daemon=True).start()
    code = guarded(lambda: local.launch(Path(path), config.load(Path(path) / "config.yaml"), resume=True))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _stop_with(parent: Connection) -> None:
    """When the sweep is there no more, or wants its runs to end, save and stop."""
    with contextlib.suppress(EOFError, OSError):
        parent.recv_bytes()
    os.kill(os.getpid(), signal.SIGTERM)
