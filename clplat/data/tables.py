"""Tables: named columns of numbers, texts or images, whatever they were read from."""

from __future__ import annotations

import datetime
import decimal
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from clplat.data.images import Images
from clplat.errors import UsageError, suggestion

Column = np.ndarray | Images


@dataclass(frozen=True)
class Table:
    """Columns of equal length.

    Args:
        name: the file, for errors.
        columns: by name: an array of numbers (N, ...), of texts (N,), or images. None stands for what is missing.
        where: says where row i is to be found.
    """

    name: str
    columns: Mapping[str, Column]
    where: Callable[[int], str]

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def column(self, name: str, option: str) -> Column:
        """A column that an option names.

        Raises:
            UsageError: there is none of that name.
        """
        if name not in self.columns:
            raise UsageError(f"{self.name}: scenario.{option}={name}: no such column.{suggestion(name, self.columns)}")
        return self.columns[name]

    def with_columns(self, columns: Mapping[str, Column]) -> Table:
        """The same rows with more columns, or others in their place."""
        return checked(Table(self.name, {**self.columns, **columns}, self.where))

    def rows(self, index: np.ndarray) -> Table:
        """Some of the rows."""
        numbers = index.tolist()
        return Table(
            self.name, {key: column[index] for key, column in self.columns.items()}, lambda i: self.where(numbers[i])
        )


def join(tables: Sequence[Table]) -> Table:
    """Tables with the same columns, one below the other.

    Raises:
        UsageError: columns differ; the message names the files.
    """
    first = tables[0]
    if len(tables) == 1:
        return first
    for table in tables[1:]:
        if missing := [name for name in first.columns if name not in table.columns]:
            raise UsageError(f"{table.name}: has no column '{missing[0]}', which {first.name} has")
        if more := [name for name in table.columns if name not in first.columns]:
            raise UsageError(f"{table.name}: has a column '{more[0]}', which {first.name} has not")
    starts = np.cumsum([0, *map(len, tables)])

    def where(i: int) -> str:
        number = int(np.searchsorted(starts, i, side="right")) - 1
        return tables[number].where(i - int(starts[number]))

    columns = {name: _stack([table.columns[name] for table in tables], tables, name) for name in first.columns}
    return Table(first.name, columns, where)


def _stack(columns: Sequence[Column], tables: Sequence[Table], name: str) -> Column:
    pictures = [column for column in columns if isinstance(column, Images)]
    arrays = [column for column in columns if not isinstance(column, Images)]
    if pictures and not arrays:
        return Images.join(pictures)
    shapes = {column.shape[1:] for column in arrays}
    if pictures or len(shapes) > 1:
        raise UsageError(f"{tables[0].name}: '{name}' has another shape than in {tables[-1].name}")
    if len({column.dtype.kind for column in arrays} & set("OU")) and len({column.dtype for column in arrays}) > 1:
        arrays = [column.astype(object) for column in arrays]
    return np.concatenate(arrays)


def from_values(name: str, values: Mapping[str, Sequence[Any]], where: Callable[[int], str] | None = None) -> Table:
    """A table of plain Python values: numbers, texts, dates, lists of numbers, or None.

    Raises:
        UsageError: a column has lists of different lengths, or there is no row.
    """
    place = where or (lambda i: f"{name}: row {i + 1}")
    columns = {key: _array(key, list(column), place) for key, column in values.items()}
    return checked(Table(name, columns, place))


def _array(key: str, values: list[Any], where: Callable[[int], str]) -> np.ndarray:
    if any(isinstance(value, (list, tuple, np.ndarray)) for value in values):
        for i, value in enumerate(values):
            if not _is_even(value) or np.shape(value) != np.shape(values[0]):
                raise UsageError(f"{where(i)}: '{key}' is no array of numbers of the shape that the first row has")
        return np.stack([np.asarray(value) for value in values])
    if values and all(isinstance(value, (bool, int, float, np.number)) for value in values):
        array = np.array(values)
        if array.dtype.kind in "biuf":
            return array
    return as_texts(values)


def objects(values: Sequence[Any]) -> np.ndarray:
    """A column of whatever the values are."""
    found = np.empty(len(values), dtype=object)
    found[:] = values
    return found


def as_texts(values: Iterable[Any]) -> np.ndarray:
    """Numbers, dates and texts as texts; what is none of them is left for whoever asks for it."""

    def plain(value: Any) -> Any:
        if isinstance(value, datetime.date):
            return value.isoformat()
        return str(value) if isinstance(value, (int, float, decimal.Decimal, np.number)) else value

    return objects(list(map(plain, values)))


def _text(table: Table, name: str, i: int, value: Any) -> str:
    """A value as a text without blanks around it, empty where there is none."""
    if value is None:
        return ""
    if not isinstance(value, (str, int, float)):
        raise UsageError(f"{table.where(i)}: '{name}' holds {type(value).__name__}, neither a number nor a text")
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value).strip()


