"""One rank of a run: builds what the run directory's configuration says, and runs it from where it stands."""

from __future__ import annotations

import contextlib
import os
import platform
import shlex
import sys
import traceback
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from clplat import signals

signals.install()

import torch  # noqa: E402 - a signal that comes while torch is imported must not be lost

from clplat import config as configuration  # noqa: E402
from clplat.build import build, build_mirrors  # noqa: E402
from clplat.cluster import environment as srun  # noqa: E402
from clplat.errors import EXIT_FAILED, EXIT_INTERRUPTED, ClplatError, RunFailedError, UsageError  # noqa: E402
from clplat.learner import Preempted  # noqa: E402
from clplat.loop import Run  # noqa: E402
from clplat.ranks import Ranks  # noqa: E402
from clplat.tracking import closing, continuation, directory  # noqa: E402
from clplat.tracking.directory import write_atomic  # noqa: E402
from clplat.tracking.progress import Silent, display  # noqa: E402
from clplat.tracking.record import Record  # noqa: E402


def run(run_dir: Path) -> int:
    """Run this rank to the end of the run, or to a stop; returns the exit code.

    Raises:
        ClplatError: what the command line turns into one clear line; the run's status says ``failed``.
    """
    srun.adopt()
    if int(os.environ.get("RANK", 0)) != 0:
        return _run(run_dir, Record(None))
    with directory.locked(run_dir):
        world = int(os.environ.get("WORLD_SIZE", 1))
        job = {key: os.environ[name] for key, name in _JOB.items() if name in os.environ}
        directory.write_history(run_dir, "start", world=world, **job)
        code = None
        try:
            code = _run(run_dir, Record(run_dir))
        finally:
            with contextlib.suppress(OSError):
                status = directory.read_status(run_dir)["status"]
                directory.write_history(run_dir, "end", status=status, code=EXIT_FAILED if code is None else code)
        return code


_JOB = {"job": "SLURM_JOB_ID", "array_task": "SLURM_ARRAY_TASK_ID", "restart": "SLURM_RESTART_COUNT"}


def _run(run_dir: Path, record: Record) -> int:
    config = configuration.load(continuation.configuration_file(run_dir))
    results, refused = None, False
    first, go_on = record.run_dir is not None, f"clplat resume {shlex.quote(str(run_dir))}"
    show = display(config["trainer"]["progress"]) if first else Silent()
    record.quiet = config["trainer"]["progress"] == "quiet"
    try:
        signals.listen(config["run"]["signal"])
        ranks = Ranks.from_environment(config["trainer"]["accelerator"])
        set_threads(config["trainer"]["threads"])
        torch.use_deterministic_algorithms(config["trainer"]["deterministic"])
        built = build(config, ranks)
        job = Run(
            built.learner,
            built.scenario,
            eval_settings=built.eval_settings,
            run_dir=run_dir,
            record=record,
            keep_optimizer_state=built.keep_optimizer_state,
            show=show,
            config=config,
            stop_after=config["run"]["stop_after"],
        )
        if first:
            record.mirrors = build_mirrors(config["logger"])
            for warning in built.warnings:
                record.say(warning)
            remember_environment(run_dir, record, config["trainer"]["threads"])
        try:
            job.restore()
        except UsageError as error:
            if first and (run_dir / "checkpoints").is_dir():
                continuation.settle(run_dir, accepted=False)
            refused = directory.read_status(run_dir)["status"] != "created"
            raise UsageError(*(f"{run_dir} cannot go on like this: {message}" for message in error.messages)) from None
        if first:
            continuation.settle(run_dir, accepted=True)
        results = job.execute()
    except BaseException as error:
        # Lightning turns a KeyboardInterrupt, which the second Ctrl-C raises, into a SystemExit.
        if isinstance(error, Preempted) or signals.interrupted():
            code = error.exit_code if isinstance(error, Preempted) else EXIT_INTERRUPTED
            record.status("preempted")
            record.say(f"stopped by a signal; go on with: {go_on}")
            if first:
                closing.show_stopped(run_dir, code, config["trainer"]["progress"])
            return code
        with contextlib.suppress(RunFailedError, OSError):  # the directory may be what failed
            kind = "" if isinstance(error, ClplatError) else f"{type(error).__name__}: "
            if not refused:  # then the run is what it was
                record.status("failed", error=f"{kind}{error}")
            if not isinstance(error, ClplatError) and first:
                write_atomic(run_dir / "traceback.txt", traceback.format_exc())
        raise
    finally:
        show.close()
        record.close(results)
    if first:
        closing.show(results, run_dir, config["trainer"]["progress"])
    if first and results["status"] != "done":
        record.say(f"stopped after {len(results['matrix'])} experiences; go on with: {go_on}")
    return 0


def set_threads(threads: int | None) -> None:
    """CPU threads of this rank: as told, or the machine's cores shared among its ranks."""
    if threads is None:
        local = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        if local == 1:
            return
        threads = max(1, len(os.sched_getaffinity(0)) // local)
    torch.set_num_threads(threads)


def environment() -> dict[str, Any]:
    """What results may depend on besides the configuration."""
    packages = ("clplat", "torch", "pytorch-lightning", "torchvision", "numpy", "avalanche-lib", "wandb")
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in packages},
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "world_size": int(os.environ.get("WORLD_SIZE", 1)),
        "device": torch.cuda.get_device_name() if torch.cuda.is_initialized() else "cpu",
    }


def remember_environment(run_dir: Path, record: Record, threads: int | None) -> None:
    """Write environment.json; on resume restore the thread count, unless ``trainer.threads`` says one, and say what
    else is not as it was."""
    import json

    path, now = run_dir / "environment.json", environment()
    before: Mapping[str, Any] = {}
    if path.exists() and (run_dir / "checkpoints").is_dir():
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            record.say(f"warning: {path} cannot be read")
    if threads is None and before.get("threads", now["threads"]) != now["threads"]:
        torch.set_num_threads(before["threads"])
        now = environment()
    changed = [f"{key} was {before[key]} and is {now[key]}" for key in before if before[key] != now.get(key)]
    if changed:
        record.say(f"warning: results may differ in the last digits from an uninterrupted run: {'; '.join(changed)}")
    else:
        record.write("environment.json", now)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    from clplat.cli.app import guarded

    sys.exit(guarded(lambda: run(Path(sys.argv[1]))))
