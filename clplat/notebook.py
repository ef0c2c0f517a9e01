"""Runs in a notebook: read, shown as tables, handed to pandas. Figures of them are in :mod:`clplat.figures`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, SupportsIndex, overload

from clplat.changes import flatten
from clplat.errors import MissingError
from clplat.report import runs as reading
from clplat.report import tables, tidy
from clplat.report.runs import RunData

if TYPE_CHECKING:
    import pandas


class Runs(list[RunData]):
    """A list of runs. A slice of it is one, too."""

    @overload
    def __getitem__(self, at: SupportsIndex) -> RunData: ...

    @overload
    def __getitem__(self, at: slice) -> Runs: ...

    def __getitem__(self, at: SupportsIndex | slice) -> RunData | Runs:
        return Runs(super().__getitem__(at)) if isinstance(at, slice) else super().__getitem__(at)

    def where(self, *conditions: str, sort: str | None = None) -> Runs:
        """Those that meet conditions in the words of ``clplat runs --where``: ``where("strategy=ewc", "ACC>0.8")``.

        Args:
            conditions: all of them must hold.
            sort: a key, largest first; -KEY for the smallest first.
        """
        from clplat.report.query import query

        return Runs(query(self, conditions, sort))

    def to_pandas(self, *, long: bool = False) -> pandas.DataFrame:
        """A table of the runs.

        Args:
            long: one row for each value that was measured (the columns of ``clplat report --data``), in place of one
                for each run with its summary and configuration.

        Raises:
            MissingError: pandas is not installed.
        """
        try:
            import pandas
        except ModuleNotFoundError:
            raise MissingError("to_pandas needs the package 'pandas': pip install 'clplat[notebook]'") from None

        if long:
            return pandas.DataFrame(tidy.rows(self), columns=list(tidy.COLUMNS))
        return pandas.DataFrame([_row(run) for run in self])

    def _repr_html_(self) -> str:
        return tables.as_html(*tables.summary(self))


def load_runs(*places: str | Path) -> Runs:
    """Read runs, finished or not, from run directories and from folders that hold some: ``load_runs("runs/")``.

    Raises:
        UsageError: a place is neither a run directory nor a folder that holds one.
    """
    return Runs(reading.load_runs([Path(place) for place in places or ("runs",)]))


def _row(run: RunData) -> dict[str, Any]:
    return {
        "run": run.label,
        **{group: run.name(group) for group in tables.GROUPS},
        "seed": run.config.get("seed"),
        "status": run.status,
        "metric": run.metric,
        "experiences": len(run.matrix),
        "steps": run.steps,
        "seconds": run.seconds,
        **run.summary,
        **{f"config.{key}": value for key, value in flatten(run.config).items()},
    }


class Results(dict[str, Any]):
    """The content of ``results.json``, which notebooks show as a table."""

    def _repr_html_(self) -> str:
        known = {"status": self.get("status"), "metric": self.get("metric"), **self.get("summary", {})}
        return tables.as_html(list(known), [[_shown(value) for value in known.values()]])


def _shown(value: Any) -> str:
    return tables.number(value) if isinstance(value, float) or value is None else str(value)
