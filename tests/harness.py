"""Whole runs in forked processes: killed at chosen moments, resumed, or spread over ranks.

A fork server imports torch and clplat once and never computes; every run is forked from it (about 0.1 s instead of 10 s
of imports).
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import resource
import signal
import socket
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(
    [
        "clplat.worker", "clplat.lightning", "clplat.cli.app", "clplat.cli.fit", "tests.harness", "sklearn.datasets",
        "tests.warm", "tests.frozen",
    ]
)  # fmt: skip

KILLED = -signal.SIGKILL
# Keys of results.json that tell the time and may differ between equal runs.
TIMES = ("seconds", "train_seconds", "peak_bytes")


@dataclass
class Outcome:
    """How a job of one or more ranks ended."""

    codes: list[int]
    points: Counter[str]
    output: str
    stdout: str = ""  # of a command
    stderr: str = ""


def make(run_dir: Path, overrides: Sequence[str], **flags: Any) -> Path:
    """A run directory as the command line would make it."""
    from clplat import config
    from clplat.tracking import directory

    composed = config.compose([*overrides, "trainer.progress=none", "trainer.accelerator=cpu"], flags=flags)
    composed["run"]["dir"] = str(run_dir)
    return directory.create(composed, ["test"])


def run(
    run_dir: Path,
    *,
    world: int = 1,
    kill_at: tuple[str, int] | None = None,
    kill_rank: int = 0,
    kill_after: float | None = None,
    number: int = signal.SIGKILL,
    file_limit: int | None = None,
    timeout: float = 120,
) -> Outcome:
    """Run, or resume, a run directory in forked ranks.

    Args:
        world: number of ranks.
        kill_at: (name of a fault point, how often it must have been passed) at which ``kill_rank`` sends itself the
            signal ``number``; after a SIGKILL the other ranks are ended from outside.
        kill_after: seconds after which ``kill_rank`` is killed from outside, wherever it is by then.
        file_limit: the most bytes a file may have, as on a disk that is full from there on.
    """
    port = _free_port()
    results = _context.Queue()
    ranks = [
        _context.Process(
            target=_rank,
            args=(str(run_dir), rank, world, port, kill_at if rank == kill_rank else None, number, file_limit, results),
        )
        for rank in range(world)
    ]
    for process in ranks:
        process.start()
    ranks[kill_rank].join(timeout if kill_after is None else kill_after)
    if kill_after is not None:
        ranks[kill_rank].kill()
        ranks[kill_rank].join()
    if (kill_at, kill_after) != (None, None) and ranks[kill_rank].exitcode == KILLED:
        for process in ranks:
            process.kill()
    for process in ranks:
        process.join(timeout)
        if process.is_alive():
            process.kill()
            process.join()
    points = _collected(results)
    output = "".join(p.read_text() for p in sorted(run_dir.glob("rank*.out")))
    return Outcome([process.exitcode if process.exitcode is not None else 1 for process in ranks], points, output)


def _collected(results: Any) -> Counter[str]:
    """How often each fault point was passed, over the processes that lived to say so."""
    points: Counter[str] = Counter()
    with contextlib.suppress(Exception):
        while not results.empty():
            points.update(results.get(timeout=1))
    return points


def command(
    *argv: str,
    cwd: Path,
    kill_at: tuple[str, int] | None = None,
    number: int = signal.SIGKILL,
    times: int = 1,
    file_limit: int | None = None,
    timeout: float = 120,
) -> Outcome:
    """``clplat ...`` in a forked process.

    Args:
        times: how often the signal is sent, at once, when the fault point is reached.
        file_limit: the most bytes a file may have, as on a disk that is full from there on.
    """
    results = _context.Queue()
    process = _context.Process(target=_command, args=(argv, str(cwd), kill_at, number, times, file_limit, results))
    process.start()
    process.join(timeout)
    if process.is_alive():
        process.kill()
        process.join()
    points = _collected(results)
    stdout, stderr = (_taken(Path(cwd) / f"command.{stream}") for stream in ("out", "err"))
    code = process.exitcode if process.exitcode is not None else 1
    return Outcome([code], points, stdout + stderr, stdout, stderr)


def _taken(path: Path) -> str:
    text = path.read_text()
    path.unlink()
    return text


def _command(
    argv: Sequence[str],
    cwd: str,
    kill_at: tuple[str, int] | None,
    number: int,
    times: int,
    file_limit: int | None,
    results: Any,
) -> None:
    os.chdir(cwd)
    _redirect(Path("command.out"), Path("command.err"))
    import torch

    from clplat.cli import main

    torch.set_num_threads(1)
    passed = _watch(kill_at, number, times)
    _limit(file_limit)
    _leave(main(list(argv)), passed, results)


def _rank(
    run_dir: str,
    rank: int,
    world: int,
    port: int,
    kill_at: tuple[str, int] | None,
    number: int,
    file_limit: int | None,
    results: Any,
) -> None:
    _redirect(Path(run_dir) / f"rank{rank}.out")
    shared = {"LOCAL_WORLD_SIZE": world, "NODE_RANK": 0, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    if world > 1:
        own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world}
        os.environ.update({key: str(value) for key, value in {**shared, **own}.items()})
    import torch

    from clplat import signals, worker
    from clplat.cli.app import guarded

    torch.set_num_threads(1)
    signals.install()
    passed = _watch(kill_at, number)
    _limit(file_limit)
    _leave(guarded(lambda: worker.run(Path(run_dir)), debug=True), passed, results)


def _limit(bytes_of_a_file: int | None) -> None:
    if bytes_of_a_file is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_of_a_file, bytes_of_a_file))


def _redirect(out: Path, err: Path | None = None) -> None:
    for descriptor, path in ((1, out), (2, err or out)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)


def _watch(kill_at: tuple[str, int] | None, number: int, times: int = 1) -> Counter[str]:
    """Count the fault points that are passed, and send this process the signal at the chosen one."""
    from clplat import faults

    passed: Counter[str] = Counter()

    def hook(name: str) -> None:
        passed[name] += 1
        if kill_at == (name, passed[name]):
            for _ in range(times):
                os.kill(os.getpid(), number)

    faults.hook = hook
    return passed


def _leave(code: int, passed: Counter[str], results: Any) -> None:
    results.put(dict(passed))
    results.close()
    results.join_thread()
    sys.stdout.flush()
    os._exit(code)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def results(run_dir: Path) -> dict[str, Any]:
    """results.json without what tells the time."""
    content = json.loads((run_dir / "results.json").read_text())
    return {key: value for key, value in content.items() if key not in TIMES}


def last_state(run_dir: Path) -> dict[str, Any]:
    """The state dict in the newest checkpoint."""
    from clplat import checkpoint

    found = checkpoint.newest(run_dir / "checkpoints")
    assert found is not None
    return found.state["model"]
