"""Streams of samples with a label, or with numbers to be predicted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

import torch
from torch import Tensor

from clplat.arrange import Arrangement, arrange, shares
from clplat.data.folders import natural
from clplat.data.images import Images, common_size
from clplat.data.inputs import Scale, input_columns, values
from clplat.data.options import Options
from clplat.data.tables import Table, labels
from clplat.errors import UsageError, suggestion
from clplat.labels import Labelled, relabel, usual_setting
from clplat.scenario import Experience, LazyData, Scenario, Spec, TensorData, stream

Parts = dict[str, list[TensorData]]  # part -> the samples of each experience

_USUAL = ("label", "target", "class", "y")


@dataclass
class _Part(Labelled):
    """An experience whose labels may still change."""

    data: TensorData


def build(
    tables: Mapping[str, Mapping[str, Table]], wanted: Options, seed: int, *, classify: bool
) -> tuple[Scenario, list[str]]:
    """A stream of tables, and the names of its classes.

    Args:
        tables: part -> experience -> rows; a single experience is a pool if it is called "".
        classify: targets are labels, not numbers.
    """
    first = next(iter(tables["train"].values()))
    targets = wanted.targets or [_target(first)]
    if classify and len(targets) > 1:
        raise UsageError("scenario.target: one column with labels is needed; for several numbers set kind=regression")
    for name in targets:
        first.column(name, "target")
    names = input_columns(first, wanted, targets)
    known: list[str] = []
    if classify:
        known, answers = _classes(tables, targets[0], wanted.classes)
    else:
        answers = {part: [values(t, targets, "target") for t in own.values()] for part, own in tables.items()}
    inputs = _inputs(tables, names, wanted)
    parts: Parts = {
        part: [data.labelled(y) for data, y in zip(own, answers[part], strict=True)] for part, own in inputs.items()
    }
    shape = tuple(parts["train"][0].rows(slice(0, 1))[0].shape[1:])
    for part, own in parts.items():
        for name, data in zip(tables[part], own, strict=True):
            if data.rows(slice(0, 1))[0].shape[1:] != shape:
                raise UsageError(f"{tables[part][name].name}: samples have another shape than {shape} in {first.name}")
    split = [
        _split(
            {part: own[e] for part, own in parts.items()},
            wanted,
            seed,
            e,
            f"experience '{name}'" if name else first.name,
        )
        for e, name in enumerate(tables["train"])
    ]
    parts = {part: [own[part] for own in split] for part in split[0]}
    spec = Spec(shape, len(known), "class", encoder="rows" if len(shape) > 1 else "vectors")
    if not classify:
        width = prod(answers["train"][0].shape[1:])
        parts = {part: [d.labelled(d.y.reshape(len(d), width)) for d in own] for part, own in parts.items()}
        spec = replace(spec, classes=width, setting="domain", target="value", metric="nrmse", direction="min")
    pooled = list(tables["train"]) == [""]
    made = _arranged(parts, spec, wanted, seed) if pooled else _given(parts, spec, wanted, list(tables["train"]), known)
    return _finished(made, wanted.standardise), known


def _target(table: Table) -> str:
    found = [name for name in table.columns if name.lower() in _USUAL]
    if len(found) != 1:
        raise UsageError(
            f"{table.name}: name the column that is to be predicted by scenario.target=COLUMN; there are "
            f"{', '.join(list(table.columns)[:20])}"
        )
    return found[0]


def _inputs(tables: Mapping[str, Mapping[str, Table]], names: Sequence[str], wanted: Options) -> Parts:
    """Inputs of each experience, their targets still to come."""
    pictures = [
        column
        for own in tables.values()
        for table in own.values()
        for name in names
        if isinstance(column := table.column(name, "inputs"), Images)
    ]
    if not pictures:
        return {
            part: [TensorData(x, torch.zeros(len(x))) for x in (values(t, names, "inputs") for t in own.values())]
            for part, own in tables.items()
        }
    if len(names) > 1:
        raise UsageError(f"scenario.inputs={','.join(names)}: a column of images must be the only input")
    size = (wanted.size[0], wanted.size[1]) if wanted.size else common_size(pictures)
    held = 4 * wanted.channels * prod(size) * sum(map(len, pictures)) <= wanted.max_bytes

    def data(column: Images) -> TensorData:
        lazy = LazyData(column.loader(size, wanted.channels), torch.zeros(len(column)))
        return TensorData(*lazy.rows(slice(None))) if held else lazy

    found: Parts = {}
    for part, own in tables.items():
        found[part] = []
        for table in own.values():
            column = table.column(names[0], "inputs")
            if not isinstance(column, Images):
                raise UsageError(f"{table.name}: '{names[0]}' holds no images")
            found[part].append(data(column))
    return found


def _classes(
    tables: Mapping[str, Mapping[str, Table]], target: str, given: list[str] | None
) -> tuple[list[str], dict[str, list[Tensor]]]:
    """The names of all classes, and the number of each row's."""
    read = {
        part: [labels(table, target, table.column(target, "target")) for table in own.values()]
        for part, own in tables.items()
    }
    there = {label for own in read["train"] for label in own}
    known = given or sorted(there, key=natural)
    if never := [label for label in known if label not in there]:
        raise UsageError(f"scenario.classes: no training sample is of the class '{never[0]}'")
    if len(there) < 2:
        raise UsageError(f"'{target}' is '{known[0]}' for all training samples: there is nothing to tell apart")
    numbers = {label: i for i, label in enumerate(known)}
    for part, own in read.items():
        for table, found in zip(tables[part].values(), own, strict=True):
            for i, label in enumerate(found):
                if label not in numbers:
                    why = "which is not in scenario.classes" if label in there else "which no training sample has"
                    raise UsageError(f"{table.where(i)}: '{target}' is '{label}', {why}.{suggestion(label, known)}")
    return known, {part: [torch.tensor([numbers[label] for label in f]) for f in own] for part, own in read.items()}


