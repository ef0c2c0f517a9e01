"""What was answered to each test sample, on disk: one file for each evaluation at the end of an experience.

``RUN/predictions/e003.npz`` holds the answers after train experience 3, ``untrained.npz`` those of the untrained
network. In a file the samples of the test experiences lie one after another: ``experience`` names those that were
evaluated, ``length`` says how many rows each has, and every other array is a column over all rows, of one or several
numbers for each (see :mod:`clplat.metrics.answers` for their names). In the form ``counts`` equal rows are one, with
how many they are in the column ``count``, and what differs from sample to sample is left out. Nothing is pickled, and
equal answers make equal files, byte for byte. numpy only: reading them takes no torch.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from clplat.errors import RunFailedError
from clplat.metrics.evidence import NotMeasuredError

Columns = dict[str, np.ndarray]
Form = Literal["predictions", "counts"]

FOLDER = "predictions"
AUTO_ROWS = 10_000_000  # rows over the whole run up to which eval.store=auto keeps each sample: about 100 MB


def form(wanted: str, rows: int) -> Form | None:
    """What ``eval.store`` means for a run with so many rows over all of its evaluations; None stores nothing."""
    if wanted == "auto":
        return "predictions" if rows <= AUTO_ROWS else "counts"
    return {"predictions": "predictions", "counts": "counts", "none": None}[wanted]


def path(run_dir: Path, after: int) -> Path:
    """The file of the evaluation after a train experience, -1 for the untrained network."""
    return run_dir / FOLDER / ("untrained.npz" if after < 0 else f"e{after:03d}.npz")


def write(run_dir: Path, after: int, answers: Mapping[int, Columns], kept: Form) -> None:
    """Write the answers of one evaluation, aside first: whoever reads sees a whole file or none.

    Raises:
        RunFailedError: it cannot be written.
    """
    parts = {j: counted(columns) if kept == "counts" else columns for j, columns in answers.items()}
    names = list(next(iter(parts.values()), {}))
    arrays = {name: _smallest(np.concatenate([columns[name] for columns in parts.values()])) for name in names}
    lengths = [len(next(iter(columns.values()))) for columns in parts.values()]
    save(path(run_dir, after), {"experience": list(parts), "length": lengths, **arrays})


def save(target: Path, arrays: Mapping[str, ArrayLike]) -> None:
    """Write arrays by name, aside first; the folder is made.

    Raises:
        RunFailedError: they cannot be written.
    """
    aside = target.with_name(f".{target.name}.tmp")
    try:
        target.parent.mkdir(exist_ok=True)
        with open(aside, "wb") as file:
            np.savez_compressed(file, allow_pickle=False, **arrays)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, target)
    except OSError as error:
        aside.unlink(missing_ok=True)
        raise RunFailedError(f"{target}: the {target.parent.name} cannot be written: {error.strerror}") from error


def cut(run_dir: Path, evaluations: int) -> None:
    """Take away what was stored after the evaluation number ``evaluations`` - 1; -1 takes the untrained one as well."""
    for file in (run_dir / FOLDER).glob("*.npz"):
        after = -1 if file.name == "untrained.npz" else int(file.stem[1:])
        if after >= evaluations:
            file.unlink()


def counted(columns: Columns) -> Columns:
    """Equal rows as one row with their ``count``; columns of fractions, or of several numbers, which hardly ever are
    equal, are left out."""
    names = [name for name, values in columns.items() if np.issubdtype(values.dtype, np.integer) and values.ndim == 1]
    rows, counts = np.unique(np.stack([columns[name] for name in names], 1), axis=0, return_counts=True)
    return {**{name: rows[:, k] for k, name in enumerate(names)}, "count": counts}


def _smallest(values: np.ndarray) -> np.ndarray:
    """The same integers in the smallest type that holds all of them."""
    if not np.issubdtype(values.dtype, np.integer) or not len(values):
        return values
    return values.astype(np.promote_types(np.min_scalar_type(values.min()), np.min_scalar_type(values.max())))


class Answers:
    """The stored answers of a run, read when they are asked for.

    Args:
        run_dir: the run directory.
    """

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self._read: dict[int, dict[int, Columns]] = {}

    def __bool__(self) -> bool:
        return (self.run_dir / FOLDER).is_dir()

    def after(self, i: int) -> dict[int, Columns]:
        """The columns of each test experience evaluated after train experience i (-1: by the untrained network).

        Integer columns come as int64; ``count`` is there in any case.

        Raises:
            NotMeasuredError: there is no such file, or it cannot be read.
        """
        if i not in self._read:
            file = path(self.run_dir, i)
            try:
                with np.load(file, allow_pickle=False) as stored:
                    whole = {name: stored[name] for name in stored.files}
            except FileNotFoundError:
                raise NotMeasuredError(f"the run stored no predictions after experience {i}") from None
            except Exception as error:  # a damaged archive shows in many ways
                raise NotMeasuredError(f"{file.name} cannot be read: {error}") from None
            experiences, lengths = whole.pop("experience"), whole.pop("length")
            whole = {n: v.astype(np.int64) if np.issubdtype(v.dtype, np.integer) else v for n, v in whole.items()}
            whole.setdefault("count", np.ones(int(lengths.sum()), np.int64))
            stops = np.cumsum(lengths)
            self._read[i] = {
                int(j): {name: values[stop - length : stop] for name, values in whole.items()}
                for j, stop, length in zip(experiences, stops, lengths, strict=True)
            }
        return self._read[i]

    def column(self, i: int, j: int, *names: str) -> tuple[np.ndarray, ...]:
        """Some columns of test experience j after train experience i, and ``count`` behind them.

        Raises:
            NotMeasuredError: j was not evaluated then, or the answers have no such column.
        """
        columns = self.after(i).get(j)
        if columns is None:
            raise NotMeasuredError(f"experience {j} was not evaluated after experience {i}")
        missing = [name for name in names if name not in columns]
        if missing:
            raise NotMeasuredError(
                f"the stored answers have no {' and no '.join(missing)}, but {', '.join(columns)}; fractions are there "
                "with eval.store=predictions, labels in classification"
            )
        return (*(columns[name] for name in names), columns["count"])
