"""Starting the ranks of a run on this machine.

One rank runs in this very process. Several are started by this parent, which never imports torch: it chooses a port,
starts N workers, passes signals on, ends all when one fails, and returns the worst exit code.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from clplat import machine, signals
from clplat.errors import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_MISSING,
    EXIT_OK,
    EXIT_REQUEUE,
    EXIT_USAGE,
    UsageError,
)
from clplat.tracking import directory

GRACE = 15.0  # seconds between asking a rank to end and killing it, once another has failed
IMPATIENCE = 3.0  # seconds that ranks have after a second Ctrl-C, which may find them waiting for each other
_PR_SET_PDEATHSIG = 1


def launch(
    run_dir: Path,
    config: Mapping[str, Any],
    *,
    resume: bool = False,
    module: str = "clplat.worker",
    grace: float = GRACE,
) -> int:
    """Run all ranks of a run and return its exit code.

    A rank that was started by torchrun or the like (``WORLD_SIZE`` is set) runs the worker in this process.

    Args:
        run_dir: the run directory, made already.
        config: its resolved configuration.
        resume: the run is continued; workers read all they need from the directory, so this changes a message only.
        module: the worker: a module with ``run(run_dir) -> int`` that also runs as ``python -m module run_dir``.
        grace: seconds between SIGTERM and SIGKILL for the ranks that are left when one fails.

    Returns:
        The worker's exit code, or the worst of the ranks' (:func:`worst`).

    Raises:
        UsageError: the run wants several nodes, and this process is none of their ranks; or is, and the run does not.
    """
    signals.listen(config.get("run", {}).get("signal", "USR1"))
    check_nodes(config)
    devices = config["trainer"].get("devices", 1)
    if devices == 1 or "WORLD_SIZE" in os.environ:
        return importlib.import_module(module).run(run_dir)
    cores = machine.cores()
    quiet = config["trainer"].get("progress") == "quiet"
    if not quiet and devices > cores and config["trainer"].get("accelerator") == "cpu":
        _say(f"warning: {devices} CPU ranks on {cores} cores; they will wait for each other")
    if not quiet:
        _say(f"{'resuming' if resume else 'starting'} {devices} ranks")
    code = _supervise(lambda: _start(run_dir, module, devices), grace)
    if code in (EXIT_FAILED, EXIT_USAGE, EXIT_MISSING):
        # A rank that was killed could not say so itself. Who holds the lock is another run of the same directory.
        with contextlib.suppress(OSError):
            if not directory.is_locked(run_dir) and directory.read_status(run_dir)["status"] in ("created", "running"):
                directory.write_status(run_dir, "failed", reason="a rank ended without a word")
    return code


def check_nodes(config: Mapping[str, Any]) -> None:
    """Several nodes need ranks that were started on them, as many on each.

    Raises:
        UsageError: the run wants several nodes, and this process is none of their ranks; or is, and the run does not.
    """
    devices, nodes = config["trainer"].get("devices", 1), config["trainer"].get("num_nodes", 1)
    world = int(os.environ.get("WORLD_SIZE", 1))
    there = world // int(os.environ.get("LOCAL_WORLD_SIZE", world))
    if there > 1 and there != nodes:
        raise UsageError(f"these {world} ranks are on {there} nodes: set trainer.num_nodes={there}")
    if nodes > 1 and world != nodes * devices:
        raise UsageError(
            f"trainer.num_nodes={nodes} needs {devices} ranks on each node, started there: use "
            f"`clplat submit --cluster slurm`, or `srun --nodes={nodes} --ntasks-per-node={devices} clplat fit ... "
            f"run.dir=DIR`, or on each node `torchrun --nnodes={nodes} --nproc-per-node={devices} ...`"
        )


def worst(codes: Iterable[int]) -> int:
    """One exit code for all ranks.

    A failure goes before everything, and one with a reason (3 missing, 2 usage) before a plain 1, which is also what
    death by a signal counts as. Without failures: 130 if any was interrupted, 75 if any is to be requeued, else 0.
    """
    ended = (EXIT_OK, EXIT_REQUEUE, EXIT_INTERRUPTED)
    codes = [code if code in (*ended, EXIT_USAGE, EXIT_MISSING) else EXIT_FAILED for code in codes]
    failures = [code for code in codes if code not in ended]
    return max(failures or codes, default=EXIT_OK)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _start(run_dir: Path, module: str, devices: int) -> Iterator[subprocess.Popen[bytes]]:
    """Start the ranks, each in a session of its own: Ctrl-C then reaches them once, through this parent."""
    shared = {
        "WORLD_SIZE": str(devices),
        "LOCAL_WORLD_SIZE": str(devices),
        "NODE_RANK": "0",
        "GROUP_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
    }
    prepare = _child_setup()
    for rank in range(devices):
        yield subprocess.Popen(
            [sys.executable, "-m", module, str(run_dir)],
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=prepare,
        )


def _child_setup() -> Callable[[], None]:
    """What a child does before it becomes a worker: signals wait for ``signals.install``; it dies with its parent."""
    prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None
    parent = os.getpid()

    def prepare() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, signals.SIGNALS)
        if prctl is not None:
            prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != parent:  # the parent died before the line above
                os._exit(EXIT_FAILED)

    return prepare


def _supervise(start: Callable[[], Iterable[subprocess.Popen[bytes]]], grace: float) -> int:
    ranks: list[subprocess.Popen[bytes]] = []
    forwarded, deadline = 0, None
    with signals.received(signals.listening()) as received:
        try:
            for process in start():
                ranks.append(process)
            while None in [process.poll() for process in ranks]:  # a list: every rank is asked
                for number in received[forwarded:]:
                    _send(ranks, number)
                    forwarded += 1
                if received.count(signal.SIGINT) > 1 and deadline is None:
                    deadline = time.monotonic() + IMPATIENCE
                failed = [
                    rank for rank, process in enumerate(ranks) if process.returncode and _is_failure(process.returncode)
                ]
                if failed and deadline is None:
                    _say(f"rank {failed[0]} {_ended(ranks[failed[0]].returncode)}; ending the others")
                    _send(ranks, signal.SIGTERM)
                    deadline = time.monotonic() + grace
                elif deadline is not None and time.monotonic() > deadline:
                    _send(ranks, signal.SIGKILL)
                time.sleep(0.02)
        finally:
            _send(ranks, signal.SIGKILL)
            for process in ranks:
                process.wait()
    if received.count(signal.SIGINT) > 1:
        return EXIT_INTERRUPTED
    return worst(process.returncode for process in ranks)


def _is_failure(code: int) -> bool:
    return code not in (EXIT_OK, EXIT_REQUEUE, EXIT_INTERRUPTED)


def _ended(code: int) -> str:
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"failed with exit code {code}"


def _send(ranks: Iterable[subprocess.Popen[bytes]], number: int) -> None:
    for process in ranks:
        if process.poll() is None:
            process.send_signal(number)
