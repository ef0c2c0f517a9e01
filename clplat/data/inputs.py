"""Columns of tables as inputs: which of them, as one array, and on which scale."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from clplat.data.options import Options
from clplat.data.tables import Table, numbers
from clplat.errors import UsageError


def input_columns(table: Table, wanted: Options, targets: Sequence[str]) -> list[str]:
    """Names of the columns that are inputs.

    Raises:
        UsageError: one of them does not exist, is the target, or none is left.
    """
    if wanted.inputs is not None:
        for name in wanted.inputs:
            table.column(name, "inputs")
        if both := [name for name in wanted.inputs if name in targets]:
            raise UsageError(f"scenario.inputs: '{both[0]}' is what is to be predicted")
        return wanted.inputs
    if "" in table.columns:
        raise UsageError(
            f"{table.name}: a column has no name (numbers of rows that pandas wrote?); name those to read by "
            "scenario.inputs, or write the file without it"
        )
    left = [name for name in table.columns if name not in (*targets, wanted.task, wanted.time)]
    if not left:
        raise UsageError(f"{table.name}: no column is left that could be an input")
    return left


def values(table: Table, names: Sequence[str], option: str) -> Tensor:
    """Columns of numbers as one tensor (N, D) in double precision, or the one column of arrays (N, ...).

    Raises:
        UsageError: several columns of which one holds arrays, or something that is no finite number.
    """
    hint = "; scenario.inputs=[...] says which columns to read" if option == "inputs" else ""
    arrays = [numbers(table, name, table.column(name, option), hint) for name in names]
    if len(arrays) == 1 and arrays[0].ndim > 1:
        return torch.from_numpy(arrays[0])
    for name, array in zip(names, arrays, strict=True):
        if array.ndim > 1:
            raise UsageError(
                f"{table.name}: '{name}' holds an array in each row, so it must be the only one of {option}"
            )
    return torch.from_numpy(np.stack(arrays, 1))


@dataclass(frozen=True)
class Scale:
    """What brings numbers to mean 0 and variance 1: a value for each column (of vectors and sequences) or channel (of
    images (C, H, W)). What never varied is only moved."""

    mean: Tensor
    deviation: Tensor

    @classmethod
    def of(cls, x: Tensor) -> Scale:
        """The scale of some samples (N, ...)."""
        kept = 1 if x.ndim == 4 else x.ndim - 1
        others = [d for d in range(x.ndim) if d != kept]
        mean, deviation = x.mean(others, keepdim=True)[0], x.std(others, keepdim=True, correction=0)[0]
        # Rounding leaves a little where all values are the same.
        still = deviation <= 1e-12 * mean.abs().clamp(min=1)
        return cls(mean, deviation.masked_fill(still, 1))

    def __call__(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.deviation
