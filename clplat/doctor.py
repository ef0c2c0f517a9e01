"""What this machine can do for a run, and what to do about what it cannot: ``clplat doctor``."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import platform
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from clplat import machine
from clplat.tracking import directory

Level = Literal["ok", "warning", "problem"]
PACKAGES = ("torch", "pytorch-lightning", "torchvision", "numpy", "avalanche-lib", "wandb")
GIB = 2**30


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Args:
        about: what.
        level: ok; warning: works, and something may be missed; problem: something will fail.
        found: what is so.
        remedy: what to do; empty when it is ok.
    """

    about: str
    level: Level
    found: str
    remedy: str = ""


def examine(root: Path) -> Iterator[Finding]:
    """Look at everything, one finding after the other; nothing stays behind.

    Args:
        root: the folder in which runs will be written.
    """
    for check in (packages, processor, gpus, ranks, slurm, lambda: disk(root), shared_memory, wandb):
        yield from check()


def packages() -> Iterator[Finding]:
    """Whether everything can be imported, and which versions there are."""
    yield Finding("python", "ok", f"{platform.python_version()} on {platform.platform()}")
    for name in PACKAGES:
        module = {"pytorch-lightning": "pytorch_lightning", "avalanche-lib": "avalanche"}.get(name, name)
        try:
            version = metadata.version(name)
            if name != "avalanche-lib":  # importing it takes ten seconds; its metadata will do
                importlib.import_module(module)
            yield Finding(name, "ok", version)
        except metadata.PackageNotFoundError:
            yield Finding(name, "problem", "not installed", "install clplat with its dependencies: scripts/demo")
        except Exception as error:  # a broken package fails in any way it likes
            reason = (str(error).splitlines() or [""])[0]
            yield Finding(name, "problem", f"cannot be imported: {reason}", "reinstall with constraints.txt")


def processor() -> Iterator[Finding]:
    """Cores that this process may use, and memory."""
    cores = machine.cores()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    if memory < 2:
        yield Finding("cpu", "warning", f"{cores} cores, {memory:.1f} GiB memory", "imports alone take about 1 GiB")
    else:
        yield Finding("cpu", "ok", f"{cores} cores, {memory:.1f} GiB memory")


def gpus() -> Iterator[Finding]:
    """The GPUs that torch can use."""
    import torch

    if not torch.cuda.is_available():
        built = torch.version.cuda
        if shutil.which("nvidia-smi") is None:
            yield Finding("gpu", "ok", "none; runs use the CPU")
        else:
            remedy = "check the driver with nvidia-smi" if built else "install the CUDA build of torch"
            yield Finding("gpu", "problem", f"nvidia-smi is here and torch (CUDA {built}) sees no GPU", remedy)
        return
    for number in range(torch.cuda.device_count()):
        of_it = torch.cuda.get_device_properties(number)
        bf16 = "bf16" if torch.cuda.is_bf16_supported() else "no bf16"
        yield Finding(f"gpu {number}", "ok", f"{of_it.name}, {of_it.total_memory / GIB:.0f} GiB, {bf16}")


def ranks() -> Iterator[Finding]:
    """Whether two processes of this machine can reach each other, by gloo and, with GPUs, by NCCL."""
    import torch

    backends = ["gloo"]
    if torch.cuda.device_count() > 1:
        backends.append("nccl")
    for backend in backends:
        begun = time.monotonic()
        problem = _meet(backend)
        if problem is None:
            yield Finding(backend, "ok", f"two ranks summed a number in {time.monotonic() - begun:.1f} s")
        else:
            remedy = "set GLOO_SOCKET_IFNAME (NCCL_SOCKET_IFNAME) to an interface that is up, e.g. lo"
            yield Finding(backend, "problem", f"two ranks cannot meet: {problem}", remedy)


