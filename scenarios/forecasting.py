"""What streams of real-valued paths share: the next values of a sequence are asked for at each of its steps, and what
makes it go on (its regime) changes from experience to experience."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from clplat.errors import UsageError
from clplat.randomness import generator
from clplat.scenario import Scenario, Setting, Spec, TensorData, stream

# Paths (n, steps, D) of a regime, from its number, how many, of how many steps, and a source of randomness.
Simulate = Callable[[int, int, int, torch.Generator], Tensor]


@dataclass(frozen=True, kw_only=True)
class Cut:
    """How many samples there are and how they are cut from paths.

    A sample has ``length`` steps; the target at step t is what the path does at step t + ``horizon``. Samples are paths
    of their own, begun independently, or with ``contiguous`` windows of one path for each experience and stream, one
    after another. Train and test never share a path.
    """

    experiences: int
    regimes: int | None
    length: int
    horizon: int
    samples: int
    test_samples: int
    contiguous: bool

    @property
    def different(self) -> int:
        """How many regimes there are. Experience e has regime e modulo this."""
        return self.experiences if self.regimes is None else self.regimes

    def problems(self) -> list[str]:
        """What is wrong with the numbers."""
        names = ("experiences", "length", "horizon", "samples", "test_samples")
        found = [
            f"scenario.{name}={getattr(self, name)}: at least 1 is needed" for name in names if getattr(self, name) < 1
        ]
        if self.regimes is not None and not 1 <= self.regimes <= self.experiences:
            found.append(
                f"scenario.regimes={self.regimes}: from 1 to scenario.experiences={self.experiences} regimes can come"
            )
        return found

    def paths(self, n: int) -> tuple[int, int]:
        """How many paths of how many steps hold ``n`` samples."""
        return (1, n * self.length + self.horizon) if self.contiguous else (n, self.length + self.horizon)

    def windows(self, path_NSD: Tensor) -> tuple[Tensor, Tensor]:
        """x and y, (samples, length, D) each, cut from paths (N, S, D)."""
        size = path_NSD.shape[-1]
        return (
            path_NSD[:, : -self.horizon].reshape(-1, self.length, size),
            path_NSD[:, self.horizon :].reshape(-1, self.length, size),
        )


def evenly(first: float, last: float, n: int) -> tuple[float, ...]:
    """``n`` numbers from ``first`` to ``last``, evenly spaced."""
    return tuple(torch.linspace(first, last, n, dtype=torch.float64).tolist())


class Forecasting(Scenario):
    """Streams that are made by simulating each experience's regime.

    All values are standardised, one by one, by mean and deviation over the training paths of the first experience,
    which are kept in ``mean_D`` and ``deviation_D``.

    Args:
        seed: the run's.
        name: what the randomness is named by.
        cut: numbers of samples and steps.
        simulate: gives paths of a regime.
        setting: task- or domain-incremental; the task is the regime.
    """

    settings = ("task", "domain")

    def __init__(self, seed: int, name: str, cut: Cut, simulate: Simulate, setting: Setting) -> None:
        self.cut, self.simulate = cut, simulate
        visits = [e % cut.different for e in range(cut.experiences)]
        paths: dict[str, list[tuple[int, Tensor]]] = {"train": [], "test": []}
        for e, regime in enumerate(visits):
            paths["train"].append(
                (regime, simulate(regime, *cut.paths(cut.samples), generator(seed, f"{name}/train", e)))
            )
        for regime in range(cut.different):
            paths["test"].append(
                (regime, simulate(regime, *cut.paths(cut.test_samples), generator(seed, f"{name}/test", regime)))
            )
        first_NSD = paths["train"][0][1]
        self.mean_D = first_NSD.mean((0, 1))
        self.deviation_D = first_NSD.std((0, 1), correction=0)
        data = {
            name: [
                TensorData(*self.windows(path_NSD), regime if setting == "task" else 0) for regime, path_NSD in parts
            ]
            for name, parts in paths.items()
        }
        x_NTD, y_NTK, _ = data["train"][0].rows(slice(0, 1))
        spec = Spec(
            tuple(x_NTD.shape[1:]), y_NTK.shape[-1], setting, target="series", metric="nrmse", direction="min",
            contiguous=cut.contiguous,
        )  # fmt: skip
        super().__init__(
            spec,
            stream("train", data["train"]),
            stream("test", data["test"]),
            tests=tuple(visits) if cut.different < cut.experiences else (),
        )

    def standardised(self, path: Tensor) -> Tensor:
        """Values (..., D) of a path as the samples hold them."""
        return ((path - self.mean_D) / self.deviation_D).float()

    def windows(self, path_NSD: Tensor) -> tuple[Tensor, Tensor]:
        """x (samples, length, D) and y (samples, length, K) from paths of one experience."""
        return self.cut.windows(self.standardised(path_NSD))


def refuse(problems: list[str]) -> None:
    """Name all problems at once, if there are any."""
    if problems:
        raise UsageError(*problems)
