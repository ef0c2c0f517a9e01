"""Sending runs that have ended to Weights & Biases, from their directories."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clplat import yamlfile
from clplat.errors import ClplatError, RunFailedError
from clplat.tracking import directory
from clplat.tracking.mirrors.wandb import WandbMirror
from clplat.tracking.record import lines

NOTE = Path("wandb") / "pushed.json"  # what was pushed where, so that it is not pushed again
ENDED = ("done", "stopped")


@dataclass(frozen=True)
class Target:
    """Where to: a project, perhaps of an entity; offline writes what `wandb sync` would send."""

    project: str
    entity: str | None
    offline: bool

    def note(self, run_dir: Path) -> dict[str, Any]:
        """What is written down of a push: where to, and what the run held."""
        return {"project": self.project, "entity": self.entity, "offline": self.offline, "content": _digest(run_dir)}


def state(run_dir: Path, target: Target) -> str:
    """Whether a run is to be pushed ("push"), or why not."""
    status = directory.read_status(run_dir)["status"]
    if status not in ENDED or directory.is_locked(run_dir):
        return f"not ended: {status}"
    try:
        before = json.loads((run_dir / NOTE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        before = None
    return "there already" if before == target.note(run_dir) else "push"


class _Sending(WandbMirror):
    """Goes on offline only where that is asked for."""

    def unreachable(self, reason: str) -> None:
        raise RunFailedError(f"W&B cannot be reached: {reason}")


def push(run_dir: Path, target: Target) -> None:
    """Show a run that has ended in W&B as its logger would have. A run that W&B knows gets what it does not have yet.

    Raises:
        RunFailedError: W&B cannot be reached, or took not all of it; or the run directory cannot be read.
        MissingError: no API key is configured.
    """
    note = target.note(run_dir)
    config = yamlfile.read(run_dir / "config.yaml")[0]
    mirror = _Sending(project=target.project, entity=target.entity, mode="offline" if target.offline else "online")
    try:
        mirror.start(run_dir, config, lines(run_dir, "metrics.jsonl"))
        mirror.finish(directory.results(run_dir) or {})
    except ClplatError:
        raise
    except Exception as error:  # W&B's own errors are of many kinds, and so is what a damaged record leads to
        with contextlib.suppress(Exception):
            mirror.finish(None)
        raise RunFailedError(f"{run_dir}: not pushed: {type(error).__name__}: {error}") from error
    directory.write_atomic(run_dir / NOTE, json.dumps(note) + "\n")


def _digest(run_dir: Path) -> str:
    """Of all that is shown of a run."""
    found = hashlib.blake2b(digest_size=16)
    for path in _shown(run_dir):
        found.update(f"{path.name}\0{path.stat().st_size}\0".encode() + path.read_bytes())
    return found.hexdigest()


def _shown(run_dir: Path) -> Iterator[Path]:
    names = ("config.yaml", "metrics.jsonl", "timings.jsonl", "results.json", "metrics.json")
    yield from (run_dir / name for name in names if (run_dir / name).is_file())
    yield from sorted(path for path in (run_dir / "probes").glob("*.json") if path.is_file())
