"""Making run directories and reading their status; no torch.

A run directory is one that holds ``config.yaml`` and ``status.json``. It is made once, by the process that starts the
ranks, and everything else is written into it by the run.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shlex
import shutil
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from clplat import config as configuration
from clplat.errors import RunFailedError, UsageError

# All that submitting, and the batch script, write into a run directory.
JOB_FILES = ("job.json", "job.sbatch", "job.log", "job.history", "job.stopped", "code.json", "code.diff")
# All that a run writes into its directory; --overwrite takes these away and leaves everything else.
RECORDS = (
    *JOB_FILES,
    "results.json",
    "metrics.json",
    "predictions",
    "features",
    "metrics.jsonl",
    "timings.jsonl",
    "environment.json",
    "history.jsonl",
    "config.next.yaml",
    "log.txt",
    "output.log",
    "traceback.txt",
    "checkpoints",
    "probes",
    "wandb",
    "csv",
    "tensorboard",
    "mlflow",
)


def write_atomic(path: Path, text: str) -> None:
    """Write a file so that a reader, and a crash at any moment, sees either the old text or the new."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def is_run(directory: Path) -> bool:
    """Whether a folder is a run directory of ours."""
    return (directory / "config.yaml").is_file() and (directory / "status.json").is_file()


def shown(path: Path) -> str:
    """A path as one would type it: relative to where we are if it lies below, and quoted where that is needed."""
    relative = os.path.relpath(path)
    return shlex.quote(str(path) if relative.startswith("..") else relative)


def read_status(run_dir: Path) -> dict[str, Any]:
    """The content of ``status.json``; ``{"status": "unknown"}`` where there is none that can be read."""
    try:
        status = json.loads((run_dir / "status.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        status = None
    return status if isinstance(status, dict) and "status" in status else {"status": "unknown"}


def write_status(run_dir: Path, status: str, **extra: Any) -> None:
    """Write ``status.json`` atomically: ``{"status": status, **extra}``.

    On a full disk there is no room for a second file; then the one that is there is written over, so that a run that
    failed for want of space can say so.
    """
    path, text = run_dir / "status.json", json.dumps({"status": status, **extra}) + "\n"
    try:
        write_atomic(path, text)
    except OSError:
        with open(path, "r+", encoding="utf-8") as file:
            file.write(text)
            file.truncate()


def write_history(run_dir: Path, event: str, **extra: Any) -> None:
    """Add a line to ``history.jsonl``: when the run was started, where, and how each start ended."""
    line = {"event": event, "time": time.time(), "host": socket.gethostname(), "pid": os.getpid(), **extra}
    with open(run_dir / "history.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


@contextlib.contextmanager
def locked(run_dir: Path) -> Iterator[None]:
    """Hold a run directory: two processes writing one run would spoil it. The lock ends with the process, however.

    Raises:
        UsageError: another process holds it.
    """
    with open(run_dir / ".lock", "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise UsageError(f"{run_dir} is being run by another process ({file.read().strip()})") from None
        except OSError:  # a file system that has no locks
            pass
        with contextlib.suppress(OSError):  # a full disk is told of by what matters more
            file.truncate(0)
            file.write(f"pid {os.getpid()} on {socket.gethostname()}\n")
            file.flush()
        yield


def is_locked(run_dir: Path) -> bool:
    """Whether some process is running this run now, as far as the file system can tell."""
    try:
        with open(run_dir / ".lock", encoding="utf-8") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        pass
    return False


def create(config: Mapping[str, Any], argv: Sequence[str], *, overwrite: bool = False) -> Path:
    """Make the run directory and write ``config.yaml``, ``command.txt`` and ``status.json`` into it.

    Args:
        config: a resolved configuration; ``run.dir`` names the directory, else one with a readable name is made in
            ``run.root``.
        argv: the arguments of the command line, for the record.
        overwrite: start again in an existing run directory; what earlier runs wrote there goes, foreign files stay.

    Raises:
        UsageError: the directory holds something already, or cannot be made or written.
    """
    chosen, root = config["run"]["dir"], Path(config["run"]["root"]).expanduser()
    run_dir = root
    try:
        run_dir = _claim(Path(chosen).expanduser(), overwrite) if chosen else _claim_new(root, run_name(config))
        write_status(run_dir, "created")
        write_atomic(run_dir / "config.yaml", configuration.dump(config))
        write_atomic(run_dir / "command.txt", shlex.join(["clplat", *argv]) + "\n")
    except (FileExistsError, NotADirectoryError):
        raise UsageError(f"{chosen or run_dir}: not a folder") from None
    except OSError as error:
        raise UsageError(f"{chosen or run_dir}: cannot make a run directory here: {error.strerror}") from None
    except ValueError as error:  # a name that no file system takes, such as one with a null character
        raise UsageError(f"{chosen or run_dir!r}: cannot make a run directory here: {error}") from None
    return run_dir


def run_name(config: Mapping[str, Any]) -> str:
    """A readable name for a run: strategy, backbone, scenario and seed."""
    parts = [config[group]["name"] for group in ("strategy", "backbone", "scenario")]
    return re.sub(r"[^\w.+-]+", "_", f"{'-'.join(parts)}-s{config['seed']}")[:200].lstrip(".-") or "run"


def sweep(run_dir: Path) -> str | None:
    """The name of the sweep that made a run, by its command; of a candidate ``NAME/select``. None for any other run."""
    try:
        words = shlex.split((run_dir / "command.txt").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    folder = run_dir.resolve().parent
    if words[1:2] != ["sweep"]:
        return None
    return f"{folder.parent.name}/select" if folder.name == "select" else folder.name


def _claim_new(root: Path, name: str) -> Path:
    """The first of name, name-2, name-3, ... that nobody has; mkdir is atomic, so no two processes share one."""
    root.mkdir(parents=True, exist_ok=True)
    number = 1
    while True:
        run_dir = root / (name if number == 1 else f"{name}-{number}")
        try:
            run_dir.mkdir()
            return run_dir
        except FileExistsError:
            number += 1


def _claim(run_dir: Path, overwrite: bool) -> Path:
    """A directory that was asked for by name: new, empty, or one of ours that may be overwritten."""
    run_dir.mkdir(parents=True, exist_ok=True)
    if not any(run_dir.iterdir()):
        try:
            (run_dir / "command.txt").open("x").close()  # of two processes only one gets past this
            return run_dir
        except FileExistsError:
            pass
    if not is_run(run_dir):
        raise UsageError(f"{run_dir} is not empty and not a run directory of clplat; nothing in it was touched")
    if not overwrite:
        raise UsageError(
            f"{run_dir} holds a run already: continue it with `clplat resume {shlex.quote(str(run_dir))}`, "
            "or start it again with --overwrite"
        )
    if is_locked(run_dir):  # a process that still writes here must not find it emptied
        raise UsageError(f"{run_dir} is being run by another process")
    for name in RECORDS:
        path = run_dir / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    return run_dir


def results(run_dir: Path) -> dict[str, Any] | None:
    """The content of ``results.json``, or None where there is none yet.

    Raises:
        RunFailedError: it is there and cannot be read.
    """
    try:
        content = json.loads((run_dir / "results.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise RunFailedError(f"{run_dir / 'results.json'}: {error}") from None
    return content if isinstance(content, dict) else None
