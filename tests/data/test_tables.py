"""Tables of people's own files: what is read, and that what is wrong is refused with file and line."""

from __future__ import annotations

import datetime
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest

from clplat.data import readers
from clplat.data.readers import read
from clplat.data.tables import Table, from_values, join, labels, numbers, times
from clplat.errors import MissingError, UsageError


def csv(folder: Path, content: str | bytes, name: str = "t.csv") -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def cells(table: Table) -> dict[str, list[object]]:
    return {name: np.asarray(column).tolist() for name, column in table.columns.items()}


def test_a_csv_file_is_read_as_it_stands(tmp_path: Path) -> None:
    content = b'\xef\xbb\xbfa, name ,y\r\n1,"two\nlines",x\n\n,,\r\n2.5,"comma, and ""quotes""", y \r'
    table = read(csv(tmp_path, content))
    assert cells(table) == {"a": ["1", "2.5"], "name": ["two\nlines", 'comma, and "quotes"'], "y": ["x", " y "]}
    assert numbers(table, "a", table.columns["a"]).tolist() == [1, 2.5]
    assert labels(table, "y", table.columns["y"]) == ["x", "y"]
    assert table.where(1) == f"{tmp_path / 't.csv'}:6"


def test_other_separators_and_encodings(tmp_path: Path) -> None:
    assert cells(read(csv(tmp_path, "a\tb\n1\t2\n", "t.tsv"))) == {"a": ["1"], "b": ["2"]}
    assert cells(read(csv(tmp_path, "a;b\n1;2\n"), delimiter=";")) == {"a": ["1"], "b": ["2"]}
    assert cells(read(csv(tmp_path, "ä\nö\n".encode("latin-1")), encoding="latin-1")) == {"ä": ["ö"]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "t.csv: the file is empty"),
        (b"\n \n,,\n", "no line that is not blank"),
        (b"a,b\n", "no row"),
        (b"a,b,a\n1,2,3\n", "t.csv:1: two columns are called 'a'"),
        (b"a,b\n1,2\n\n1\n", "t.csv:4: 1 values, but there are 2 columns"),
        (b"a,b\n1,2,3\n", "t.csv:2: 3 values"),
        (b"1,2\n3,4\n", "t.csv:1: the first line should have the names"),
        (b"a;b\n1;2\n", "scenario.delimiter=';'"),
        (b'a,b\n1,"2\n', "t.csv:2: unexpected end of data"),
        (b"a,b\n1,\xff\n", "t.csv: line 2 is not utf-8"),
        ("a,b\n1,2\n".encode("utf-16"), "try scenario.encoding=utf-16"),
        (b"a,b\n1,\0\n", "line 2 has a byte 0"),
        (b"a\n" + b"x" * 200000 + b"\n", "field larger than field limit"),
    ],
)
def test_what_is_no_table_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(UsageError, match="(?s)" + message.replace("(", r"\(")):
        read(csv(tmp_path, content))


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("", "t.tsv:3: 'a' is missing"),
        ("  ", "t.tsv:3: 'a' is missing"),
        ("NA", "t.tsv:3: 'a' is 'NA', which is not a number"),
        ("1,5", "'a' is '1,5', which is not a number"),
        ("nan", "t.tsv:3: 'a' is nan, which is not a finite number"),
        ("-inf", "not a finite number"),
        ("1e39", "t.tsv:3: 'a' is 1e39, which is not a finite number of 32 bits"),
        ("9" * 400, "not a finite number"),
    ],
)
def test_numbers_are_numbers_and_finite(tmp_path: Path, cell: str, message: str) -> None:
    table = read(csv(tmp_path, f"a\tb\n1\t2\n{cell}\t3\n", "t.tsv"))
    with pytest.raises(UsageError, match=message):
        numbers(table, "a", table.columns["a"])


def test_labels_are_names(tmp_path: Path) -> None:
    table = from_values("t", {"y": [1, 2, 10**30], "f": [1.0, 2.0, 3.0], "b": [True, False, True]})
    assert labels(table, "y", table.columns["y"]) == ["1", "2", str(10**30)]
    assert labels(table, "f", table.columns["f"]) == ["1", "2", "3"]
    for values, message in (
        (["a", " "], "t: row 2: 'y' is 'empty'"),
        (["a", "NaN"], "a label is missing"),
        (["a", None], "row 2"),
        ([1.5, 2.0], "row 1: 'y' is 1.5, a number and no class; to predict numbers set scenario.kind=regression"),
    ):
        table = from_values("t", {"y": values})
        with pytest.raises(UsageError, match=message):
            labels(table, "y", table.columns["y"])


def test_times_are_numbers_or_dates() -> None:
    day = datetime.datetime(2024, 2, 28, tzinfo=datetime.UTC).timestamp()
    for values, expected in (
        (["2024-02-28", "2024-02-29", "2024-03-01T06:00:00"], [day, day + 86400, day + 2 * 86400 + 21600]),
        ([datetime.date(2024, 2, 28), datetime.date(2024, 2, 29)], [day, day + 86400]),
        (["2024-02-28T01:00:00+01:00"], [day]),
        (["3", "2.5", "-1"], [3, 2.5, -1]),
        ([10**17, 5], [10**17, 5]),
    ):
        table = from_values("t", {"t": values})
        assert times(table, "t", table.columns["t"]).tolist() == expected
    table = Table("t", {"t": np.array(["2024-02-28", "2024-02-29"], dtype="datetime64[D]")}, str)
    assert times(table, "t", table.columns["t"]).tolist() == [day, day + 86400]
    for values, message in (
        (["2024-02-28", "28.2.2024"], "row 2: 't' is '28.2.2024', neither a number nor a date like"),
        (["2024-02-30"], "neither"),
        (["2024-02-28", "2024-02-28T00:00:00+00:00"], "row 2: .* with and without a time zone"),
    ):
        table = from_values("t", {"t": values})
        with pytest.raises(UsageError, match=message):
            times(table, "t", table.columns["t"])


