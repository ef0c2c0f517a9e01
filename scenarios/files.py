"""Streams of the user's own files: ``--scenario files scenario.root=DIR``."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np

from clplat import signature, yamlfile
from clplat.data import folders, images, readers, tables, text
from clplat.data.folders import MANIFEST
from clplat.data.images import Images
from clplat.data.options import Options
from clplat.data.own import OwnData, Tables
from clplat.data.tables import Table
from clplat.data.text import Document, Domain
from clplat.errors import MissingError, UsageError, suggestion
from clplat.options import convert

_TEXTS = ("*.txt", "*.text", "*.md", "*.rst")


class Files(OwnData):
    """Your own data: tables, arrays, images or texts in files, one folder or file for each experience.

    ``clplat fit --scenario files scenario.root=DIR`` takes what lies in DIR:

    - CSV, TSV, Parquet (with ``pip install 'clplat[parquet]'``), NPZ, NPY: tables. The first line of a CSV file names
      its columns. The arrays of an NPZ file are columns too, and may have several dimensions: ``x`` (N, ...) and ``y``
      (N,); nothing pickled is read.
    - png, jpg and other images: in a folder for each class; or named in a column of a table (``scenario.images``).
    - txt, md, rst, or what ``scenario.pattern`` says: texts.

    Where a folder holds several of these, tables go before images and images before texts (a README is no data);
    ``kind=language`` takes the texts. Hidden files and the names of other kinds are passed over.

    Experiences come in natural order (task2 before task10). One is, in this order of preference: the rows that have the
    same value in the column ``scenario.task``; one of the N pieces that ``scenario.experiences=N`` cuts all samples
    into; a folder of DIR; a file of DIR. Parts that are apart already are called train, test and valid, and lie above
    the experiences: ``DIR/train/spring/``, ``DIR/test/spring/``, or ``DIR/train.csv``, ``DIR/test.csv``. What is not
    apart is cut off: by class at random, or, with ``scenario.time`` and for forecasting and texts, what comes last.
    Rows with equal inputs stay on one side (images only where they are held).

    What is done with it (``scenario.kind``): ``classification`` of one label for each row, ``regression`` (targets are
    numbers), ``forecasting`` (rows are steps in time; the sample is a window of rows, its targets are those of the
    ``horizon`` rows behind; no window crosses a file, an experience or a part), and ``language`` (the next byte or
    word, see ``stdlib-text``). Numbers are scaled to mean 0 and variance 1 of the first experience's training part,
    nothing else being known when it is learned; errors are in units of these, and ``nrmse`` is 1 for who answers with
    the mean of the test.

    DIR may hold a ``manifest.yaml`` with any of these options but root; where an option is at its default the
    manifest's value stands. The same files and seed give the same stream.

    Args:
        root: a folder, or one file.
        images: column that names image files, relative to the table's folder; they are then the inputs.
        pattern: names of text files, such as *.py; null takes txt, md and rst.
        delimiter: what separates the values of a CSV file; auto is a comma, and a tab for TSV.
        encoding: of CSV files and texts.
    """

    def __init__(
        self,
        seed: int,
        *,
        root: str,
        images: str | None = None,
        pattern: str | None = None,
        delimiter: str = "auto",
        encoding: str = "utf-8",
        **options: Any,
    ) -> None:
        given = {"images": images, "pattern": pattern, "delimiter": delimiter, "encoding": encoding, **options}
        place = Path(root).expanduser()
        values = _with_manifest(place, given)
        reading = {name: values.pop(name) for name in ("images", "pattern", "delimiter", "encoding")}
        if reading["images"] is not None and values.get("inputs") is None:
            values["inputs"] = [reading["images"]]
        delimiter = reading["delimiter"]
        if delimiter != "auto" and len(delimiter) != 1:
            raise UsageError(f"scenario.delimiter={delimiter}: one character is needed, or auto")
        super().__init__(seed, lambda language: _Folder(place, language=language, **reading), **values)


def _with_manifest(root: Path, options: dict[str, Any]) -> dict[str, Any]:
    """The options, those at their defaults as the manifest has them."""
    path = root / MANIFEST
    if not path.is_file():
        return options
    content, lines = yamlfile.read(path)
    known = signature.read(f"{Files.__module__}.{Files.__qualname__}").options
    problems = []
    for name, value in content.items():
        where = f"{path}:{lines[(name,)]}"
        if name not in known or name == "root":
            problems.append(f"{where}: there is no option '{name}'.{suggestion(name, set(known) - {'root'})}")
            continue
        try:
            value = convert(value, known[name].type)
        except ValueError as error:
            problems.append(f"{where}: {name}: {error}")
            continue
        if options.get(name, known[name].default) == known[name].default:
            options = {**options, name: value}
    if problems:
        raise UsageError(*problems)
    return options


class _Folder:
    """What lies in a folder, or in one file."""

    def __init__(
        self, root: Path, *, language: bool, images: str | None, pattern: str | None, delimiter: str, encoding: str
    ) -> None:
        self.root, self.images, self.delimiter, self.encoding = root, images, delimiter, encoding
        if not root.exists():
            raise MissingError(f"scenario.root={root}: nothing is there")
        patterns = {
            "tables": tuple(f"*{suffix}" for suffix in readers.SUFFIXES),
            "images": tuple(f"*{suffix}" for suffix in _IMAGES),
            "texts": (pattern.lower(),) if pattern else _TEXTS,
        }
        there = [name for name, own in patterns.items() if _any(root, own)]
        if not there:
            kinds = "; ".join(f"{name}: {', '.join(own)}" for name, own in patterns.items())
            raise MissingError(f"scenario.root={root}: no data that can be read is there ({kinds})")
        self.holds: Literal["tables", "images", "texts"]
        self.holds = "texts" if (language or pattern) and "texts" in there else there[0]  # type: ignore[assignment]
        self.patterns = patterns[self.holds]

    def tables(self, wanted: Options) -> Tables:
        """The tables of each experience; images in folders are tables of a picture and a label."""
        if self.holds == "images":
            found = folders.layout(self.root, self.patterns, depth=1)
            return {part: {name: [_of_classes(f, wanted)] for name, f in own.items()} for part, own in found.items()}
        found = folders.layout(self.root, self.patterns)
        return {part: {name: list(map(self._read, f)) for name, f in own.items()} for part, own in found.items()}

    def domains(self) -> list[Domain]:
        """The texts of each experience."""
        found = folders.layout(self.root, self.patterns)
        parts = {part: {name: list(map(self._text, f)) for name, f in own.items()} for part, own in found.items()}
        if list(parts["train"]) == [""]:
            raise UsageError(f"scenario.root={self.root}: texts need a folder or a file for each experience")
        return [
            Domain(name, train, parts.get("test", {}).get(name, ()), parts.get("valid", {}).get(name, ()))
            for name, train in parts["train"].items()
        ]

    def _text(self, path: Path) -> Document:
        return Document(str(path), text.decode(readers.content(path), str(path), self.encoding))

    def _read(self, path: Path) -> Table:
        table = readers.read(path, delimiter=self.delimiter, encoding=self.encoding)
        if self.images is None:
            return table
        named = [path.parent / name for name in tables.texts(table, self.images, table.column(self.images, "images"))]
        for i, image in enumerate(named):
            if not image.is_file():
                raise MissingError(f"{table.where(i)}: '{self.images}' names {image}, and no such file is there")
        return table.with_columns({self.images: Images.of_files(named)})


_IMAGES = images.SUFFIXES


def _any(root: Path, patterns: tuple[str, ...]) -> bool:
    if root.is_file():
        return folders.matches(root, patterns)
    return any(True for _ in folders.files(root, patterns))


def _of_classes(files: list[Path], wanted: Options) -> Table:
    """Images in folders named after their classes."""
    names = np.empty(len(files), dtype=object)
    names[:] = [path.parent.name for path in files]
    target = (wanted.targets or ["label"])[0]
    return Table(str(files[0].parent), {"image": Images.of_files(files), target: names}, lambda i: str(files[i]))
