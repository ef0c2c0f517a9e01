"""How long units remember: exponentials through their autocorrelation."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from clplat.backbones.base import map_state
from clplat.errors import UsageError
from clplat.metrics.probes.base import Figure, Probe, Result
from clplat.metrics.probes.sampling import draw_tests
from clplat.report import plots

if TYPE_CHECKING:
    from clplat.learner import Learner
    from clplat.scenario import Scenario

Array = NDArray[np.float64]
CHUNK = 1000  # steps that are run at once


def autocorrelation(x_TU: Array, lags: int) -> Array:
    """Of each unit at lags 0 to ``lags``, (lags + 1, U), by FFT: the mean over the pairs of steps that there are, of
    deviations from the mean, over the variance. NaN for units that do not vary."""
    T = len(x_TU)
    x_TU = x_TU - x_TU.mean(0)
    spectrum = np.fft.rfft(x_TU, 2 * T, axis=0)
    products = np.fft.irfft(np.abs(spectrum) ** 2, 2 * T, axis=0)[: lags + 1]
    mean = products / (T - np.arange(lags + 1))[:, None]
    with np.errstate(invalid="ignore", divide="ignore"):
        found: Array = np.where(mean[0] > 1e-20, mean / mean[0], np.nan)
    return found


def single(t: Array, a: float, tau: float) -> Array:
    """``a exp(-t / tau)``."""
    found: Array = a * np.exp(-t / tau)
    return found


def double(t: Array, c: float, tau_1: float, tau_2: float) -> Array:
    """``c exp(-t / tau_1) + (1 - c) exp(-t / tau_2)``."""
    found: Array = c * np.exp(-t / tau_1) + (1 - c) * np.exp(-t / tau_2)
    return found


def fitted(function: Callable[..., Array], correlation: Array) -> Array | None:
    """The parameters of :func:`single` or :func:`double` by least squares on lags 0 to the last; None where the search
    does not end."""
    from scipy.optimize import OptimizeWarning, curve_fit

    n, longest = len(correlation), 100.0 * len(correlation)
    start, low, high = (
        ((1.0, 3.0), (0.0, 1e-2), (2.0, longest))
        if function is single
        else ((0.5, n / 3, 1.0), (0.0, 1e-2, 1e-2), (1.0, longest, longest))
    )
    lags = np.arange(n, dtype=np.float64)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", OptimizeWarning)
            values, _ = curve_fit(function, lags, correlation, p0=start, bounds=(low, high), max_nfev=2000)
    except RuntimeError:
        return None
    return np.asarray(values)


def timescale(x_T: Array, lags: int, parts: int = 4) -> tuple[float, bool]:
    """The slowest timescale of a unit in steps, and whether two exponentials are behind it rather than one.

    Two are taken where they halve the squared error of one in predicting the autocorrelation of a part of the run from
    that of the other parts, summed over the parts. An information criterion on the lags of one run, as the authors use,
    takes the errors of neighbouring lags, which go together, for evidence: of AR(1) processes with a timescale of 10
    and 20000 steps it finds two exponentials in 13 of 20, the slower one anywhere from 9 to beyond 1000.

    (nan, False) where the unit does not vary, or nothing can be fitted.
    """
    whole = autocorrelation(x_T[:, None], lags)[:, 0]
    folds = np.stack([autocorrelation(part[:, None], lags)[:, 0] for part in np.array_split(x_T, parts)])
    if not (np.isfinite(whole).all() and np.isfinite(folds).all()):
        return float("nan"), False
    one, two = fitted(single, whole), fitted(double, whole)
    if one is None:
        return float("nan"), False
    error: dict[Callable[..., Array], float] = {single: 0.0, double: 0.0}
    for k in range(parts):
        others = np.delete(folds, k, 0).mean(0)
        for function in error:
            values = fitted(function, others)
            guess = np.inf if values is None else function(np.arange(lags + 1.0), *values)
            error[function] += float(np.square(guess - folds[k]).sum())
    if two is None or error[double] > 0.5 * error[single]:
        return float(one[1]), False
    return float(two[1:].max()), True


class Timescales(Probe):
    """Timescales of the network's outputs when it is driven by noise (Khajehabdollahi et al. 2023, arXiv 2309.12927,
    and the authors' code).

    Random steps of the test samples, drawn one by one without any order, run through the network; after ``burn_in``
    steps the autocorrelation of each unit of its output is fitted by one exponential and by two, see
    :func:`timescale` (which chooses otherwise than the authors, and says why), and the slower one is the unit's
    timescale in steps. There the units are those of
    a leaky network driven by random bits; here they are what the head sees, and the steps are the stream's own, so that
    any network with a state of fixed size can be asked. Units that do not vary are left out.

    What units do without memory: their autocorrelation is 1 at lag 0 and 0 after it, a timescale far below 1.

    Args:
        steps: that are run, after the burn-in.
        burn_in: steps before.
        max_lag: largest lag that is fitted.
        units: how many units are asked, evenly spread; 0 for all.
    """

    needs = ()

    def __init__(self, *, steps: int = 20_000, burn_in: int = 500, max_lag: int = 30, units: int = 32) -> None:
        problems = []
        if max_lag < 4 or steps < 40 * max_lag:
            problems.append(f"timescales: max_lag={max_lag} must be 4 or more, and steps={steps} 40 times that")
        if burn_in < 0 or units < 0:
            problems.append(f"timescales: burn_in={burn_in} and units={units} must not be negative")
        if problems:
            raise UsageError(*problems)
        self.steps, self.burn_in, self.max_lag, self.units = steps, burn_in, max_lag, units

    def unfit(self, learner: Learner, scenario: Scenario) -> str | None:
        backbone = learner.backbone
        if backbone.sequential and backbone.state_size(2) == backbone.state_size(3) > 0:
            return None
        return "needs a backbone with a state of fixed size: choose a recurrent one, e.g. --backbone gru or leaky-rnn"

    def measure(self, learner: Learner, scenario: Scenario) -> Result:
        outputs_TU = self._drive(learner, scenario)
        if self.units and outputs_TU.shape[1] > self.units:
            chosen = np.linspace(0, outputs_TU.shape[1] - 1, self.units).round().astype(int)
            outputs_TU = outputs_TU[:, chosen]
        correlations = autocorrelation(outputs_TU, self.max_lag)
        fits = [timescale(unit, self.max_lag) for unit in outputs_TU.T]
        taus = np.array([tau for tau, _ in fits])
        varying = taus[np.isfinite(taus)]
        empty = len(varying) == 0
        return {
            "mean": float("nan") if empty else float(varying.mean()),
            "median": float("nan") if empty else float(np.median(varying)),
            "slowest": float("nan") if empty else float(varying.max()),
            "double": sum(two for _, two in fits) / len(fits),
            "silent": int(np.isnan(correlations).any(0).sum()),
            "timescales": taus,
            "autocorrelation": np.nan_to_num(correlations).mean(1),
        }

    def _drive(self, learner: Learner, scenario: Scenario) -> Array:
        """Outputs (steps, units) of the network on steps without an order."""
        data = draw_tests(learner, scenario, 512, "probe/timescales/samples")
        pool_PD = learner.encoder(data.x).flatten(0, 1)
        state, parts, done = None, [], 0
        while done < self.burn_in + self.steps:
            n = min(CHUNK, self.burn_in + self.steps - done)
            source = learner.generator("probe/timescales", done)
            index = torch.randint(len(pool_PD), (n,), generator=source).to(pool_PD.device)
            y_BTD, state = learner.backbone(pool_PD[index][None], state)
            state = map_state(torch.Tensor.detach, state)
            parts.append(y_BTD[0].double().cpu())
            done += n
        found: Array = torch.cat(parts)[self.burn_in :].numpy()
        return found

    def figure(self, result: Result) -> Figure:
        lags = list(range(len(result["autocorrelation"])))
        curves = {"mean over units": (lags, result["autocorrelation"])}
        said = "not defined" if result["mean"] is None else f"{result['mean']:.2f} steps"
        return plots.lines(f"Autocorrelation; mean timescale {said}", "lag in steps", "autocorrelation", curves)
