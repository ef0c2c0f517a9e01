"""Submitting runs to a scheduler: directories, the batch script, and nothing left behind where that fails."""

from __future__ import annotations

import contextlib
import itertools
import re
import shutil
import signal
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from clplat import registry, signals
from clplat.cluster import jobs
from clplat.cluster.base import Batch, Cluster
from clplat.errors import ClplatError, UsageError
from clplat.tracking import code, directory

NAMED = ("strategy", "backbone", "scenario")  # what an array is named after


def place_of(config: Mapping[str, Any]) -> Cluster:
    """The cluster that a configuration names."""
    options = {key: value for key, value in config["cluster"].items() if key != "name"}
    built = registry.find("cluster", config["cluster"]["name"]).build(**options)
    assert isinstance(built, Cluster)
    return built


def batch_of(configs: Sequence[Mapping[str, Any]], runs: Sequence[Path], folder: Path | None = None) -> Batch:
    """What is submitted; ``folder`` is that of an array, by default the first that is free."""
    first = configs[0]
    if len(configs) > 1:
        folder = folder or next(path for path in _folders(configs, runs[0].parent) if not path.exists())
    return Batch(
        name=f"clplat-{(folder or runs[0]).name}",
        folder=folder or runs[0],
        runs=tuple(runs),
        workdir=Path.cwd(),
        nodes=first["trainer"].get("num_nodes", 1),
        ranks=first["trainer"].get("devices", 1),
        signal=str(first["run"].get("signal", "USR1")).removeprefix("SIG"),
    )


def _folders(configs: Sequence[Mapping[str, Any]], root: Path) -> Iterator[Path]:
    """Places for an array, beside its runs: ROOT/array-NAME-1, -2, ..."""
    names = {group: dict.fromkeys(config[group]["name"] for config in configs) for group in NAMED}
    name = re.sub(r"[^\w.+-]+", "_", "-".join("_".join(each) for each in names.values()))[:100]
    return (root / f"array-{name}-{number}" for number in itertools.count(1))


def planned(configs: Sequence[Mapping[str, Any]]) -> list[Path]:
    """The directories that :func:`clplat.tracking.directory.create` would make now."""
    found: list[Path] = []
    for config in configs:
        if config["run"]["dir"]:
            found.append(Path(config["run"]["dir"]).expanduser().absolute())
            continue
        root, name = Path(config["run"]["root"]).expanduser().absolute(), directory.run_name(config)
        names = (root / (name if number == 1 else f"{name}-{number}") for number in itertools.count(1))
        found.append(next(path for path in names if not path.exists() and path not in found))
    return found


def refuse_active(runs: Sequence[Path]) -> None:
    """A job that still writes into a directory must not find it emptied."""
    for job in filter(None, map(jobs.read, runs)):
        state = jobs.states([job]).get(job.run)
        if state is not None and state.active:
            raise UsageError(f"{job.run}: its job {job.id} is {state}; first `clplat cancel` it")


def submit(
    place: Cluster,
    configs: Sequence[Mapping[str, Any]],
    argv: Sequence[str],
    overwrite: bool,
    *,
    go_on: bool = False,
) -> tuple[Batch, str]:
    """Make the directories and submit; where that fails, all that was made goes again.

    A signal before the scheduler is asked ends it all; one that comes later is too late, since the job must be noted.

    Args:
        overwrite: start again in run directories that are there.
        go_on: go on in those that are there.
    """
    snapshot = code.snapshot(Path.cwd())
    name = configs[0]["cluster"]["name"]
    with signals.received((signal.SIGINT, signal.SIGTERM)) as received:
        with _Undo() as undo:
            batch = _make(configs, argv, overwrite, go_on, snapshot, undo)
            directory.write_atomic(batch.script, place.text(batch))
            if received:
                raise KeyboardInterrupt
            try:
                job = place.submit(batch.script)
            except ClplatError:
                if received:  # Ctrl-C ended the scheduler's command as well
                    raise KeyboardInterrupt from None
                raise
        jobs.write(batch, name, [place.task(job, i) if batch.several else job for i in range(len(batch.runs))])
    return batch, job


def _make(
    configs: Sequence[Mapping[str, Any]],
    argv: Sequence[str],
    overwrite: bool,
    go_on: bool,
    snapshot: tuple[dict[str, Any], bytes],
    undo: _Undo,
) -> Batch:
    """The run directories, and of several the folder of their array."""
    undo.root(Path(configs[0]["run"]["dir"] or configs[0]["run"]["root"]).expanduser().absolute())
    runs = []
    for config in configs:
        chosen = Path(config["run"]["dir"] or "").expanduser().absolute()
        if go_on and config["run"]["dir"] and directory.is_run(chosen):
            runs.append(chosen)
            continue
        run = directory.create(config, argv, overwrite=overwrite).absolute()
        undo.run(run)
        code.write(run, *snapshot)
        runs.append(run)
    if len(runs) == 1:
        return batch_of(configs, runs)
    for folder in _folders(configs, runs[0].parent):
        with contextlib.suppress(FileExistsError):
            folder.mkdir()
            break
    undo.folder(folder)
    directory.write_atomic(folder / "runs.txt", "".join(f"{run}\n" for run in runs))
    return batch_of(configs, runs, folder)


class _Undo:
    """Takes away what was made, if the block ends in an error. What was there before stays."""

    def __init__(self) -> None:
        self._before: set[Path] = set()
        self._roots: list[Path] = []
        self._folders: list[Path] = []
        self._runs: list[Path] = []

    def root(self, path: Path) -> None:
        """A folder that may be made, together with those above it."""
        chain = [path, *path.parents]
        self._before |= {each for each in chain if each.exists()}
        self._roots += [each for each in chain if each not in self._roots]

    def run(self, path: Path) -> None:
        """A run directory that was made."""
        self._runs.append(path)

    def folder(self, path: Path) -> None:
        """A folder of ours alone."""
        self._folders.append(path)

    def __enter__(self) -> _Undo:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is None:
            return
        for folder in self._folders:
            shutil.rmtree(folder)
        for run in self._runs:
            for name in ("config.yaml", "command.txt", "status.json", *directory.JOB_FILES):
                (run / name).unlink(missing_ok=True)
        made = [path for path in {*self._runs, *self._roots} if path not in self._before and path.is_dir()]
        for path in sorted(made, key=lambda path: len(path.parts), reverse=True):
            if not any(path.iterdir()):
                path.rmdir()


def announcement(batch: Batch, job: str) -> str:
    """What was submitted and how to look at it, in two lines."""
    several = f", an array of {len(batch.runs)} runs" if batch.several else ""
    place = directory.shown(batch.folder.parent if batch.several else batch.runs[0])
    return f"job {job}{several}: {batch.folder}\nlook at it with: clplat jobs {place}"