def _is_even(value: Any) -> bool:
    try:
        np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        return False
    return True


def checked(table: Table) -> Table:
    """The table itself.

    Raises:
        UsageError: it has no column or no row, or its columns are not of equal length.
    """
    if not table.columns:
        raise UsageError(f"{table.name}: there is no column in it")
    lengths = {name: len(column) for name, column in table.columns.items()}
    if len(set(lengths.values())) > 1:
        raise UsageError(f"{table.name}: " + ", ".join(f"'{name}' has {n} rows" for name, n in lengths.items()))
    if not len(table):
        raise UsageError(f"{table.name}: there is no row in it")
    return table


# --- columns ---------------------------------------------------------------------------------------------------------


def is_number(text: str) -> bool:
    """Whether a text can be read as a number, finite or not."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def _flat(table: Table, name: str, column: Column) -> np.ndarray:
    if isinstance(column, Images) or column.ndim > 1:
        raise UsageError(f"{table.name}: '{name}' is an array or a picture in each row, not a single value")
    return column


def numbers(table: Table, name: str, column: Column, hint: str = "") -> np.ndarray:
    """A column as finite numbers, (N, ...).

    Args:
        hint: what else could be done, behind the message about something that is no number.

    Raises:
        UsageError: something else is in it; the message names the row.
    """
    if isinstance(column, Images):
        raise UsageError(f"{table.name}: '{name}' holds images, not numbers")
    try:
        found = column.astype(np.float64)
    except (TypeError, ValueError, OverflowError):
        for i, value in enumerate(column):
            if value is None or not str(value).strip():
                raise UsageError(f"{table.where(i)}: '{name}' is missing") from None
            if not is_number(str(value)):
                said = f"'{name}' is {str(value)[:40]!r}, which is not a number"
                raise UsageError(f"{table.where(i)}: {said}{hint}") from None
        raise UsageError(f"{table.name}: '{name}' is not numbers") from None
    # As they will be used: a number too large for 32 bits is none.
    with np.errstate(over="ignore"):
        wrong = ~np.isfinite(found.astype(np.float32)).reshape(len(found), -1).all(1)
    if wrong.any():
        i = int(wrong.argmax())
        if column[i] is None:
            raise UsageError(f"{table.where(i)}: '{name}' is missing")
        said = f"'{name}' is {column[i]}, which is" if found.ndim == 1 else f"'{name}' has a value that is"
        raise UsageError(f"{table.where(i)}: {said} not a finite number of 32 bits")
    return found


def labels(table: Table, name: str, column: Column) -> list[str]:
    """A column as names of classes.

    Raises:
        UsageError: one is missing, or they are numbers with fractions; the message names the row.
    """
    column = _flat(table, name, column)
    found = [_text(table, name, i, value) for i, value in enumerate(column.tolist())]
    for i, label in enumerate(found):
        if label.lower() in ("", "nan", "none"):
            raise UsageError(f"{table.where(i)}: '{name}' is {label or 'empty'!r}: a label is missing")
    if all(map(is_number, found)):
        for i, label in enumerate(found):
            if not float(label).is_integer():
                raise UsageError(
                    f"{table.where(i)}: '{name}' is {label}, a number and no class; to predict numbers set "
                    "scenario.kind=regression"
                )
    return found


def times(table: Table, name: str, column: Column) -> np.ndarray:
    """A column of numbers or dates as numbers (dates as seconds) that can be sorted.

    Raises:
        UsageError: it is neither; the message names the row.
    """
    column = _flat(table, name, column)
    if column.dtype.kind == "M":
        column = column.astype("datetime64[us]").astype(np.int64) / 1e6
    if column.dtype.kind in "biuf" or all(is_number(str(value)) for value in column):
        return numbers(table, name, column)
    found = np.empty(len(column))
    zones = set()
    for i, value in enumerate(column):
        try:
            moment = datetime.datetime.fromisoformat(str(value).strip())
        except ValueError:
            raise UsageError(
                f"{table.where(i)}: '{name}' is {str(value)[:40]!r}, neither a number nor a date like 2024-05-31 or "
                "2024-05-31T12:00:00"
            ) from None
        zones.add(moment.tzinfo is None)
        if len(zones) > 1:
            raise UsageError(f"{table.where(i)}: '{name}' is {value}: dates with and without a time zone are mixed")
        found[i] = (moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)).timestamp()
    return found


def texts(table: Table, name: str, column: Column) -> Iterable[str]:
    """A column as texts.

    Raises:
        UsageError: one is missing.
    """
    for i, value in enumerate(_flat(table, name, column).tolist()):
        if not _text(table, name, i, value):
            raise UsageError(f"{table.where(i)}: '{name}' is empty")
        yield str(value)
