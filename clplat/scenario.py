"""A scenario is the stream of experiences a learner meets. The nouns are Avalanche's own.

Streams are functions of (options, seed): the same seed gives the same index choices everywhere and the same bytes on
one machine, on every rank.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import lru_cache
from typing import Any, ClassVar, Literal, overload

import torch
from torch import Tensor
from torch.utils.data import Dataset

Setting = Literal["class", "task", "domain"]
Target = Literal["class", "token", "bits", "value", "series"]
PER_STEP: tuple[Target, ...] = ("token", "bits", "series")  # targets with an answer at each step


@dataclass(frozen=True)
class Spec:
    """What a sample and a target are, and how success is measured.

    Args:
        shape: one sample's shape: (C, H, W) or (H, W) for an image, (T, D) for a sequence, (D,) for a vector, (T,) for
            tokens.
        classes: number of outputs of one head: classes, the target vocabulary, bits, or values.
        setting: class-, task- or domain-incremental (van de Ven et al. 2022). Task labels are given in ``task`` only.
        classes_per_task: outputs that exist for each task where heads are per task and tasks are uneven.
        boundaries: the learner is told when an experience ends.
        contiguous: each sample of an experience goes on where the one before it ended.
        encoder: how a sample is best read as a sequence.
        target: what is predicted: one class, y (N,); a token at each step, y (N, T) with -100 where nothing is asked;
            bits at each step, y (N, T, F) of 0 and 1, with -100 where nothing is asked; values, y (N, K); or a
            series of values, one vector at each step, y (N, T, K) with NaN where nothing is asked.
        vocabulary: number of different input tokens; None where inputs are vectors or images.
        metric: the primary metric, one of ``metrics.measures``; direction says whether larger or smaller is better.
    """

    shape: tuple[int, ...]
    classes: int
    setting: Setting
    classes_per_task: tuple[int, ...] = ()
    boundaries: bool = True
    contiguous: bool = False
    encoder: str = "rows"
    target: Target = "class"
    vocabulary: int | None = None
    metric: str = "accuracy"
    direction: Literal["max", "min"] = "max"

    @property
    def new_classes(self) -> bool:
        """Each experience brings classes of its own, and no task label: one head must tell all of them apart."""
        return self.target == "class" and self.setting == "class"


class TensorData(Dataset[tuple[Tensor, Tensor, Tensor]]):
    """Samples held as tensors: x (N, ...), y (N, ...), task (N,). Batches are cut by index."""

    def __init__(self, x: Tensor, y: Tensor, task: Tensor | int = 0) -> None:
        self.x, self.y = x, y
        self.task = torch.full((len(x),), task, dtype=torch.long) if isinstance(task, int) else task
        if not len(self.x) == len(self.y) == len(self.task):
            raise ValueError(f"{len(self.x)} samples, {len(self.y)} targets and {len(self.task)} task labels")

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        return self.x[index], self.y[index], self.task[index]

    def rows(self, index: Tensor | slice) -> tuple[Tensor, Tensor, Tensor]:
        """x, y and task of several samples."""
        if isinstance(index, Tensor):
            index = index.to(self.x.device)
        return self.x[index], self.y[index], self.task[index]

    def subset(self, index: Tensor) -> TensorData:
        """The samples at some positions, as a data set of its own."""
        return TensorData(*self.rows(index))

    def labelled(self, y: Tensor, task: Tensor | int = 0) -> TensorData:
        """The same inputs with other targets and task labels."""
        return TensorData(self.x, y, task)

    def to(self, device: torch.device, dtype: torch.dtype | None = None) -> TensorData:
        """The same samples on a device, floating-point inputs as ``dtype``."""
        x, y = (t.to(device, dtype if t.is_floating_point() else None) for t in (self.x, self.y))
        return TensorData(x, y, self.task.to(device))


class LazyData(TensorData):
    """Samples that are loaded one by one whenever they are asked for, because all of them would not fit.

    Labels and task labels are held. Asking for ``x`` loads everything.

    Args:
        load: gives sample number i, always the same.
        y, task: as in :class:`TensorData`.
        device, dtype: what the samples become when they are loaded; None leaves them as they are.
    """

    def __init__(
        self,
        load: Callable[[int], Tensor],
        y: Tensor,
        task: Tensor | int = 0,
        *,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.load, self.device, self.dtype = load, device, dtype
        self.y = y
        self.task = torch.full((len(y),), task, dtype=torch.long) if isinstance(task, int) else task
        if len(self.y) != len(self.task):
            raise ValueError(f"{len(self.y)} targets and {len(self.task)} task labels")

    @property
    def x(self) -> Tensor:  # type: ignore[override]
        return self.rows(slice(None))[0]

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        return self._load([index])[0], self.y[index], self.task[index]

    def rows(self, index: Tensor | slice) -> tuple[Tensor, Tensor, Tensor]:
        """x, y and task of several samples."""
        numbers = torch.arange(len(self))[index.cpu() if isinstance(index, Tensor) else index]
        held = numbers.to(self.y.device)
        return self._load(numbers.tolist()), self.y[held], self.task[held]

    def _load(self, numbers: Sequence[int]) -> Tensor:
        if not numbers:  # a rank may hold no row of a small batch; the shape is still needed
            return self._load([0])[:0]
        x = torch.stack([self.load(number) for number in numbers])
        return x.to(self.device, self.dtype if x.is_floating_point() else None)

    def subset(self, index: Tensor) -> LazyData:
        """The samples at some positions, still loaded when they are asked for."""
        numbers, held = index.tolist(), index.to(self.y.device)
        load = self.load  # not self, whose labels need not be kept
        return LazyData(lambda i: load(numbers[i]), self.y[held], self.task[held], device=self.device, dtype=self.dtype)

    def labelled(self, y: Tensor, task: Tensor | int = 0) -> LazyData:
        """The same inputs with other targets and task labels, still loaded when they are asked for."""
        return LazyData(self.load, y, task, device=self.device, dtype=self.dtype)

    def to(self, device: torch.device, dtype: torch.dtype | None = None) -> LazyData:
        """The same samples, brought to a device as they are loaded."""
        y = self.y.to(device, dtype if self.y.is_floating_point() else None)
        return LazyData(self.load, y, self.task.to(device), device=device, dtype=dtype or self.dtype)


def joined(parts: Sequence[TensorData]) -> TensorData:
    """Several data sets as one; of samples that are loaded when asked for it still loads none."""
    y, task = torch.cat([part.y for part in parts]), torch.cat([part.task for part in parts])
    if not any(isinstance(part, LazyData) for part in parts):
        return TensorData(torch.cat([part.x for part in parts]), y, task)
    places = [(part, i) for part in parts for i in range(len(part))]
    return LazyData(lambda number: places[number][0][places[number][1]][0], y, task)


@dataclass(frozen=True)
class Experience:
    """A part of a stream, with its data.

    Args:
        dataset: the samples.
        current_experience: its position in the stream, from 0.
        task_label: which task it belongs to; 0 unless the setting gives task labels.
        classes_in_this_experience: the class labels that occur in it.
        origin_stream: train, valid or test.
    """

    dataset: TensorData
    current_experience: int
    task_label: int
    classes_in_this_experience: tuple[int, ...]
    origin_stream: str = "train"


class LazyStream(Sequence[Experience]):
    """Experiences that are made whenever they are asked for, so that thousands of them cost no memory.

    Args:
        name: train, valid or test.
        make: gives the data of experience i, always the same.
        tasks: the task label of each experience.
    """

    def __init__(self, name: str, make: Callable[[int], TensorData], tasks: Sequence[int]) -> None:
        self.tasks = tasks
        self._made = lru_cache(maxsize=2)(lambda i: _experience(name, i, make(i)))

    def __len__(self) -> int:
        return len(self.tasks)

    @overload
    def __getitem__(self, index: int) -> Experience: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[Experience, ...]: ...

    def __getitem__(self, index: int | slice) -> Experience | tuple[Experience, ...]:
        if isinstance(index, slice):
            return tuple(self._made(i) for i in range(len(self))[index])
        return self._made(range(len(self))[index])


@dataclass
class Scenario:
    """Streams and what they consist of.

    Args:
        tests: for each training experience the position in the test stream of what it teaches, for streams in which
            tasks return and the test stream is shorter; empty where it is the same position.
        single_pass: each sample is meant to be seen once (online learning).
        slices: further tests by name, each with a counterpart of every experience of the test stream: only some of its
            questions, or others about the same. They are measured and recorded, and do not enter the matrix.
    """

    spec: Spec
    train_stream: Sequence[Experience]
    test_stream: Sequence[Experience]
    valid_stream: Sequence[Experience] = field(default_factory=tuple)
    tests: tuple[int, ...] = ()
    single_pass: bool = False
    slices: Mapping[str, Sequence[Experience]] = field(default_factory=dict)

    settings: ClassVar[tuple[Setting, ...]] = ("class", "task", "domain")

    def __post_init__(self) -> None:
        if self.tests and len(self.tests) != len(self.train_stream):
            raise ValueError(f"{len(self.tests)} places of test for {len(self.train_stream)} training experiences")
        for name, part in self.slices.items():
            if len(part) != len(self.test_stream):
                raise ValueError(f"slice {name} has {len(part)} experiences, the test stream {len(self.test_stream)}")

    @property
    def tested(self) -> tuple[int, ...]:
        """For each training experience the position in the test stream of what it teaches."""
        return self.tests or tuple(range(len(self.train_stream)))

    @property
    def tasks(self) -> int:
        """Number of different task labels: one more than the largest."""
        return 1 + max(task_labels(self.train_stream))

    def to_avalanche(self) -> Any:
        """The same streams as an Avalanche benchmark; see :func:`clplat.bridge.to_avalanche`."""
        from clplat.bridge import to_avalanche

        return to_avalanche(self)


def changed(scenario: Scenario, **parts: Any) -> Scenario:
    """The scenario with other parts; as a plain one, since a family's own class is built from its options."""
    return Scenario(**{field.name: getattr(scenario, field.name) for field in fields(Scenario)} | parts)


