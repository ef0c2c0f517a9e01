"""How far predicted values and series are off, from stored answers: by step, by channel and altogether.

All look at the evaluation after the last train experience and are means over the test experiences seen by then. A
channel is one of the K values of a step; targets without steps are one step. What was not asked (NaN) counts nowhere.
"""

from __future__ import annotations

import numpy as np

from clplat.metrics import matrix
from clplat.metrics.evidence import Evidence, NotMeasuredError, mean


def _sums(run: Evidence, *names: str) -> list[list[np.ndarray]]:
    """For each test experience seen the sums of some columns over its samples, in double precision.

    Raises:
        NotMeasuredError: nothing was seen, or the columns are not there, as in runs with other targets.
    """
    if not run.seen:
        raise NotMeasuredError(matrix.NONE)
    found = []
    for j in run.seen:
        *columns, _ = run.known().column(run.n - 1, j, *names)  # columns of fractions are stored sample by sample
        found.append([column.sum(0, dtype=np.float64) for column in columns])
    return found


def _mean(values: list[np.ndarray]) -> list[float | None]:
    """The mean over experiences of each entry; None where it is not defined in one of them."""
    whole = np.mean(values, 0)
    return [float(value) if np.isfinite(value) else None for value in whole]


def mean_absolute_error(run: Evidence) -> float:
    """MAE: the mean of ``|y' - y|`` over asked values, its mean over the experiences seen."""
    values = [float(absolute / asked) for absolute, asked in _sums(run, "absolute", "asked") if asked]
    return mean(values, "nothing is asked in any experience seen")


def rmse_by_step(run: Evidence) -> list[float | None]:
    """``sqrt(mean (y' - y)^2)`` at each step, over samples and channels, its mean over the experiences seen; None at
    steps at which nothing is asked."""
    with np.errstate(invalid="ignore"):
        return _mean([np.sqrt(error / asked) for error, asked in _sums(run, "step_error", "step_asked")])


def r2_by_channel(run: Evidence) -> list[float | None]:
    """Coefficient of determination ``1 - sum (y' - y)^2 / sum (y - mean y)^2`` of each channel, over samples and steps,
    its mean over the experiences seen: 1 is perfect, 0 what their mean would get, and 1 - nrmse^2. None for channels
    that do not vary."""
    names = ("channel_error", "channel_asked", "channel_total", "channel_squares")
    with np.errstate(invalid="ignore", divide="ignore"):
        return _mean(
            [
                1 - error / np.where(varies > 1e-12 * squares, varies, np.nan)
                for error, asked, total, squares in _sums(run, *names)
                for varies in [squares - total**2 / asked]
            ]
        )
