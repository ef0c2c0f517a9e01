"""Streams of copy tasks: hear a pattern of bits, then say it, or something made of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from clplat.errors import UsageError
from clplat.metrics.measures import IGNORED
from clplat.randomness import generator
from clplat.scenario import Scenario, Spec, TensorData
from clplat.scenarios.generated import Streams, at_least, streams

DRAWS = 1000  # for each experience, in search of a task that is not there yet


class Copy(Scenario):
    """The Copy Task: repeat a random pattern of bits, a longer one in each experience.

    Graves et al. 2014 (Neural Turing Machines), as a stream in Ehret et al. 2021, Continual learning in recurrent
    neural networks (ICLR), section 5, and the authors' code. A sample is heard in L steps of ``bits`` random bits, then
    comes one step with a stop signal in an input of its own and nothing else; then L steps of zeros in which the
    pattern is asked, bit by bit (binary cross-entropy; the accuracy is that of bits, 0.5 by chance). In experience e
    the length L of each sample is drawn from ``length + e * step`` plus or minus ``spread``. All samples have as many
    steps as the longest needs, zeros behind. Nothing is asked outside of the answer (-100).

    Settings: ``domain``: one head; a solution of a longer task is one of all shorter ones. ``task``: task labels, and a
    head for each.

    The published stream (the defaults of the authors' command) has 7 bits, length 5, step 7, spread 2, and new samples
    in every batch; here they are fixed and drawn by the seed, test samples apart: few patterns meet by chance.

    Args:
        setting: task- or domain-incremental.
        experiences: how many lengths.
        length: steps of a pattern in the first experience, on average.
        step: steps by which patterns grow from one experience to the next.
        spread: how many steps a pattern may be longer or shorter.
        bits: bits in a step.
        samples: training samples in an experience.
        test_samples: test samples in an experience.
    """

    settings = ("domain", "task")

    def __init__(
        self,
        seed: int,
        *,
        setting: Literal["domain", "task"] = "domain",
        experiences: int = 3,
        length: int = 4,
        step: int = 3,
        spread: int = 1,
        bits: int = 7,
        samples: int = 2000,
        test_samples: int = 500,
    ) -> None:
        problems = at_least(1, experiences=experiences, bits=bits, samples=samples, test_samples=test_samples)
        problems += at_least(0, step=step, spread=spread)
        if length <= spread:
            problems.append(f"scenario.length={length}: more than scenario.spread={spread} is needed")
        if problems:
            raise UsageError(*problems)
        longest = length + (experiences - 1) * step + spread

        def make(e: int, name: str, n: int, source: torch.Generator) -> TensorData:
            mean = length + e * step
            long_N = torch.randint(mean - spread, mean + spread + 1, (n,), generator=source)
            pattern = torch.randint(2, (n, longest, bits), generator=source)
            x, y = _copied(pattern, long_N)
            return TensorData(x, y, e if setting == "task" else 0)

        spec = Spec((2 * longest + 1, bits + 1), bits, setting, target="bits")
        super().__init__(spec, *streams(seed, "copy", experiences, samples, test_samples, make))


class PermutedCopy(Scenario):
    """Permuted Copy: repeat a random pattern of bits with its steps in an order that is the task's own.

    Ehret et al. 2021, Continual learning in recurrent neural networks (ICLR), section 5 and appendix, after the Copy
    Task of Graves et al. 2014 (Neural Turing Machines). A sample is heard in ``length`` steps of ``bits`` random bits,
    then ``padding`` steps of zeros, then one step with a stop signal and nothing else; then come ``length`` steps of
    zeros in which the target at step t is the pattern's step ``permutations[e][t]``. So T = 2 * length + padding + 1.
    Nothing is asked before (-100). Bits are asked and counted one by one, as there: the loss is binary cross-entropy,
    the accuracy is that of bits, 0.5 by chance.

    Published settings, from the authors' code: 5 tasks, 7 bits, length p = 5, no padding; Padded Copy (``padded-copy``)
    has i = 25 steps before the stop signal, so padding 20. There a task's order is drawn at random, and two may be the
    same; here no two are (one may be the natural order). The authors draw new samples in every batch; here they are
    ``samples`` fixed ones, drawn by the seed, and test samples are drawn apart: of 2^(length * bits) patterns (3.4e10
    by default) few meet by chance.

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
        problems = _sizes(experiences, length, bits, padding, samples, test_samples)
        # Few numbers have as many orders as one may ask for; factorial of a large one is never needed.
        if not problems and length < 20 and math.factorial(length) < experiences:
            problems.append(
                f"scenario.experiences={experiences}: {length} steps have {math.factorial(length)} different orders; "
                "a larger scenario.length has more"
            )
        if problems:
            raise UsageError(*problems)
        self.permutations = _different_orders(length, experiences, generator(seed, "permuted-copy/orders"))
        spec, train, test = _manipulated(
            seed,
            "permuted-copy",
            setting,
            (experiences, length, bits, padding, samples, test_samples),
            lambda pattern, e: pattern[:, self.permutations[e]],
        )
        super().__init__(spec, train, test)


class PatternXor(Scenario):
    """Pattern Manipulation: say the exclusive or of a pattern of bits with copies of it whose steps are reordered.

    Ehret et al. 2021, Continual learning in recurrent neural networks (ICLR), section 5 and appendix, where it adds
    computation to what must be held. A sample is heard as in :class:`PermutedCopy`; task e has ``xor`` = r fixed orders
    o, and the target is ``pattern ^ pattern[:, o_1] ^ ... ^ pattern[:, o_r]``: a step of it depends on up to r + 1 of
    the steps heard. The accuracy is that of bits, 0.5 by chance.

    Published settings, from the authors' code: 5 tasks, 7 bits, length 5, r = 1 and r = 5, orders over time, each of
    its own. There an order may leave a step where it is, whose target is then 0 in all samples for r = 1; here orders
    are drawn until every target depends on the pattern, and until no two tasks ask for the same.

    Settings: as in :class:`PermutedCopy`.

    Args:
        setting: task- or domain-incremental.
        experiences: how many tasks.
        length: steps of the pattern.
        bits: bits in a step.
        padding: steps of zeros between the pattern and the stop signal.
        xor: r, reordered copies.
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
        xor: int = 1,
        samples: int = 2000,
        test_samples: int = 500,
    ) -> None:
        problems = _sizes(experiences, length, bits, padding, samples, test_samples) + at_least(1, xor=xor)
        if problems:
            raise UsageError(*problems)
        self.orders = _different_sums(length, xor, experiences, generator(seed, "pattern-xor/orders"))
        spec, train, test = _manipulated(
            seed,
            "pattern-xor",
            setting,
            (experiences, length, bits, padding, samples, test_samples),
            lambda pattern, e: (pattern + sum(pattern[:, order] for order in self.orders[e])) % 2,
        )
        super().__init__(spec, train, test)


def _sizes(experiences: int, length: int, bits: int, padding: int, samples: int, test_samples: int) -> list[str]:
    """What is wrong with them."""
    positive = {"experiences": experiences, "length": length, "bits": bits}
    return at_least(1, **positive, samples=samples, test_samples=test_samples) + at_least(0, padding=padding)


def _manipulated(
    seed: int,
    purpose: str,
    setting: Literal["task", "domain"],
    sizes: tuple[int, int, int, int, int, int],
    answer: Callable[[Tensor, int], Tensor],
) -> tuple[Spec, *Streams]:
    """Spec and streams of tasks that differ in what is asked of a pattern.

    Args:
        sizes: experiences, length, bits, padding, samples, test_samples.
        answer: what experience e asks of patterns (n, length, bits).
    """
    experiences, length, bits, padding, samples, test_samples = sizes
    signals = experiences if setting == "domain" else 1
    stop = length + padding

    def make(e: int, name: str, n: int, source: torch.Generator) -> TensorData:
        pattern = torch.randint(2, (n, length, bits), generator=source)
        x = torch.zeros(n, stop + 1 + length, bits + signals)
        x[:, :length, :bits] = pattern.to(x.dtype)
        x[:, stop, bits + (e if setting == "domain" else 0)] = 1
        y = torch.full((n, stop + 1 + length, bits), IGNORED)
        y[:, stop + 1 :] = answer(pattern, e)
        return TensorData(x, y, e if setting == "task" else 0)

    spec = Spec((stop + 1 + length, bits + signals), bits, setting, target="bits")
    return spec, *streams(seed, purpose, experiences, samples, test_samples, make)


def _different_orders(length: int, n: int, source: torch.Generator) -> list[Tensor]:
    """``n`` random orders of ``length`` things, no two alike."""
    found: dict[tuple[int, ...], Tensor] = {}
    while len(found) < n:
        order = torch.randperm(length, generator=source)
        found.setdefault(tuple(order.tolist()), order)
    return list(found.values())


def _different_sums(length: int, xor: int, n: int, source: torch.Generator) -> list[Tensor]:
    """For each of ``n`` tasks ``xor`` orders (xor, length), such that no two tasks are alike and none has a step whose
    answer is always 0."""
    found: dict[bytes, Tensor] = {}
    for _ in range(DRAWS * n):
        orders = torch.stack([torch.randperm(length, generator=source) for _ in range(xor)])
        uses = torch.eye(length, dtype=torch.long)  # row t: how often the answer at t uses each step
        uses = (uses + sum(torch.eye(length, dtype=torch.long)[order] for order in orders)) % 2
        if uses.any(1).all():
            found.setdefault(uses.numpy().tobytes(), orders)
        if len(found) == n:
            return list(found.values())
    raise UsageError(
        f"scenario.experiences={n}: {len(found)} different tasks were found with {length} steps and {xor} reordered "
        "copies; a larger scenario.length has more"
    )


def _copied(pattern: Tensor, long_N: Tensor) -> tuple[Tensor, Tensor]:
    """x (n, T, bits + 1), floats, and y (n, T, bits) for patterns (n, longest, bits) of which ``long`` steps count."""
    n, longest, bits = pattern.shape
    step_T = torch.arange(2 * longest + 1)
    said_NT = step_T - long_N[:, None] - 1  # which step of the pattern is said
    x = torch.zeros(n, 2 * longest + 1, bits + 1)
    x[:, :longest, :bits] = pattern * (step_T[:longest] < long_N[:, None])[..., None]
    x[torch.arange(n), long_N, bits] = 1
    asked_NT = (said_NT >= 0) & (said_NT < long_N[:, None])
    answer = pattern.gather(1, said_NT.clamp(0, longest - 1)[..., None].expand(-1, -1, bits))
    return x, torch.where(asked_NT[..., None], answer, IGNORED)
