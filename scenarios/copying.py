"""Streams of copy tasks: hear a pattern of bits, then say it."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from clplat.errors import UsageError
from clplat.metrics.measures import IGNORED
from clplat.randomness import generator
from clplat.scenario import Scenario, Spec, TensorData, stream


class PermutedCopy(Scenario):
    """Permuted Copy: repeat a random pattern of bits with its steps in an order that is the task's own.

    Ehret et al. 2021, Continual learning in recurrent neural networks (ICLR), section 5 and appendix, after the Copy
    Task of Graves et al. 2014 (Neural Turing Machines). A sample is heard in ``length`` steps of ``bits`` random bits,
    then ``padding`` steps of zeros, then one step with a stop signal and nothing else; then come ``length`` steps of
    zeros in which the target at step t is the pattern's step ``permutations[e][t]``. So T = 2 * length + padding + 1.
    Nothing is asked before (-100). Bits are asked and counted one by one, as there: the loss is binary cross-entropy,
    the accuracy is that of bits, 0.5 by chance.

    Assumed here, not taken from the paper: the stop signal has an input of its own; every task has a random order, also
    the first, and no two tasks share one (one may be the natural order); 7 bits a step by default. The paper draws new
    samples in every batch; here they are ``samples`` fixed ones, drawn by the seed, and test samples are drawn apart:
    of 2^(length * bits) patterns (3.4e10 by default) few meet by chance.

    Settings: ``task``: the task label is given, and each task has its own head. ``domain``: no task label and one head.
    Then the same sample would demand different answers, so each task has a stop signal of its own: an input for each,
    and the signal says which order is wanted.

    Args:
        setting: task- or domain-incremental.
        experiences: how many permutations.
        length: steps of the pattern, p in the paper.
        bits: bits in a step.
        padding: steps of zeros between the pattern and the stop signal (i - p in the paper's Padded Copy).
        samples: training samples in an experience.
        test_samples: test samples in an experience.
    """

    settings = ("task", "domain")

    def __init__(
        self,
        seed: int,
        *,
        setting: Literal["task", "domain"] = "task",
        experiences: int = 5,
        length: int = 5,
        bits: int = 7,
        padding: int = 0,
        samples: int = 2000,
        test_samples: int = 500,
    ) -> None:
        least = {"experiences": 1, "length": 1, "bits": 1, "padding": 0, "samples": 1, "test_samples": 1}
        given = (experiences, length, bits, padding, samples, test_samples)
        problems = [
            f"scenario.{name}={value}: at least {low} is needed"
            for (name, low), value in zip(least.items(), given, strict=True)
            if value < low
        ]
        # Few numbers have as many orders as one may ask for; factorial of a large one is never needed.
        if not problems and length < 20 and math.factorial(length) < experiences:
            problems.append(
                f"scenario.experiences={experiences}: {length} steps have {math.factorial(length)} different orders; "
                "a larger scenario.length has more"
            )
        if problems:
            raise UsageError(*problems)
        self.permutations = _different_orders(length, experiences, generator(seed, "permuted-copy/orders"))
        signals = experiences if setting == "domain" else 1
        parts: dict[str, list[TensorData]] = {"train": [], "test": []}
        for e, order in enumerate(self.permutations):
            for name, n in (("train", samples), ("test", test_samples)):
                source = generator(seed, f"permuted-copy/{name}", e)
                pattern = torch.randint(2, (n, length, bits), generator=source)
                x, y = _sample(pattern, order, padding, signals, e if setting == "domain" else 0)
                parts[name].append(TensorData(x, y, e if setting == "task" else 0))
        spec = Spec((2 * length + padding + 1, bits + signals), bits, setting, target="bits")
        super().__init__(spec, stream("train", parts["train"]), stream("test", parts["test"]))


def _different_orders(length: int, n: int, source: torch.Generator) -> list[Tensor]:
    """``n`` random orders of ``length`` things, no two alike."""
    found: dict[tuple[int, ...], Tensor] = {}
    while len(found) < n:
        order = torch.randperm(length, generator=source)
        found.setdefault(tuple(order.tolist()), order)
    return list(found.values())


def _sample(pattern: Tensor, order: Tensor, padding: int, signals: int, signal: int) -> tuple[Tensor, Tensor]:
    """x (n, T, bits + signals), floats, and y (n, T, bits) for patterns (n, length, bits)."""
    n, length, bits = pattern.shape
    stop = length + padding
    x = torch.zeros(n, stop + 1 + length, bits + signals)
    x[:, :length, :bits] = pattern.to(x.dtype)
    x[:, stop, bits + signal] = 1
    y = torch.full((n, stop + 1 + length, bits), IGNORED)
    y[:, stop + 1 :] = pattern[:, order]
    return x, y
