"""Files of tables: CSV, TSV, Parquet, NPZ and NPY."""

from __future__ import annotations

import csv
import io
import zipfile
from pathlib import Path

import numpy as np

from clplat.data.tables import Table, as_texts, checked, from_values, is_number, objects
from clplat.data.text import decode
from clplat.errors import MissingError, UsageError

SUFFIXES = (".csv", ".tsv", ".parquet", ".npz", ".npy")


def read(path: Path, *, delimiter: str = "auto", encoding: str = "utf-8") -> Table:
    """The table in a file: CSV, TSV, Parquet, NPZ or NPY.

    Raises:
        UsageError: it is not what its name says, is empty, or its rows are of different lengths.
        MissingError: it is Parquet, and pyarrow is not installed.
    """
    if path.suffix.lower() in (".npz", ".npy"):
        return checked(_read_numpy(path))
    if path.suffix.lower() == ".parquet":
        return _read_parquet(path)
    if delimiter == "auto":
        delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    return _read_csv(path, delimiter, encoding)


def content(path: Path) -> bytes:
    """The bytes of a file that must have some."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise MissingError(f"{path}: {error.strerror}") from None
    if not raw:
        raise UsageError(f"{path}: the file is empty")
    return raw


def _read_csv(path: Path, delimiter: str, encoding: str) -> Table:
    text = decode(content(path), str(path), encoding)
    reader = csv.reader(io.StringIO(text), delimiter=delimiter, strict=True)
    rows: list[list[str]] = []
    lines: list[int] = []
    try:
        for row in reader:
            if any(cell.strip() for cell in row):
                rows.append(row)
                lines.append(reader.line_num)
    except csv.Error as error:
        raise UsageError(f"{path}:{reader.line_num}: {error}") from None
    if not rows:
        raise UsageError(f"{path}: the file has no line that is not blank")
    names = [name.strip() for name in rows.pop(0)]
    first = lines.pop(0)
    _check_header(path, first, names, delimiter)
    for line, row in zip(lines, rows, strict=True):
        if len(row) != len(names):
            raise UsageError(f"{path}:{line}: {len(row)} values, but there are {len(names)} columns")
    columns = {}
    for name, cells in zip(names, zip(*rows, strict=True) if rows else [()] * len(names), strict=True):
        columns[name] = objects(cells)
    return checked(Table(str(path), columns, lambda i: f"{path}:{lines[i]}"))


def _check_header(path: Path, line: int, names: list[str], delimiter: str) -> None:
    others = [other for other in ",;\t|" if other != delimiter and other in "".join(names)]
    if len(names) == 1 and others:
        other = "tab" if others[0] == "\t" else others[0]
        raise UsageError(f"{path}:{line}: there is one column only; is scenario.delimiter='{other}'?")
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise UsageError(f"{path}:{line}: two columns are called '{min(twice)}'")
    if all(is_number(name) for name in names):
        raise UsageError(f"{path}:{line}: the first line should have the names of the columns, not numbers")


def _read_numpy(path: Path) -> Table:
    try:
        loaded = np.load(io.BytesIO(content(path)), allow_pickle=False)
        arrays = {name: loaded[name] for name in loaded.files} if isinstance(loaded, np.lib.npyio.NpzFile) else loaded
    except (ValueError, EOFError, OSError, zipfile.BadZipFile) as error:
        said = "it holds Python objects, which are not read" if "allow_pickle" in str(error) else str(error)
        raise UsageError(f"{path}: no arrays can be read from it: {said}") from None
    if isinstance(arrays, np.ndarray):
        if arrays.dtype.names:
            arrays = {name: arrays[name] for name in arrays.dtype.names}
        elif arrays.ndim in (1, 2):
            arrays = {str(i): column for i, column in enumerate(arrays.reshape(len(arrays), -1).T)}
        else:
            raise UsageError(f"{path}: an array of {arrays.ndim} dimensions is no table; put it into an NPZ file as x")
    for name, array in arrays.items():
        if not array.ndim:
            raise UsageError(f"{path}: '{name}' is a single value, not a column")
        if array.dtype.kind not in "biufUMSO":
            raise UsageError(f"{path}: '{name}' holds {array.dtype}, which is neither numbers nor texts")
        if array.dtype.kind in "US":
            arrays[name] = as_texts((np.char.decode(array, "utf-8") if array.dtype.kind == "S" else array).tolist())
    return Table(str(path), arrays, lambda i: f"{path}: row {i + 1}")


def _read_parquet(path: Path) -> Table:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise MissingError(f"{path}: Parquet files need pyarrow: pip install 'clplat[parquet]'") from None
    try:
        loaded = parquet.read_table(io.BytesIO(content(path)))
    except (ArrowException, OSError) as error:
        raise UsageError(f"{path}: no Parquet can be read from it: {' '.join(str(error).split())[:200]}") from None
    return from_values(str(path), {name: loaded.column(i).to_pylist() for i, name in enumerate(loaded.column_names)})
