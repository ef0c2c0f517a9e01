"""From Avalanche's benchmarks to our scenarios and back.

Avalanche takes about 10 s and 1 GB to import, so nothing here imports it before it is called; :func:`from_avalanche`
works on whatever has Avalanche's nouns.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from clplat.errors import UsageError
from clplat.labels import Labelled, relabel, usual_setting
from clplat.scenario import Experience, LazyData, Scenario, Setting, Spec, TensorData, stream

MAX_BYTES = 4 * 2**30
_STREAMS = {"train": ("train",), "valid": ("valid", "val"), "test": ("test",)}  # ours, and what Avalanche calls them


@dataclass
class _Part(Labelled):
    """One experience of a benchmark: its labels, and its samples, not yet loaded."""

    dataset: Any

    def load(self, index: int) -> Tensor:
        return _tensor(self.dataset[index][0])


def import_avalanche() -> None:
    """Import Avalanche, on any rank.

    One of its modules makes a logger while it is imported, which Avalanche refuses to all ranks but the first (0.6.0).
    It gets told that there is no other rank until it is there.
    """
    with mock.patch.object(torch.distributed, "is_initialized", return_value=False):
        import avalanche.benchmarks  # noqa: F401


def from_avalanche(
    benchmark: Any,
    *,
    setting: Setting | None = None,
    max_bytes: int = MAX_BYTES,
    spec: Spec | None = None,
    leave_out: Sequence[int] = (),
) -> Scenario:
    """The train and test streams (and valid, if there is one) of an Avalanche benchmark.

    Samples are what the benchmark's transforms for evaluation make of them, also for training: transforms for training
    draw from a generator that no resumed run could set back. 8-bit values that are left are divided by 255.

    Labels: in a class-incremental scenario they are the benchmark's. With ``task`` and ``domain`` they become positions
    among the classes of their task or experience, in increasing order; with ``task`` each experience is a task of its
    own if the benchmark gives no task labels.

    Args:
        benchmark: what ``avalanche.benchmarks`` makes.
        setting: None chooses task if the benchmark gives several task labels, domain if there are several experiences
            and all have the same classes, else class.
        max_bytes: streams that need no more are held as tensors; samples of larger ones are loaded at each use.
        spec: what samples and targets are; None finds out, for one label a sample.
        leave_out: classes that are in the benchmark's data but meant to be in no experience.

    Raises:
        UsageError: a class of the data is in no experience, or the streams do not fit the setting.
    """
    streams = {ours: _parts(benchmark, theirs) for ours, theirs in _STREAMS.items()}
    for name in ("train", "test"):
        if not streams[name]:
            raise UsageError(f"the benchmark has no {name} stream")
    if spec is None or spec.target == "class":
        _check_no_class_lost(benchmark, streams["train"], set(leave_out))
        setting = setting or (spec.setting if spec else usual_setting(streams["train"]))
        sizes = relabel(streams, setting)
        classes = max(sizes) if setting != "class" else 1 + max(int(p.y.max()) for p in _all(streams))
        per_task = tuple(sizes) if setting == "task" else ()
    sample = streams["train"][0].load(0)
    total = sample.numel() * sample.element_size() * sum(len(p.y) for p in _all(streams))
    held = {
        name: stream(name, [_held(p, sample) if total <= max_bytes else LazyData(p.load, p.y, p.task) for p in parts])
        for name, parts in streams.items()
    }
    if spec is None:
        spec = Spec(tuple(sample.shape), classes, setting or "class", per_task, encoder=_encoder(sample))
    tests = (
        (0,) * len(held["train"]) if len(held["train"]) > len(held["test"]) == 1 else ()
    )  # one test of all that is learned
    return Scenario(spec, held["train"], held["test"], held["valid"], tests)


def to_avalanche(scenario: Scenario) -> Any:
    """An Avalanche benchmark with this scenario's streams, for Avalanche's own strategies.

    Its samples are triples (x, y, task label). Experiences have ``task_label`` and, where the target is one class,
    ``classes_in_this_experience`` and the other class lists of Avalanche.
    """
    import_avalanche()
    from avalanche.benchmarks import benchmark_from_datasets, with_classes_timeline, with_task_labels
    from avalanche.benchmarks.utils import AvalancheDataset, DataAttribute
    from avalanche.benchmarks.utils.classification_dataset import TaskAwareClassificationDataset

    one_class = scenario.spec.target == "class"

    def converted(experience: Experience) -> Any:
        data = experience.dataset
        attributes = [DataAttribute(data.task.tolist(), "targets_task_labels")]
        if one_class:
            attributes.append(DataAttribute(data.y.tolist(), "targets"))
        kind = TaskAwareClassificationDataset if one_class else AvalancheDataset
        return kind([data], data_attributes=attributes)

    streams = {"train": scenario.train_stream, "valid": scenario.valid_stream, "test": scenario.test_stream}
    benchmark = benchmark_from_datasets(**{name: [converted(e) for e in s] for name, s in streams.items() if s})
    benchmark = with_task_labels(benchmark)
    return with_classes_timeline(benchmark) if one_class else benchmark


def _parts(benchmark: Any, names: Sequence[str]) -> list[_Part]:
    parts = []
    for name in names:
        for number, experience in enumerate(benchmark.streams.get(name, ())):
            dataset = experience.dataset.eval()
            if hasattr(dataset, "targets"):
                y = torch.tensor([int(target) for target in dataset.targets])
            else:
                y = torch.stack([torch.as_tensor(dataset[i][1]) for i in range(len(dataset))])
            tasks = {int(task) for task in getattr(dataset, "targets_task_labels", (0,))}
            if len(tasks) != 1:
                raise UsageError(f"experience {number} of the {name} stream has {len(tasks)} task labels, not one")
            parts.append(_Part(y, tasks.pop(), dataset))
    return parts


def _all(streams: dict[str, list[_Part]]) -> Iterator[_Part]:
    for parts in streams.values():
        yield from parts


def _check_no_class_lost(benchmark: Any, train: Sequence[_Part], leave_out: set[int]) -> None:
    """Avalanche's class_incremental_benchmark drops the last classes where they do not divide evenly (0.6.0)."""
    if hasattr(benchmark, "original_classes_in_exp"):  # labels may be new ones there, but the old ones are kept
        used = set().union(*benchmark.original_classes_in_exp)
        there = {int(c) for c in benchmark.classes_order_original_ids}
    else:
        used = set().union(*(part.classes for part in train))
        there = set().union(*(_labels_behind(part.dataset) for part in train))
        if used & there != used:  # relabelled: cannot be compared
            return
    if lost := there - used - leave_out:
        raise UsageError(
            f"the classes {sorted(lost)} of the data are in no experience: Avalanche drops some where they do not "
            "divide evenly. Give the number of classes of each experience (num_classes_per_exp), or say that it is "
            "meant (leave_out)"
        )


