"""Rehearsal memories: rows as tensors, the same on every rank and after every resume.

A memory sees global rows in global order and draws with a generator that the caller derives, so its membership does not
depend on the number of ranks.
"""

from __future__ import annotations

import torch
from torch import Tensor

from clplat.errors import UsageError
from clplat.state import Remembering


class ReservoirMemory(Remembering):
    """A uniform sample of all rows seen so far (Vitter 1985, algorithm R).

    Row number s (from 0) goes to a free slot while there is one, else to slot ``floor(u * (s + 1))`` with u uniform in
    [0, 1), if there is such a slot. A row is any set of named values: x, y, task, logits, ...

    Args:
        size: number of slots.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        if size < 1:
            raise UsageError(f"a memory of {size} samples cannot hold any")
        self.size, self.seen = size, 0

    def __len__(self) -> int:
        return min(self.seen, self.size)

    def get_extra_state(self) -> dict[str, int]:
        return {"seen": self.seen}

    def set_extra_state(self, state: dict[str, int]) -> None:
        self.seen = state["seen"]

    @torch.no_grad()
    def add(self, rows: dict[str, Tensor], generator: torch.Generator) -> None:
        """Offer rows, in order.

        Args:
            rows: tensors by name, each (n, ...), the same names at every call.
            generator: for the n draws.
        """
        n = len(next(iter(rows.values())))
        slots: dict[int, int] = {}  # a later row that draws the same slot wins, as one by one
        for i, u in enumerate(torch.rand(n, generator=generator, dtype=torch.float64).tolist()):
            number = self.seen + i
            slot = number if number < self.size else int(u * (number + 1))
            if slot < self.size:
                slots[slot] = i
        self.seen += n
        if not slots:
            return
        held = self.recall("rows")
        if not held:
            held = {name: t.new_zeros((self.size, *t.shape[1:])) for name, t in rows.items()}
            self.remember("rows", held)
        target, source = torch.tensor(list(slots)), torch.tensor(list(slots.values()))
        for name, tensor in rows.items():
            held[name][target.to(tensor.device)] = tensor.detach()[source.to(tensor.device)]

    def rows(self, index: Tensor) -> dict[str, Tensor]:
        """The rows at some slots."""
        return {name: tensor[index.to(tensor.device)] for name, tensor in self.recall("rows").items()}

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """``n`` different slots in use, or all of them if there are fewer."""
        return torch.randperm(len(self), generator=generator)[:n]
