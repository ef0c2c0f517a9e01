"""Rehearsal memories: rows as tensors, the same on every rank and after every resume.

A memory sees global rows in global order and draws with a generator that the caller derives, so its membership does not
depend on the number of ranks. A policy decides which rows have a slot; reading and drawing are the same for all.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from clplat.batch import Part
from clplat.errors import UsageError
from clplat.state import Remembering

Policy = Literal["reservoir", "class-balanced", "experience-balanced", "ring"]


class Memory(Remembering):
    """A fixed number of slots for rows. A row is any set of named values: x, y, task, logits, ...

    Policies subclass it and decide in :meth:`place` which row goes where.

    Args:
        size: number of slots.

    Attributes:
        needs: what a strategy needs that uses it, in the words of ``Strategy.needs``.
    """

    kinds: ClassVar[Mapping[str, str]] = {"rows": "memory"}

    needs: tuple[str, ...] = ()

    def __init__(self, size: int) -> None:
        super().__init__()
        if size < 1:
            raise UsageError(f"a memory of {size} samples cannot hold any")
        self.size = size

    def __len__(self) -> int:
        return len(self.slots())

    def slots(self) -> Tensor:
        """The slots in use."""
        raise NotImplementedError

    def place(self, rows: dict[str, Tensor], draws: list[float]) -> dict[int, int]:
        """Decide on rows offered in order: which of them (value) goes to which slot (key).

        Args:
            rows: what is offered.
            draws: a number for each row, uniform in [0, 1).
        """
        raise NotImplementedError

    @torch.no_grad()
    def add(self, rows: dict[str, Tensor], generator: torch.Generator) -> None:
        """Offer rows, in order.

        Args:
            rows: tensors by name, each (n, ...), the same names at every call.
            generator: for the n draws.
        """
        n = len(next(iter(rows.values())))
        draws = torch.rand(n, generator=generator, dtype=torch.float64).tolist()
        self.write(self.place(rows, draws), rows)

    @torch.no_grad()
    def write(self, slots: dict[int, int], rows: dict[str, Tensor]) -> None:
        """Put rows (values) into slots (keys)."""
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
        slots = self.slots()
        return slots[torch.randperm(len(slots), generator=generator)[:n]]

    def part(self, source: str, index: Tensor, local: slice, weight: float = 1.0) -> Part:
        """Rows at some slots as a part of a batch.

        Args:
            source: the part's name.
            index: slots of all rows of the global part, in order.
            local: which of them are this rank's.
            weight: of the part's mean in the loss.
        """
        rows = self.rows(index[local])
        return Part(source, rows["x"], rows["y"], rows["task"], index, local, weight)


def by_experience(strategy: nn.Module) -> dict[str, int]:
    """How many rows of each experience the memories within a strategy hold; empty where none holds rows that say from
    which experience they are."""
    found: dict[str, int] = {}
    for memory in strategy.modules():
        if isinstance(memory, Memory) and "experience" in memory.recall("rows"):
            for experience in memory.rows(memory.slots())["experience"].tolist():
                found[str(experience)] = found.get(str(experience), 0) + 1
    return dict(sorted(found.items(), key=lambda item: int(item[0])))


class ReservoirMemory(Memory):
    """A uniform sample of all rows seen so far (Vitter 1985, algorithm R).

    Row number s (from 0) goes to a free slot while there is one, else to slot ``floor(u * (s + 1))`` with u uniform in
    [0, 1), if there is such a slot.
    """

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.seen = 0

    def slots(self) -> Tensor:
        return torch.arange(min(self.seen, self.size))

    def get_extra_state(self) -> dict[str, int]:
        return {"seen": self.seen}

    def set_extra_state(self, state: dict[str, int]) -> None:
        self.seen = state["seen"]

    def place(self, rows: dict[str, Tensor], draws: list[float]) -> dict[int, int]:
        slots: dict[int, int] = {}  # a later row that draws the same slot wins, as one by one
        for i, u in enumerate(draws):
            slot = self.seen if self.seen < self.size else int(u * (self.seen + 1))
            self.seen += 1
            if slot < self.size:
                slots[slot] = i
        return slots


class BalancedMemory(Memory):
    """Equal shares for groups of rows (classes, experiences), of which nobody knows beforehand how many will come.

    While a slot is free every row takes one. Then a row whose group has never been the largest takes a slot of the
    largest group, so that sizes end within one of each other whatever the number of groups, as far as groups are large
    enough. A row of any other group competes with its own:

    - ``sample``: a uniform sample of each group. Row number s of a group of m slots takes one of them with probability
      m / s (Chrysakis and Moens 2020, "Online continual learning from imbalanced data", algorithm 1: class-balancing
      reservoir sampling). The slot that a group gives up is random.
    - ``first``: the group keeps what it has (Prabhu et al. 2020, "GDumb", algorithm 1: greedy balancing sampler).
    - ``last``: it takes the slot of the group's oldest row: a ring buffer for each group (Lopez-Paz and Ranzato 2017,
      "Gradient episodic memory", sec. 3). The slot that a group gives up is its oldest, too.

    Args:
        size: number of slots.
        by: the columns whose values, whole numbers, make a group.
        keep: which rows of a group stay.
    """

    def __init__(
        self, size: int, *, by: tuple[str, ...] = ("task", "y"), keep: Literal["sample", "first", "last"] = "sample"
    ) -> None:
        super().__init__(size)
        self.by, self.keep = by, keep
        self.needs = tuple(need for name, need in {"y": "classes", "experience": "boundaries"}.items() if name in by)
        self.groups: dict[tuple[int, ...], list[int]] = {}  # slots of each group, the oldest first
        self.seen: dict[tuple[int, ...], int] = {}
        self.full: set[tuple[int, ...]] = set()  # have been the largest

    def slots(self) -> Tensor:
        return torch.arange(sum(map(len, self.groups.values())))

    def get_extra_state(self) -> dict[str, Any]:
        return {"groups": self.groups, "seen": self.seen, "full": sorted(self.full)}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.groups, self.seen, self.full = state["groups"], state["seen"], set(state["full"])

    def place(self, rows: dict[str, Tensor], draws: list[float]) -> dict[int, int]:
        slots: dict[int, int] = {}
        filled = len(self)
        for i, (u, key) in enumerate(zip(draws, group_keys(rows, self.by), strict=True)):
            own = self.groups.setdefault(key, [])
            self.seen[key] = self.seen.get(key, 0) + 1
            if filled < self.size:
                own.append(filled)
                slots[filled] = i
                filled += 1
                continue
            largest = max(self.groups, key=lambda k: len(self.groups[k]))
            if key not in self.full and len(own) < len(self.groups[largest]):
                self.full.add(largest)
                giving = self.groups[largest]
                own.append(giving.pop(0 if self.keep == "last" else int(u * len(giving))))
                slots[own[-1]] = i
                continue
            self.full.add(key)
            if self.keep == "last" and own:  # empty where there are more groups than slots
                own.append(own.pop(0))
                slots[own[-1]] = i
            elif self.keep == "sample" and (number := int(u * self.seen[key])) < len(own):
                slots[own[number]] = i
        return slots


class HerdingMemory(Memory):
    """For each class the rows whose mean feature comes closest to that of the class, in the order of their choice
    (Rebuffi et al. 2017, "iCaRL", algorithms 4 and 5).

    A class is offered as a whole, with a column ``features`` (n, F) that is not kept. C classes share the slots evenly:
    all have ``size // C`` and the first ``size % C`` to come have one more. When further classes come, the older ones
    keep the beginning of their lists. Offering a class again replaces its list.

    Raises:
        UsageError: there are more classes than slots.
    """

    needs = ("boundaries", "classes")

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.groups: dict[tuple[int, ...], list[int]] = {}  # slots of each class, the best first

    def slots(self) -> Tensor:
        return torch.tensor([slot for group in self.groups.values() for slot in group], dtype=torch.long)

    def get_extra_state(self) -> dict[str, Any]:
        return {"groups": self.groups}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.groups = state["groups"]

    @torch.no_grad()
    def add(self, rows: dict[str, Tensor], generator: torch.Generator | None = None) -> None:
        """Offer all rows of one or more classes; nothing is drawn."""
        kept = {name: tensor for name, tensor in rows.items() if name != "features"}
        self.write(self.place(rows, []), kept)

    def place(self, rows: dict[str, Tensor], draws: list[float]) -> dict[int, int]:
        offered: dict[tuple[int, ...], list[int]] = {}
        for i, key in enumerate(group_keys(rows)):
            offered.setdefault(key, []).append(i)
        lists = {**self.groups, **{key: [] for key in offered}}
        share, more = divmod(self.size, max(len(lists), 1))
        if not share:
            raise UsageError(f"a memory of {self.size} samples cannot hold one of each of {len(lists)} classes")
        quota = {key: share + (number < more) for number, key in enumerate(lists)}
        self.groups = {key: held[: quota[key]] for key, held in lists.items()}
        used = set(self.slots().tolist())
        free = iter([slot for slot in range(self.size) if slot not in used])
        slots: dict[int, int] = {}
        for key, index in offered.items():
            chosen = herding(rows["features"][torch.tensor(index, device=rows["features"].device)], quota[key])
            self.groups[key] = [next(free) for _ in chosen]
            slots.update(zip(self.groups[key], (index[i] for i in chosen), strict=True))
        return slots


def herding(features_NF: Tensor, n: int) -> list[int]:
    """The ``n`` rows that herding chooses, in order (all of them if there are fewer).

    On features of length one with mean mu: ``w = mu``; again and again the row i with the largest ``w . d_i`` that is
    not chosen yet, then ``w += mu - d_i`` (Welling 2009; the form of iCaRL's authors' code).
    """
    d_NF = nnf.normalize(features_NF.double(), dim=1)
    mean = d_NF.mean(0)
    w, open_N = mean.clone(), torch.ones(len(d_NF), dtype=torch.bool, device=d_NF.device)
    chosen: list[int] = []
    for _ in range(min(n, len(d_NF))):
        best = int((d_NF @ w).masked_fill(~open_N, -torch.inf).argmax())
        open_N[best] = False
        w = w + mean - d_NF[best]
        chosen.append(best)
    return chosen


def group_keys(rows: dict[str, Tensor], by: tuple[str, ...] = ("task", "y")) -> list[tuple[int, ...]]:
    """The group of each row: its values in the columns ``by``."""
    return list(zip(*(rows[name].tolist() for name in by), strict=True))


def memory(policy: Policy, size: int) -> Memory:
    """The memory with a policy for rows x, y, task and experience that come by in small numbers."""
    if policy == "reservoir":
        return ReservoirMemory(size)
    by = ("experience",) if policy == "experience-balanced" else ("task", "y")
    return BalancedMemory(size, by=by, keep="last" if policy == "ring" else "sample")