def slurm() -> Iterator[Finding]:
    """Whether jobs can be submitted from here."""
    if shutil.which("sbatch") is None:
        yield Finding("slurm", "ok", "not here; clplat submit needs it, nothing else does")
        return
    try:
        sinfo = subprocess.run(
            ["sinfo", "--noheader", "--format=%P %a %l"], capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        said = (getattr(error, "stderr", "") or str(error)).strip().splitlines()
        remedy = "check SLURM_CONF, or start one: scripts/slurm_local up"
        yield Finding("slurm", "warning", f"sbatch is here, but sinfo fails: {said[-1] if said else ''}", remedy)
        return
    partitions = sorted({line.split()[0] for line in sinfo.stdout.splitlines() if line.split()})
    yield Finding("slurm", "ok", f"partitions {', '.join(partitions)}")


def disk(root: Path) -> Iterator[Finding]:
    """Whether runs can be written, flushed, renamed and locked where they will lie, and the space there."""
    place = next(folder for folder in (root.absolute(), *root.absolute().parents) if folder.is_dir())
    free = shutil.disk_usage(place).free / GIB
    try:
        with tempfile.TemporaryDirectory(prefix=".clplat-doctor-", dir=place) as made:
            begun = time.monotonic()
            directory.write_atomic(Path(made) / "file", "x" * 4096)
            seconds = time.monotonic() - begun
            with directory.locked(Path(made)):
                held = directory.is_locked(Path(made))
    except OSError as error:
        remedy = "choose another folder with run.root=DIR"
        yield Finding("disk", "problem", f"{place} cannot be written: {error.strerror}", remedy)
        return
    words = f"{free:.1f} GiB free in {place}, {1000 * seconds:.0f} ms for a flushed file"
    if free < 1:
        yield Finding("disk", "warning", words, "a run that cannot write a checkpoint fails; make room")
    else:
        yield Finding("disk", "ok", words)
    if not held:
        remedy = "do not start the same run twice"
        yield Finding("locks", "warning", f"{place} has no file locks", remedy)


def shared_memory() -> Iterator[Finding]:
    """Room in /dev/shm, through which the workers of data loaders hand over batches."""
    if not os.path.isdir("/dev/shm"):
        return
    free = shutil.disk_usage("/dev/shm").free / GIB
    if free < 0.25:
        remedy = "start the container with --shm-size=1g, or load data in the main process"
        yield Finding("shared memory", "warning", f"{free:.2f} GiB free in /dev/shm", remedy)
    else:
        yield Finding("shared memory", "ok", f"{free:.1f} GiB free in /dev/shm")


def wandb() -> Iterator[Finding]:
    """Whether W&B would be written online; nothing is sent."""
    mode = os.environ.get("WANDB_MODE", "online")
    if mode in ("offline", "disabled", "dryrun"):
        yield Finding("w&b", "ok", f"WANDB_MODE={mode}: --logger wandb writes files only")
    elif os.environ.get("WANDB_API_KEY") or _has_netrc_entry():
        yield Finding("w&b", "ok", "there is a key; whether it is valid shows at the first --logger wandb")
    else:
        remedy = "wandb login, or WANDB_MODE=offline"
        yield Finding("w&b", "warning", "not logged in; --logger wandb would be switched off", remedy)


def _has_netrc_entry() -> bool:
    import netrc

    own = os.environ.get("WANDB_BASE_URL", "").split("//")[-1].split("/")[0].split(":")[0]
    try:
        return any("wandb" in host or host == own for host in netrc.netrc().hosts)
    except (OSError, netrc.NetrcParseError):
        return False


def _meet(backend: str) -> str | None:
    """Let two processes sum a number; what went wrong, or None."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    context: Any = multiprocessing.get_context("spawn" if backend == "nccl" else "fork")
    answers = context.Queue()
    pair = [context.Process(target=_one_of_two, args=(backend, rank, port, answers)) for rank in range(2)]
    for process in pair:
        process.start()
    for process in pair:
        process.join(40)
        if process.is_alive():
            process.kill()
            process.join()
    found = [answers.get() for _ in range(2) if not answers.empty()]
    if found == ["", ""]:
        return None
    return next((answer for answer in found if answer), "no answer within 40 seconds")


def _one_of_two(backend: str, rank: int, port: int, answers: Any) -> None:
    import torch
    import torch.distributed as dist

    try:
        dist.init_process_group(
            backend, f"tcp://127.0.0.1:{port}", rank=rank, world_size=2, timeout=timedelta(seconds=20)
        )
        one = torch.ones(1, device=torch.device("cuda", rank) if backend == "nccl" else "cpu")
        dist.all_reduce(one)
        answers.put("" if one.item() == 2 else f"the sum was {one.item()}")
        dist.destroy_process_group()
    except Exception as error:  # whatever it is, it is the finding
        answers.put((str(error).splitlines() or [type(error).__name__])[0])
