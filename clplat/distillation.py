"""What strategies share that hold the network to what it was before the experience."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

import torch

from clplat.strategy import Strategy

if TYPE_CHECKING:
    from clplat.batch import Batch
    from clplat.learner import Learner, Output


class Taught(Strategy):
    """Base of strategies with a frozen teacher: the network as it was at one moment."""

    kinds: ClassVar[Mapping[str, str]] = {"teacher": "teacher"}

    def keep_teacher(self, learner: Learner) -> None:
        """The network becomes the teacher, as it is now."""
        self.remember("teacher", {name: p.clone() for name, p in learner.network().items()})

    def ask_teacher(self, learner: Learner, batch: Batch) -> Output | None:
        """What the teacher makes of a batch, in evaluation form and without gradient; None while there is none."""
        teacher = self.recall("teacher")
        if not teacher:
            return None
        with torch.no_grad():
            return learner.output_with(teacher, batch.x, batch.task)
