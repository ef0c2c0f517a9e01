"""The job of a run: what was submitted, how often it was started, and what has become of it; no torch.

``job.json`` is written by `clplat submit`, ``job.history`` by the batch script: a line for each start and requeue. So a
script that somebody submitted once more by hand is found as well.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clplat import registry
from clplat.cluster.base import Batch, Cluster, State
from clplat.errors import RunFailedError
from clplat.tracking.directory import write_atomic


@dataclass(frozen=True)
class Job:
    """The job of a run.

    Args:
        run: the run directory.
        cluster: the entry of ``conf/cluster``.
        id: the scheduler's id; A_T for task T of array A.
        log: what the job has printed.
        starts: how often it was started.
    """

    run: Path
    cluster: str
    id: str
    log: Path
    starts: int

    @property
    def requeues(self) -> int:
        """How often it was started again."""
        return max(0, self.starts - 1)


def write(batch: Batch, cluster: str, ids: Iterable[str]) -> None:
    """Write ``job.json`` of each run of a batch."""
    for index, (run, job) in enumerate(zip(batch.runs, ids, strict=True)):
        content = {
            "cluster": cluster,
            "job": job,
            "script": str(batch.script),
            "log": str(batch.log(index)),
            "submitted": time.time(),
            "starts_before": len(_starts(run)),
        }
        write_atomic(run / "job.json", json.dumps(content, indent=2) + "\n")


def read(run: Path) -> Job | None:
    """The job of a run, or None of one that was not submitted.

    Raises:
        RunFailedError: its record cannot be read.
    """
    path = run / "job.json"
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
        cluster, job, log = (str(content[key]) for key in ("cluster", "job", "log"))
        before = int(content.get("starts_before", 0))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise RunFailedError(f"{path}: cannot be read: {type(error).__name__}: {error}") from None
    starts = _starts(run)[before:]  # those of earlier jobs say nothing of this one, which may still wait
    job = starts[-1] if starts else job
    return Job(run, cluster, job, Path(log), starts.count(job))


def _starts(run: Path) -> list[str]:
    """The id of each start of the job."""
    try:
        lines = (run / "job.history").read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise RunFailedError(f"{run / 'job.history'}: {error.strerror}") from None
    words = [line.split() for line in lines]
    return [word[1] for word in words if len(word) > 1 and word[0] == "start"]


def clusters(jobs: Iterable[Job]) -> dict[str, list[Job]]:
    """Jobs by the name of their cluster."""
    found: dict[str, list[Job]] = {}
    for job in jobs:
        found.setdefault(job.cluster, []).append(job)
    return found


def cluster(name: str) -> Cluster:
    """A cluster to ask about jobs, whatever options they were submitted with."""
    built = registry.find("cluster", name).build()
    assert isinstance(built, Cluster)
    return built


def states(jobs: Iterable[Job]) -> Mapping[Path, State]:
    """The state of each run's job that its scheduler still knows.

    Raises:
        ClplatError: a scheduler cannot be asked.
    """
    found: dict[Path, State] = {}
    for name, some in clusters(jobs).items():
        known = cluster(name).states([job.id for job in some])
        found |= {job.run: known[job.id] for job in some if job.id in known}
    return found
