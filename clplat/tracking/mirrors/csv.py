"""Plain tables of a run."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from clplat.tracking.names import scalars


class CsvMirror:
    """Plain tables: ``RUN/csv/train.csv`` and ``RUN/csv/eval.csv``, one number in each line.

    The columns are experience, step, name, value; what is measured inside training is in the first of them. When a run
    goes on both files are written anew from the record, so nothing is in them twice.
    """

    def __init__(self) -> None:
        self._files: dict[str, IO[str]] = {}

    def start(self, run_dir: Path, config: Mapping[str, Any], lines: Sequence[Mapping[str, Any]]) -> None:
        folder = run_dir / "csv"
        folder.mkdir(exist_ok=True)
        for kind in ("train", "eval"):
            file = open(folder / f"{kind}.csv", "w", encoding="utf-8", newline="")  # noqa: SIM115 - closed in finish()
            self._files[kind] = file
            csv.writer(file, lineterminator="\n").writerow(("experience", "step", "name", "value"))
        for line in lines:
            self._write(line)
        self._flush()

    def log(self, line: Mapping[str, Any]) -> None:
        self._write(line)
        self._flush()

    def finish(self, results: Mapping[str, Any] | None) -> None:
        for file in self._files.values():
            file.close()
        self._files = {}

    def _write(self, line: Mapping[str, Any]) -> None:
        for name, value in scalars(line).items():
            file = self._files["eval" if name.startswith("eval/") else "train"]
            csv.writer(file, lineterminator="\n").writerow((line["experience"], line["step"], name, value))

    def _flush(self) -> None:
        for file in self._files.values():
            file.flush()
