"""A run in TensorBoard."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clplat.errors import MissingError
from clplat.tracking.names import scalars
from clplat.yamlfile import dump

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class TensorBoardMirror:
    """TensorBoard event files in ``RUN/tensorboard``, over the run's own count of optimiser steps.

    Evaluations too stand at the step after which they were made: TensorBoard has one axis for all, and by it forgets
    what an interrupted run had logged beyond its checkpoint.
    """

    def __init__(self) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:  # now and not in start(): a run without what was asked for had better not begin
            raise MissingError(
                f"the logger 'tensorboard' needs the package 'tensorboard': pip install tensorboard ({error})"
            ) from error
        self._make: type[SummaryWriter] = SummaryWriter
        self._writer: SummaryWriter | None = None

    def start(self, run_dir: Path, config: Mapping[str, Any], lines: Sequence[Mapping[str, Any]]) -> None:
        lines = [line for line in lines if scalars(line)]
        # All from the last recorded step on is forgotten and what the record has of that step written again: a step
        # may be trained and not yet evaluated in the record, while both were logged here.
        last = lines[-1]["step"] if lines else 0
        self._writer = self._make(str(run_dir / "tensorboard"), purge_step=last)
        if last == 0:
            self._writer.add_text("config", f"```\n{dump(dict(config))}```", 0)
        for line in lines:
            if line["step"] == last:
                self.log(line)

    def log(self, line: Mapping[str, Any]) -> None:
        values = scalars(line)
        if self._writer is None or not values:
            return
        for name, value in {**values, "experience": line["experience"]}.items():
            self._writer.add_scalar(name, value, line["step"])
        if line["event"] == "evaluate":
            self._writer.flush()

    def finish(self, results: Mapping[str, Any] | None) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
