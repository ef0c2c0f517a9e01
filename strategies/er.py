"""Experience replay (Chaudhry et al. 2019, "On Tiny Episodic Memories in Continual Learning", algorithm 1)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from clplat.batch import Batch, Part
from clplat.errors import UsageError
from clplat.memory import ReservoirMemory
from clplat.strategy import Strategy

if TYPE_CHECKING:
    from clplat.learner import Learner, Output


class ER(Strategy):
    """Experience replay: rehearse samples from a reservoir of everything seen.

    Train on each batch of the stream together with a batch from a reservoir of what came before::

        L = (L_stream + w * L_memory) / (1 + w)

    With w = 1 and batches of equal size that is the mean over their union, as in algorithm 1. A sample of the stream is
    offered to the reservoir once, in its experience's first epoch (the paper has a single epoch), so the memory is a
    uniform sample of all different samples seen.

    Args:
        memory: samples in the memory.
        batch_size: samples drawn from the memory in each step; null draws as many as the stream's batch has.
        weight: w, weight of the memory's mean loss.
    """

    def __init__(self, *, memory: int = 200, batch_size: int | None = None, weight: float = 1.0) -> None:
        super().__init__()
        if weight <= 0 or (batch_size is not None and batch_size < 1):
            raise UsageError(f"er: weight={weight} and batch_size={batch_size} must be positive")
        self.batch_size, self.weight = batch_size, weight
        self.memory = ReservoirMemory(memory)

    def rehearse(self, learner: Learner, batch: Batch) -> Batch:
        if not len(self.memory):
            return batch
        wanted = self.batch_size or batch["stream"].n_global
        index = self.memory.draw(wanted, learner.generator(f"{self.name}/draw", batch.step, batch.micro))
        local = learner.ranks.part(len(index))
        rows = self.memory.rows(index[local])
        share = 1 / (1 + self.weight)
        part = Part(self.name, rows["x"], rows["y"], rows["task"], index, local, self.weight * share)
        return batch.with_part(part, share)

    def observe(self, learner: Learner, batch: Batch, output: Output) -> None:
        if batch.epoch == 0 and learner.data is not None:
            x, y, task = learner.data.rows(batch["stream"].index)
            draws = learner.generator(f"{self.name}/reservoir", batch.step, batch.micro)
            self.memory.add({"x": x, "y": y, "task": task}, draws)
