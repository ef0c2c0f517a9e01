"""Streams of data of one's own, wherever it was read from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol

import numpy as np

from clplat.data import forecasting, supervised, text
from clplat.data.folders import natural
from clplat.data.options import Options
from clplat.data.tables import Table, join, labels, texts, times
from clplat.data.text import Document, Domain
from clplat.errors import UsageError
from clplat.scenario import Scenario

Tables = dict[str, dict[str, list[Table]]]  # part (train, test, valid) -> experience -> tables; "" is a pool


class Source(Protocol):
    """Where data is read from."""

    holds: Literal["tables", "images", "texts"]

    def tables(self, wanted: Options) -> Tables:
        """The tables of each experience of each part."""

    def domains(self) -> list[Domain]:
        """The texts of each experience, where ``holds`` is texts."""


class OwnData(Options, Scenario):
    """A stream of data of one's own.

    ``names`` are the names of the experiences, where they have any, ``class_names`` those of the classes.

    Args:
        source: makes what reads the data; told whether it is to read texts as language.
    """

    settings = ("class", "task", "domain")

    def __init__(self, seed: int, source: Callable[[bool], Source], **options: Any) -> None:
        Options.__init__(self, **options)
        self.names: list[str] = []
        self.class_names: list[str] = []
        found = source(self.kind == "language")
        kind = self.kind if self.kind != "auto" else "language" if found.holds == "texts" else "classification"
        if problems := self.problems(kind):
            raise UsageError(*problems)
        built = self._language(found) if kind == "language" else self._of_tables(kind, found, seed)
        Scenario.__init__(self, built.spec, built.train_stream, built.test_stream, built.valid_stream)

    def _language(self, source: Source) -> Scenario:
        domains = source.domains() if source.holds == "texts" else self._domains(source.tables(self))
        if source.holds == "texts" and (self.task or self.experiences):
            raise UsageError("scenario.task and scenario.experiences: texts have a folder or file for each experience")
        self.names = [domain.name for domain in domains]
        return text.language(
            domains,
            length=self.length,
            level=self.level,
            vocabulary=self.vocabulary,
            test=self.test,
            validation=self.validation,
        )

    def _domains(self, tables: Tables) -> list[Domain]:
        """Texts that are rows of tables."""
        named = self.inputs or [name for name in next(iter(tables["train"].values()))[0].columns if name == "text"]
        if len(named) != 1:
            raise UsageError("scenario.inputs: one column with texts is needed for scenario.kind=language")
        (name,) = named

        def documents(table: Table) -> list[Document]:
            found = texts(table, name, table.column(name, "inputs"))
            return [Document(table.where(i), own) for i, own in enumerate(found)]

        parts = {
            part: {e: documents(table) for e, (table,) in own.items()}
            for part, own in self._experiences(_joined(tables, whole=self._anew), ordered=True).items()
        }
        return [
            Domain(e, train, parts.get("test", {}).get(e, ()), parts.get("valid", {}).get(e, ()))
            for e, train in parts["train"].items()
        ]

    def _of_tables(self, kind: str, source: Source, seed: int) -> Scenario:
        if source.holds == "texts":
            raise UsageError(f"scenario.kind={kind}: there are only texts here, which make a stream of kind language")
        tables = source.tables(self)
        if kind == "forecasting":
            tables = self._experiences(tables, ordered=True)
            self.names = list(tables["train"])
            return forecasting.build(tables, self)
        tables = self._experiences(_joined(tables, whole=self._anew), ordered=self.time is not None)
        self.names = [name for name in tables["train"] if name]
        single = {part: {e: table for e, (table,) in own.items()} for part, own in tables.items()}
        built, self.class_names = supervised.build(single, self, seed, classify=kind == "classification")
        return built

    @property
    def _anew(self) -> bool:
        """Experiences are not those of folders and files."""
        return self.task is not None or self.experiences is not None

    def _experiences(self, tables: Tables, ordered: bool) -> Tables:
        """Tables in their order in time, by experience; a pool without an order stays one."""
        if not self._anew:
            if list(tables["train"]) == [""]:
                raise UsageError(
                    f"{tables['train'][''][0].name}: the data has no experiences of its own: name the column that says "
                    "which a row belongs to by scenario.task, or cut it by scenario.experiences=N"
                )
            return {p: {e: list(map(self._in_time, each)) for e, each in own.items()} for p, own in tables.items()}
        pools = {part: [self._in_time(t) for each in own.values() for t in each] for part, own in tables.items()}
        if self.task is not None:
            return _by_column(pools, self.task)
        if not ordered:
            return {part: {"": pool} for part, pool in pools.items()}
        assert self.experiences is not None
        return {part: _periods(pool, self.experiences) for part, pool in pools.items()}

    def _in_time(self, table: Table) -> Table:
        if self.time is None:
            return table
        moments = times(table, self.time, table.column(self.time, "time"))
        return table.rows(np.argsort(moments, kind="stable"))


def _joined(tables: Tables, *, whole: bool) -> Tables:
    """One table for each experience, or one for all of a part."""
    if whole:
        return {part: {"": [join([table for each in own.values() for table in each])]} for part, own in tables.items()}
    return {part: {e: [join(each)] for e, each in own.items()} for part, own in tables.items()}


def _by_column(pools: Mapping[str, list[Table]], task: str) -> Tables:
    """The rows of each value of a column, in the natural order of the values.

    Raises:
        UsageError: parts have other values than training.
    """
    found: Tables = {}
    for part, pool in pools.items():
        own: dict[str, list[Table]] = {}
        for table in pool:
            values = np.array(labels(table, task, table.column(task, "task")))
            for name in np.unique(values).tolist():
                own.setdefault(name, []).append(table.rows(np.flatnonzero(values == name)))
        found[part] = {name: own[name] for name in sorted(own, key=natural)}
        for name in sorted(set(own) ^ set(found["train"])):
            without, having = (part, "train") if name in found["train"] else ("train", part)
            raise UsageError(f"{pools[having][0].name}: '{task}' is '{name}' in {having}, but never in {without}")
    return found


def _periods(pool: list[Table], n: int) -> dict[str, list[Table]]:
    """Each table cut into n pieces, one behind the other."""
    for table in pool:
        if len(table) < n:
            raise UsageError(f"scenario.experiences={n}: {table.name} has only {len(table)} rows")
    cuts = [np.array_split(np.arange(len(table)), n) for table in pool]
    return {f"period {i}": [t.rows(rows[i]) for t, rows in zip(pool, cuts, strict=True)] for i in range(n)}