def _split(parts: dict[str, TensorData], wanted: Options, seed: int, e: int, name: str) -> dict[str, TensorData]:
    """Train, test and valid of one experience; what is not apart already is cut off from train."""
    data = parts["train"]
    test = 0.0 if "test" in parts else wanted.test
    validation = 0.0 if "valid" in parts else wanted.validation
    if wanted.time is not None:
        n_test, n_valid = round(test * len(data)), round(validation * len(data))
        ends = len(data) - n_test - n_valid, len(data) - n_test, len(data)
        index = {name: torch.arange(end) for name, end in zip(("train", "valid", "test"), ends, strict=True)}
        index = {"train": index["train"], "valid": index["valid"][ends[0] :], "test": index["test"][ends[1] :]}
    else:
        group = _groups(data)
        first = torch.full((int(group.max()) + 1,), len(data)).scatter_reduce(0, group, torch.arange(len(data)), "amin")
        drawn = shares(data.y[first], seed, f"own/split/{e}", test=test, validation=validation)
        part_of = torch.empty(len(first), dtype=torch.long)
        for number, rows in enumerate(drawn.values()):
            part_of[rows] = number
        index = {name: torch.nonzero(part_of[group] == number).squeeze(1) for number, name in enumerate(drawn)}
    needed = {"train": True, "test": test > 0, "valid": validation > 0}
    if empty := [part for part in needed if needed[part] and not len(index[part])]:
        raise UsageError(
            f"{name} has {len(data)} samples, of which none is left for {empty[0]}: more samples, or another "
            "scenario.test or scenario.validation, are needed"
        )
    return {part: data.subset(index[part]) for part in needed if needed[part]} | {
        part: own for part, own in parts.items() if part != "train"
    }


def _groups(data: TensorData) -> Tensor:
    """A number for each sample, the same for equal inputs, so that none of them is in training and in the test. Images
    that are loaded at use are not compared."""
    if isinstance(data, LazyData):
        return torch.arange(len(data))
    seen: dict[bytes, int] = {}
    return torch.tensor([seen.setdefault(row.tobytes(), len(seen)) for row in data.x.numpy()])


def _arranged(parts: Parts, spec: Spec, wanted: Options, seed: int) -> Scenario:
    """A pool cut into experiences."""
    assert wanted.experiences is not None
    auto: Arrangement = "class" if spec.target == "class" else "data"
    setting = auto if wanted.setting == "auto" else wanted.setting
    return arrange(
        {name: own[0] for name, own in parts.items()},
        spec,
        seed,
        "own/arrange",
        setting=setting,
        experiences=wanted.experiences,
        order=wanted.order,
    )


def _given(parts: Parts, spec: Spec, wanted: Options, names: Sequence[str], known: Sequence[str]) -> Scenario:
    """Experiences as they are, their labels as the setting wants them."""
    if wanted.setting == "data":
        raise UsageError("scenario.setting=data deals out a pool of samples: give scenario.experiences=N")
    streams = {name: [_Part(data.y, 0, data) for data in own] for name, own in parts.items()}
    if spec.target == "class":
        setting = usual_setting(streams["train"]) if wanted.setting == "auto" else wanted.setting
        if setting != "class":
            _check_own_classes(streams, names, known)
        sizes = relabel(streams, setting)
        classes = spec.classes if setting == "class" else max(sizes)
        spec = replace(
            spec, classes=classes, setting=setting, classes_per_task=tuple(sizes) if setting == "task" else ()
        )
    elif wanted.setting == "task":
        spec = replace(spec, setting="task")
        for own in streams.values():
            for number, part in enumerate(own):
                part.task = number
    made = {name: stream(name, [p.data.labelled(p.y, p.task) for p in own]) for name, own in streams.items()}
    return Scenario(spec, made["train"], made["test"], made.get("valid", ()))


def _check_own_classes(streams: Mapping[str, Sequence[_Part]], names: Sequence[str], known: Sequence[str]) -> None:
    for part, own in streams.items():
        for name, train, other in zip(names, streams["train"], own, strict=True):
            if more := set(other.classes) - set(train.classes):
                raise UsageError(
                    f"experience '{name}': the class '{known[min(more)]}' is in {part}, but never in train of that "
                    "experience"
                )


def _finished(made: Scenario, standardise: bool) -> Scenario:
    """The same in single precision, on the scale of the first training experience."""
    first = made.train_stream[0].dataset
    lazy, numeric = isinstance(first, LazyData), made.spec.target == "value"
    picture = first.rows(slice(0, 1))[0].dtype == torch.float32  # numbers are in double precision until here
    of_x = Scale.of(first.x) if standardise and not lazy and not picture else None
    of_y = Scale.of(first.y) if standardise and numeric else None

    def finish(experience: Experience) -> Experience:
        data = experience.dataset
        y = (of_y(data.y) if of_y else data.y).float() if numeric else data.y
        if lazy or picture:
            return replace(experience, dataset=data.labelled(y, data.task))
        x = (of_x(data.x) if of_x else data.x).float()
        return replace(experience, dataset=TensorData(x, y, data.task))

    train, test, valid = (tuple(map(finish, s)) for s in (made.train_stream, made.test_stream, made.valid_stream))
    return Scenario(made.spec, train, test, valid)
