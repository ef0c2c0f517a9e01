"""Data sets of Hugging Face's library: ``--scenario huggingface:NAME``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from clplat.data.folders import PARTS
from clplat.data.images import Images
from clplat.data.options import Options
from clplat.data.own import OwnData, Tables
from clplat.data.tables import Table, from_values
from clplat.data.text import Domain
from clplat.errors import MissingError, UsageError


class HuggingFace(OwnData):
    """A data set of Hugging Face's library ``datasets`` (Lhoest et al. 2021), from its hub or from a folder.

    ``clplat fit --scenario huggingface:NAME`` loads NAME from the hub, or, where NAME is a folder, what
    ``save_to_disk`` or plain files left there. It needs the library: ``pip install 'clplat[huggingface]'``. Code that a
    data set brings along is not run.

    The splits train, test and validation are the parts; others are left aside, and a single split of another name is
    train. Columns become inputs and targets as in ``files``, whose kinds and options are the same: a column of images
    is an input by itself (``scenario.inputs=[image]``), labels keep their names, ``scenario.kind=language`` takes the
    column ``text`` or the one that ``scenario.inputs`` names. A data set has no experiences of its own: name a column
    by ``scenario.task``, or cut it by ``scenario.experiences=N``.

    Args:
        dataset: name on the hub, or folder; written as a part of the scenario's name, huggingface:NAME.
        config: which of the data set's configurations.
        revision: which version on the hub, so that a run can be repeated; null takes the newest.
    """

    def __init__(
        self, seed: int, *, dataset: str, config: str | None = None, revision: str | None = None, **options: Any
    ) -> None:
        loaded = _load(dataset, config, revision)
        super().__init__(seed, lambda language: _Splits(dataset, loaded), **options)


def _load(name: str, config: str | None, revision: str | None) -> dict[str, Any]:
    """The splits of a data set, by name.

    Raises:
        MissingError: the library, or the data set, is not there.
        UsageError: the library refuses it.
    """
    try:
        import datasets
    except ImportError:
        raise MissingError(
            f"huggingface:{name} needs the library datasets: pip install 'clplat[huggingface]'"
        ) from None
    folder = Path(name).expanduser()
    saved = any((folder / file).is_file() for file in ("dataset_dict.json", "state.json"))
    try:
        if saved:
            found = datasets.load_from_disk(str(folder))
        else:
            found = datasets.load_dataset(str(folder) if folder.is_dir() else name, config, revision=revision)
    except (OSError, ImportError) as error:
        raise MissingError(f"huggingface:{name} could not be loaded: {_said(error)}") from error
    except (ValueError, RuntimeError, TypeError) as error:
        raise UsageError(f"huggingface:{name}: the library refuses: {_said(error)}") from error
    return dict(found) if isinstance(found, dict) else {"train": found}


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


class _Splits:
    """The splits of a loaded data set as tables."""

    holds: Literal["tables", "images", "texts"] = "tables"

    def __init__(self, name: str, splits: dict[str, Any]) -> None:
        if len(splits) == 1:
            splits = {"train": next(iter(splits.values()))}
        self.name = name
        self.splits = {PARTS[split]: rows for split, rows in splits.items() if split in PARTS}
        if "train" not in self.splits:
            raise UsageError(f"huggingface:{name} has no split called train, but {', '.join(splits)}")

    def tables(self, wanted: Options) -> Tables:
        """All parts as pools; of the columns only those that are asked for."""
        named = [*(wanted.inputs or ()), *(wanted.targets or ()), wanted.task, wanted.time]
        only = [name for name in named if name is not None] if wanted.inputs and wanted.targets else None
        return {part: {"": [self._table(part, rows, only)]} for part, rows in self.splits.items()}

    def domains(self) -> list[Domain]:
        """Nothing: texts are columns."""
        return []

    def _table(self, part: str, rows: Any, only: Sequence[str] | None) -> Table:
        from datasets import ClassLabel, Image

        name = f"huggingface:{self.name} ({part})"
        pictures, plain = {}, {}
        for column, feature in rows.features.items():
            if only is not None and column not in only:
                continue
            if isinstance(feature, Image):
                pictures[column] = _pictures(rows.select_columns([column]), column, name)
            elif isinstance(feature, ClassLabel):
                plain[column] = [feature.names[i] if i is not None and i >= 0 else None for i in rows[column][:]]
            else:
                plain[column] = rows[column][:]  # a slice is read at once, an iterator row by row
        return from_values(name, plain).with_columns(pictures)


def _pictures(rows: Any, column: str, name: str) -> Images:
    def opener(i: int) -> Any:
        return lambda: rows[i][column]

    return Images([opener(i) for i in range(len(rows))], [f"{name}: row {i + 1}" for i in range(len(rows))])
