"""Read an offline ``.wandb`` file: what would reach Weights & Biases if it were synced.

The file is a log in LevelDB's format: a header of seven bytes (``:W&B``, a magic number, a version), then blocks of
32 KiB filled with chunks of checksum, length, kind and data. A record (protobuf) is one chunk or several in a row.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wandb.proto import wandb_internal_pb2

HEADER, BLOCK = 7, 32 * 1024
CHUNK = struct.Struct("<IHB")
FULL, FIRST, LAST = 1, 2, 4
RECORD: Any = vars(wandb_internal_pb2)["Record"]  # made at import: type checkers do not see it


@dataclass
class WandbFile:
    """The content of an offline run's file.

    Args:
        folder: the ``offline-run-*`` directory.
        run: id, project, group, name, job type and tags.
        config: the run's configuration, nested.
        history: what was logged, one dict for each step.
        axes: metric or glob -> the metric that it is drawn against; "" for one that is an axis itself.
        summary: the last value of each metric and what was set explicitly.
        exit_code: None while the run is not finished.
        artifacts: what was logged as artifacts.
        kinds: the kind of each record, in order.
    """

    folder: Path
    run: Any = None
    config: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    axes: dict[str, str] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    exit_code: int | None = None
    artifacts: list[Any] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)

    def media(self, value: dict[str, Any]) -> dict[str, Any]:
        """The content of a table or figure that a history entry refers to."""
        content = json.loads((self.folder / "files" / value["path"]).read_text(encoding="utf-8"))
        assert isinstance(content, dict)
        return content

    def series(self, name: str, axis: str) -> list[tuple[int, float]]:
        """``(axis, value)`` of each entry that has the metric."""
        return [(row[axis], row[name]) for row in self.history if name in row]


def offline_runs(run_dir: Path) -> list[WandbFile]:
    """The offline runs in a run directory, the oldest first; each start of the run makes one."""
    return [
        read(path)
        for path in sorted(run_dir.glob("wandb/offline-run-*/run-*.wandb"), key=lambda p: p.stat().st_mtime_ns)
    ]


def read(path: Path) -> WandbFile:
    """Read all records of a file."""
    found = WandbFile(path.parent)
    for data in _records(path.read_bytes()):
        record = RECORD()
        record.ParseFromString(data)
        kind = record.WhichOneof("record_type") or ""
        found.kinds.append(kind)
        if kind == "run":
            found.run = record.run
            _update(found.config, record.run.config.update)
        elif kind == "config":
            _update(found.config, record.config.update)
        elif kind == "history":
            row: dict[str, Any] = {}
            _update(row, record.history.item)
            found.history.append(row)
        elif kind == "summary":
            _update(found.summary, record.summary.update)
        elif kind == "metric":
            found.axes[record.metric.name or record.metric.glob_name] = record.metric.step_metric
        elif kind == "artifact":
            found.artifacts.append(record.artifact)
        elif kind == "exit":
            found.exit_code = record.exit.exit_code
    return found


def _update(target: dict[str, Any], items: Any) -> None:
    for item in items:
        *parents, last = list(item.nested_key) or [item.key]
        inner = target
        for key in parents:
            inner = inner.setdefault(key, {})
        inner[last] = json.loads(item.value_json)


def _records(content: bytes) -> Iterator[bytes]:
    """The records; one that is cut off, in the file of a run that was killed, ends the iteration."""
    if not content.startswith(b":W&B"):
        raise ValueError("not a .wandb file")
    position, parts = HEADER, b""
    while True:
        if BLOCK - position % BLOCK < CHUNK.size:  # the rest of a block is too short for a chunk's header
            position += BLOCK - position % BLOCK
        if position + CHUNK.size > len(content):
            return
        _, length, kind = CHUNK.unpack_from(content, position)
        position += CHUNK.size
        if not kind or position + length > len(content):
            return
        data = content[position : position + length]
        position += length
        parts = data if kind in (FULL, FIRST) else parts + data
        if kind in (FULL, LAST):
            yield parts