def test_arrays_are_columns(tmp_path: Path) -> None:
    x, y = np.arange(24.0).reshape(4, 3, 2), np.array(["a", "b", "a", "b"])
    np.savez(tmp_path / "t.npz", x=x, y=y)
    table = read(tmp_path / "t.npz")
    assert numbers(table, "x", table.columns["x"]).tolist() == x.tolist()
    assert labels(table, "y", table.columns["y"]) == y.tolist()
    assert table.where(2).endswith("t.npz: row 3")
    np.save(tmp_path / "t.npy", x[:, 0])
    assert cells(read(tmp_path / "t.npy")) == {"0": [0, 6, 12, 18], "1": [1, 7, 13, 19]}
    np.save(tmp_path / "s.npy", np.array([(1, b"u"), (2, b"v")], dtype=[("a", int), ("b", "S1")]))
    assert cells(read(tmp_path / "s.npy")) == {"a": [1, 2], "b": ["u", "v"]}


def test_nothing_pickled_is_read(tmp_path: Path) -> None:
    np.savez(tmp_path / "t.npz", x=np.array([1, "a", None], dtype=object))
    (tmp_path / "p.npy").write_bytes(pickle.dumps([1, 2]))
    (tmp_path / "b.npz").write_bytes(b"PK not a zip")
    for name, message in (("t.npz", "Python objects"), ("p.npy", "no arrays can be read"), ("b.npz", "no arrays")):
        with pytest.raises(UsageError, match=message):
            read(tmp_path / name)


def test_arrays_of_other_shapes_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.zeros((4, 2)), y=np.zeros(3))
    np.savez(tmp_path / "b.npz", x=np.zeros(()))
    np.savez(tmp_path / "c.npz", x=np.zeros(3, dtype=complex))
    np.save(tmp_path / "d.npy", np.zeros((2, 2, 2)))
    for name, message in (
        ("a.npz", "'x' has 4 rows, 'y' has 3 rows"),
        ("b.npz", "single value"),
        ("c.npz", "complex"),
        ("d.npy", "3 dimensions"),
    ):
        with pytest.raises(UsageError, match=message):
            read(tmp_path / name)
    with pytest.raises(UsageError, match="row 2: 'x' is no array of numbers of the shape"):
        from_values("t", {"x": [[1, 2], [3]]})


def test_tables_below_one_another_tell_where_a_row_is() -> None:
    one, two = from_values("one", {"a": [1, 2]}), from_values("two", {"a": [3, 4, 5]})
    both = join([one, two])
    assert cells(both) == {"a": [1, 2, 3, 4, 5]}
    assert [both.where(i) for i in (1, 2, 4)] == ["one: row 2", "two: row 1", "two: row 3"]
    assert both.rows(np.array([4, 0])).where(0) == "two: row 3"
    with pytest.raises(UsageError, match="three: has no column 'a', which one has"):
        join([one, from_values("three", {"b": [1]})])
    with pytest.raises(UsageError, match="two: has a column 'b'"):
        join([one, from_values("two", {"a": [1], "b": [1]})])


def test_missing_values_of_plain_tables_are_told() -> None:
    table = from_values("t", {"a": [1.5, None], "b": [{}, {}]})
    with pytest.raises(UsageError, match="t: row 2: 'a' is missing"):
        numbers(table, "a", table.columns["a"])
    with pytest.raises(UsageError, match="t: row 1: 'b' holds dict, neither a number nor a text"):
        labels(table, "b", table.columns["b"])


def test_parquet_needs_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "t.parquet").write_bytes(b"PAR1")
    with pytest.raises(MissingError, match=r"pip install 'clplat\[parquet\]'") as error:
        read(tmp_path / "t.parquet")
    assert error.value.exit_code == 3


def test_parquet_is_read(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "t.parquet"
    day = datetime.date(2024, 2, 28)
    columns = {"a": [1.5, None], "y": ["u", "v"], "t": [day, day], "v": [[1.0, 2.0], [3.0, 4.0]]}
    parquet.write_table(pyarrow.table(columns), path)
    table = read(path)
    assert cells(table) == {"a": ["1.5", None], "y": ["u", "v"], "t": ["2024-02-28"] * 2, "v": columns["v"]}
    with pytest.raises(UsageError, match="row 2: 'a' is missing"):
        numbers(table, "a", table.columns["a"])
    path.write_bytes(b"no parquet")
    with pytest.raises(UsageError, match="no Parquet can be read"):
        read(path)


def test_unknown_columns_are_suggested() -> None:
    with pytest.raises(UsageError, match=r"scenario.target=labl: no such column. Did you mean 'label'"):
        from_values("t", {"a": [1], "label": [2]}).column("labl", "target")


def test_a_file_that_cannot_be_read_is_missing(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="No such file"):
        readers.content(tmp_path / "nothing.csv")
