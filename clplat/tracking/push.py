"""Sending runs that have ended to Weights & Biases, from their directories."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clplat import yamlfile
from clplat.errors import ClplatError, RunFailedError
from clplat.tracking import directory
from clplat.tracking.mirrors.wandb import WandbMirror
from clplat.tracking.names import later
from clplat.tracking.record import shown_lines

NOTE = Path("wandb") / "pushed.json"  # what was pushed where, so that it is not pushed again
ENDED = ("done", "stopped")
SHOWN = {  # the files that are shown as a run of each job type
    "train": ("config.yaml", "metrics.jsonl", "timings.jsonl", "results.json"),
    "eval": ("metrics.json", "probes/*.json"),
}


@dataclass(frozen=True)
class Target:
    """Where to: a project, perhaps of an entity; offline writes what `wandb sync` would send."""

    project: str
    entity: str | None
    offline: bool

    def note(self, run_dir: Path) -> dict[str, Any]:
        """What is written down of a push: where to, and what the run held, for each job type."""
        content = {job: _digest(found) for job, files in SHOWN.items() if (found := _there(run_dir, files))}
        return {"project": self.project, "entity": self.entity, "offline": self.offline, **content}


def state(run_dir: Path, target: Target) -> str:
    """Whether a run is to be pushed ("push"), or why not."""
    status = directory.read_status(run_dir)["status"]
    if status not in ENDED or directory.is_locked(run_dir):
        return f"not ended: {status}"
    return "there already" if _before(run_dir) == target.note(run_dir) else "push"


def _before(run_dir: Path) -> dict[str, Any]:
    """What was written down of the last push."""
    try:
        found = json.loads((run_dir / NOTE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


class _Sending(WandbMirror):
    """Goes on offline only where that is asked for."""

    def unreachable(self, reason: str) -> None:
        raise RunFailedError(f"W&B cannot be reached: {reason}")


def push(run_dir: Path, target: Target) -> None:
    """Show a run that has ended in W&B as its logger would have, and what was measured of it since as a run beside it
    (job type ``eval``). Of the two what has changed since the last push is sent, and a run that W&B knows gets what it
    does not have yet.

    Raises:
        RunFailedError: W&B cannot be reached, or took not all of it; or the run directory cannot be read.
        MissingError: no API key is configured.
    """
    note, before = target.note(run_dir), _before(run_dir)
    elsewhere = any(note[key] != before.get(key) for key in ("project", "entity", "offline"))
    changed = [job for job in SHOWN if job in note and (elsewhere or note[job] != before.get(job))]
    config = yamlfile.read(run_dir / "config.yaml")[0]
    mirror = _Sending(project=target.project, entity=target.entity, mode="offline" if target.offline else "online")
    try:
        if "train" in changed:
            mirror.start(run_dir, config, shown_lines(run_dir))
            mirror.finish(directory.results(run_dir) or {})
        if "eval" in changed and (values := later(run_dir)):
            mirror.measured(run_dir, config, values)
    except ClplatError:
        raise
    except Exception as error:  # W&B's own errors are of many kinds, and so is what a damaged record leads to
        with contextlib.suppress(Exception):
            mirror.finish(None)
        raise RunFailedError(f"{run_dir}: not pushed: {type(error).__name__}: {error}") from error
    directory.write_atomic(run_dir / NOTE, json.dumps(note) + "\n")


def _there(run_dir: Path, patterns: Sequence[str]) -> list[Path]:
    return sorted(path for pattern in patterns for path in run_dir.glob(pattern) if path.is_file())


def _digest(paths: Sequence[Path]) -> str:
    found = hashlib.blake2b(digest_size=16)
    for path in paths:
        found.update(f"{path.name}\0{path.stat().st_size}\0".encode() + path.read_bytes())
    return found.hexdigest()