def digest(data: TensorData, samples: int = 256) -> str:
    """A short fingerprint of a data set: all targets and task labels, and up to ``samples`` inputs evenly spread."""
    step = max(1, -(-len(data) // samples))
    x, _, _ = data.rows(torch.arange(0, len(data), step))
    found = hashlib.blake2b(digest_size=12)
    for tensor in (x, data.y, data.task):
        found.update(f"{tensor.dtype} {tuple(tensor.shape)} {len(data)}".encode())
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def task_labels(stream: Sequence[Experience]) -> Sequence[int]:
    """The task label of each experience, without making any."""
    return stream.tasks if isinstance(stream, LazyStream) else [experience.task_label for experience in stream]


def stream(name: str, data: Sequence[TensorData]) -> tuple[Experience, ...]:
    """Experiences from data sets in order; the task label is the one their samples carry."""
    return tuple(_experience(name, i, part) for i, part in enumerate(data))


def _experience(name: str, i: int, part: TensorData) -> Experience:
    labels = torch.unique(part.task)
    if len(labels) != 1:
        raise ValueError(f"experience {i} of the {name} stream has {len(labels)} task labels, not one")
    classes = () if part.y.is_floating_point() else tuple(torch.unique(part.y[part.y >= 0]).tolist())
    return Experience(part, i, int(labels), classes, name)


def class_groups(classes: Sequence[int], experiences: int) -> list[list[int]]:
    """Split classes into consecutive groups whose sizes differ by at most one, the larger first; none is lost."""
    size, more = divmod(len(classes), experiences)
    groups, start = [], 0
    for i in range(experiences):
        stop = start + size + (i < more)
        groups.append(list(classes[start:stop]))
        start = stop
    return groups