def _labels_behind(dataset: Any) -> set[int]:
    """The labels of the whole data sets that an Avalanche data set takes its samples from."""
    inner = getattr(getattr(dataset, "_flat_data", dataset), "_datasets", None)
    if inner is None:
        targets = getattr(dataset, "targets", None)
        if targets is None and hasattr(dataset, "dataset"):
            targets = getattr(dataset.dataset, "targets", None)
        return set() if targets is None else {int(target) for target in targets}
    return set().union(*(_labels_behind(each) for each in inner))


def _held(part: _Part, sample: Tensor) -> TensorData:
    x = torch.empty((len(part.y), *sample.shape), dtype=sample.dtype)
    for index in range(len(part.y)):
        x[index] = part.load(index)
    return TensorData(x, part.y, part.task)


def _tensor(sample: Any) -> Tensor:
    """One sample as a tensor: images that are still images, and 8-bit values, become floats between 0 and 1."""
    if not isinstance(sample, Tensor):
        if hasattr(sample, "getbands"):  # a picture of PIL
            from torchvision.transforms.functional import pil_to_tensor

            sample = pil_to_tensor(sample)
        sample = torch.as_tensor(sample)
    if sample.dtype == torch.uint8:
        return sample.float() / 255
    return sample.float() if sample.is_floating_point() else sample


def _encoder(sample: Tensor) -> str:
    return "rows" if sample.ndim > 1 else "vectors"
