"""Streams of windows of series, to predict what follows each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from clplat.data.inputs import Scale, input_columns, values
from clplat.data.options import Options
from clplat.data.tables import Table, times
from clplat.data.text import cut
from clplat.errors import UsageError
from clplat.scenario import Scenario, Spec, TensorData, stream


def build(tables: Mapping[str, Mapping[str, list[Table]]], wanted: Options) -> Scenario:
    """A stream of windows x (window, D) with the targets of the next ``horizon`` steps, y (horizon * K,), step by step.

    No window crosses a file, an experience, or the borders between train, valid and test, which lie one behind the
    other in time.

    Args:
        tables: part -> experience -> series, in their order in time.
    """
    first = next(iter(tables["train"].values()))[0]
    names = input_columns(first, wanted, ())
    asked = wanted.targets or names
    columns = [*names, *(name for name in asked if name not in names)]
    # part -> experience -> series (T, columns)
    parts: dict[str, list[list[Tensor]]] = {"train": [], "valid": [], "test": []}
    for experience in tables["train"]:
        own = {part: [_series(t, columns, wanted) for t in every[experience]] for part, every in tables.items()}
        shares = 0.0 if "test" in own else wanted.test, 0.0 if "valid" in own else wanted.validation
        cuts = [cut(series, *shares) for series in own.pop("train")]
        for part, found in parts.items():
            found.append(own.get(part) or [piece[part] for piece in cuts])
    if wanted.standardise:
        scale = Scale.of(torch.cat(parts["train"][0]))
        parts = {part: [[scale(s) for s in own] for own in every] for part, every in parts.items()}
    x_columns, y_columns = [columns.index(n) for n in names], [columns.index(n) for n in asked]
    streams: dict[str, list[TensorData]] = {}
    for part, every in parts.items():
        if part == "valid" and not any(len(s) for own in every for s in own):
            continue
        streams[part] = []
        for e, (experience, pieces) in enumerate(zip(tables["train"], every, strict=True)):
            pairs = [_windows(piece.float(), x_columns, y_columns, wanted) for piece in pieces]
            x, y = (_cat([pair[i] for pair in pairs]) for i in (0, 1))
            if not len(x):
                raise UsageError(
                    f"experience '{experience}': its {part} part has at most {max(map(len, pieces))} steps in a row, "
                    f"and a window with its horizon needs {wanted.window + wanted.horizon}"
                )
            streams[part].append(TensorData(x, y, e if wanted.setting == "task" else 0))
    spec = Spec(
        (wanted.window, len(names)),
        wanted.horizon * len(asked),
        "task" if wanted.setting == "task" else "domain",
        target="value",
        metric="nrmse",
        direction="min",
    )
    made = {part: stream(part, data) for part, data in streams.items()}
    return Scenario(spec, made["train"], made["test"], made.get("valid", ()))


def _series(table: Table, columns: Sequence[str], wanted: Options) -> Tensor:
    """A series (T, columns), in double precision.

    Raises:
        UsageError: two steps have the same time.
    """
    if wanted.time is not None:
        moments = times(table, wanted.time, table.column(wanted.time, "time"))
        same = np.flatnonzero(np.diff(moments) == 0)
        if len(same):
            raise UsageError(
                f"{table.where(int(same[0]) + 1)}: '{wanted.time}' is the same as in {table.where(int(same[0]))}; "
                "several series in a table are told apart by scenario.task"
            )
    found = values(table, columns, "inputs")
    if found.ndim != 2:
        raise UsageError(f"{table.name}: a row of a series should be numbers, one in each column")
    return found


def _windows(
    series_TC: Tensor, x_columns: Sequence[int], y_columns: Sequence[int], wanted: Options
) -> tuple[Tensor, Tensor]:
    """x (N, window, D), a view where it can be, and y (N, horizon * K)."""
    T = len(series_TC)
    if wanted.window + wanted.horizon > T:
        return torch.zeros(0, wanted.window, len(x_columns)), torch.zeros(0, wanted.horizon * len(y_columns))
    x_TD, y_TK = series_TC[: T - wanted.horizon, list(x_columns)], series_TC[wanted.window :, list(y_columns)]
    x_NWD = x_TD.unfold(0, wanted.window, wanted.stride).transpose(1, 2)
    y_NHK = y_TK.unfold(0, wanted.horizon, wanted.stride).transpose(1, 2)
    return x_NWD, y_NHK.flatten(1)


def _cat(pieces: Sequence[Tensor]) -> Tensor:
    some = [piece for piece in pieces if len(piece)]
    return some[0] if len(some) == 1 else torch.cat(some or [pieces[0]])
