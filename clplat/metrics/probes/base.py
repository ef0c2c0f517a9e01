"""What a probe is, and how one is taken without leaving a trace in the run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from clplat.errors import UsageError
from clplat.pairing import given, missing

if TYPE_CHECKING:
    from clplat.learner import Learner
    from clplat.scenario import Scenario

Result = dict[str, Any]
Figure = dict[str, Any]


class Probe:
    """Base class of all probes. Options are keyword-only arguments, as of a strategy.

    Attributes:
        needs: what it cannot do without, in the words of ``Strategy.needs``.
        name: what it was chosen by.
    """

    needs: ClassVar[tuple[str, ...]] = ()
    name: str = ""

    def unfit(self, learner: Learner, scenario: Scenario) -> str | None:
        """Why it cannot be taken of these, and what would fit; None when it can. Asked after ``needs``."""
        return None

    def measure(self, learner: Learner, scenario: Scenario) -> Result:
        """Numbers, texts, arrays and tensors by name; plain numbers on top are what the run's record shows.

        Runs in evaluation form, without gradients, with the weights that the strategy answers with. It changes nothing
        of the learner, calls no collective (other ranks do not take part), and draws from ``learner.generator``.
        """
        raise TypeError(f"{type(self).__name__} does not define measure")

    def figure(self, result: Result) -> Figure:
        """A picture of what :func:`take` gave, as plotly's own JSON; see :mod:`clplat.report.plots`."""
        raise TypeError(f"{type(self).__name__} does not define figure")


def check(probe: Probe, learner: Learner, scenario: Scenario) -> None:
    """Raise :class:`UsageError` where a probe cannot be taken of these."""
    gives = given(scenario.spec, head=learner.head, backbone=learner.backbone)
    problems = missing(probe.name, probe.needs, gives)
    if learner.sharded:
        problems.append(f"{probe.name} needs whole weights: use trainer.sharding=none")
    if not problems and (why := probe.unfit(learner, scenario)):
        problems.append(f"{probe.name} {why}")
    if problems:
        raise UsageError(*problems)


def take(probe: Probe, learner: Learner, scenario: Scenario) -> Result:
    """Check and measure; what comes back is plain (numbers that are not finite are None).

    The weights, the mode and all generators of torch are afterwards what they were.
    """
    check(probe, learner, scenario)
    devices = [learner.ranks.device] if learner.ranks.device.type == "cuda" else []
    with torch.random.fork_rng(devices), learner.evaluating(), learner.deployed():
        found = probe.measure(learner, scenario)
    return {name: plain(value) for name, value in found.items()}


def numbers(result: Mapping[str, Any]) -> dict[str, float | None]:
    """The plain numbers on top of a result."""
    return {
        name: value
        for name, value in result.items()
        if value is None or (isinstance(value, int | float) and not isinstance(value, bool))
    }


def plain(value: Any) -> Any:
    """Only what JSON knows: arrays as lists, what is not finite as None."""
    if isinstance(value, Tensor):
        return plain(value.detach().cpu().tolist())
    if isinstance(value, np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def file_name(name: str, learned: int | None = None) -> Path:
    """Where in a run directory the result of a probe lies.

    Args:
        learned: after so many experiences; None for the newest weights.
    """
    safe = name.replace(":", ".")
    return Path("probes") / (f"{safe}.json" if learned is None else f"{safe}-e{learned:03d}.json")
