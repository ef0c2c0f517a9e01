"""Digits as a natural environment brings them back: ever more rarely, as a power of the time since they were seen."""

from __future__ import annotations

from typing import Literal

from clplat import recurrence, wrappers
from clplat.errors import UsageError
from clplat.scenario import Scenario
from clplat.scenarios.digits import PermutedDigits, SplitDigits


class Naturalistic(Scenario):
    """Tasks that return with a chance that falls as a power of the time since they were last seen.

    Gandhi, Shah, Marupudi and Varma 2024, Natural Mitigation of Catastrophic Interference: Continual Learning in
    Power-Law Learning Environments (arXiv 2401.10393), after Anderson and Schooler 1991, Reflections of the Environment
    in Memory. They mix samples of old tasks into the training of each new one, which here is ``--strategy
    power-law-rehearsal``; this is the environment itself as a stream. An experience is a visit to one task. Tasks are
    introduced in order; between the introductions one of those seen so far comes back: with lag l, the visits since it
    was last seen, in proportion to ``(offset + l)^-exponent`` (power), ``exp(-l / decay)`` (exponential) or 1
    (uniform). Under none the newest task stays until the next one comes. Each sample is shown at one visit, so that the
    environments differ in the order of the same samples and in nothing else.

    Each visit is tested on all of its task's test samples: R has a row for each visit and a column for each task. ACC
    is the mean over tasks at the end, 0.1 by chance (one in a task's classes with task labels). The exponent is
    assumed: Anderson and Schooler find a power law in several environments, with different exponents.

    Args:
        experiences: visits in all.
        tasks: how many there are; of fewer experiences than tasks only the first are met.
        setting: domain: ten digits, their pixels in a new order in each task (permuted-digits); class or task: a few
            classes in each task (split-digits).
        environment: how the chance falls.
        exponent: of the power.
        offset: visits added to the lag under the power.
        decay: visits in which the exponential falls to 1/e.
        introduction: when tasks are seen first: spread evenly over the visits, or all of them first.
        test: share of the samples of each class that is kept for testing.
        validation: share that is kept for the validation stream.
    """

    def __init__(
        self,
        seed: int,
        *,
        experiences: int = 40,
        tasks: int = 5,
        setting: Literal["domain", "class", "task"] = "domain",
        environment: Literal["power", "exponential", "uniform", "none"] = "power",
        exponent: float = 1.0,
        offset: float = 0.0,
        decay: float = 1.0,
        introduction: Literal["spread", "first"] = "spread",
        test: float = 0.2,
        validation: float = 0.0,
    ) -> None:
        problems = [
            f"scenario.{name}={value}: {needed}"
            for name, value, good, needed in (
                ("experiences", experiences, experiences >= 1, "at least one is needed"),
                ("tasks", tasks, tasks >= 1, "at least one is needed"),
                ("exponent", exponent, exponent >= 0, "must not be negative"),
                ("offset", offset, offset >= 0, "must not be negative"),
                ("decay", decay, decay >= 0.01, "at least 0.01 is needed"),
            )
            if not good
        ]
        if problems:
            raise UsageError(*problems)
        met = min(tasks, experiences)
        if setting == "domain":
            base: Scenario = PermutedDigits(seed, experiences=met, test=test, validation=validation)
        else:
            base = SplitDigits(seed, setting=setting, experiences=tasks, test=test, validation=validation)
        law = {"exponent": exponent, "offset": offset, "decay": decay}
        self.visits = recurrence.visits(met, experiences, environment, seed, introduce=introduction, **law)
        built = wrappers.recurring(base, seed, self.visits, "split")
        super().__init__(built.spec, built.train_stream, built.test_stream[:met], built.valid_stream[:met], built.tests)
