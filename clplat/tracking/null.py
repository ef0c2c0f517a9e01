"""No mirror: the run directory's own record is all there is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


class NullMirror:
    """Show the run nowhere else."""

    def __init__(self) -> None:
        pass

    def start(self, run_dir: Path, config: Mapping[str, Any], lines: Sequence[Mapping[str, Any]]) -> None: ...

    def log(self, line: Mapping[str, Any]) -> None: ...

    def finish(self, results: Mapping[str, Any] | None) -> None: ...
