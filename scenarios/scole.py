"""Hundreds to thousands of short tasks whose classes come back (SCoLe)."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from clplat.arrange import pools
from clplat.errors import UsageError
from clplat.randomness import generator
from clplat.scenario import LazyStream, Scenario, Spec, TensorData, stream
from clplat.scenarios.digits import images_and_labels

MOST_COMBINATIONS = 100_000


class SCoLe(Scenario):
    """SCoLe on the digits: each task shows a few of the ten classes, and all come back again and again.

    Lesort et al. 2023, Challenging Common Assumptions about Catastrophic Forgetting and Knowledge Accumulation (CoLLAs,
    arXiv 2207.04543), and its authors' code (TLESORT/SCoLe-SCaling-Continual-Learning), there with MNIST and other
    images. An experience is a task: ``classes`` different classes and their samples; one head for all classes, no task
    label. What changes is which classes are there. Every experience is tested on one test experience over all classes,
    so the matrix R has one column: against the number of tasks it shows whether knowledge accumulates, though most of
    it is forgotten at first (:mod:`clplat.metrics.accumulation`). Chance is a tenth; a network that knows its last task
    only is right in ``classes`` of ten cases. The authors train each task for one epoch with batches of 64 and keep the
    optimiser over the whole stream: ``trainer.max_epochs=1 optimizer.keep_state=true``; their remedies are
    ``--strategy group-masking`` and ``--strategy frequency-replay``.

    Which classes a task has:

    - uniform: all are equally likely, without replacement;
    - zipf: class of rank r is drawn with weight ``r^-exponent``, without replacement, ranks by the seed. (The authors'
      weights fall linearly and are raised to a power; a zipf tail is what this field means elsewhere);
    - cyclic: all combinations in an order drawn by the seed, round and round;
    - randomized-order: the same, but each class is replaced at random with probability ``replace`` by another that is
      not in the task;
    - couples: a share ``fraction`` of all combinations, drawn by the seed, is ever used, each equally likely.

    When classes occur (with uniform and zipf): in ``one`` period throughout; in two periods, the first half of the
    classes (0 to 4) in the first half of the tasks and only the others in the second (``incremental``: all that is new
    comes late, and nothing old comes back); or all in the first half of the tasks and only the first half of the
    classes in the second (``forgetting``: what becomes of the others?). ``reduction`` divides the weight of a task's
    classes after each visit, so that what was seen often grows rare.

    Args:
        experiences: how many tasks.
        classes: in a task.
        occurrence: which classes a task has.
        exponent: of zipf.
        replace: of randomized-order.
        fraction: of couples.
        periods: when classes occur.
        reduction: what the weight of a class is divided by after each visit; 1 leaves it.
        samples: training samples in a task, of each class alike up to one, drawn anew each time; null: all there are.
        test: share of the samples of each class that is kept for testing.
        validation: share that is kept for the validation stream.
    """

    settings = ("class",)

    def __init__(
        self,
        seed: int,
        *,
        experiences: int = 300,
        classes: int = 2,
        occurrence: Literal["uniform", "zipf", "cyclic", "randomized-order", "couples"] = "uniform",
        exponent: float = 1.0,
        replace: float = 0.1,
        fraction: float = 0.5,
        periods: Literal["one", "incremental", "forgetting"] = "one",
        reduction: float = 1.0,
        samples: int | None = 64,
        test: float = 0.2,
        validation: float = 0.0,
    ) -> None:
        parts = pools(TensorData(*images_and_labels()), seed, "digits/split", test=test, validation=validation)
        data = parts["train"]
        own = [torch.nonzero(data.y == c).squeeze(1) for c in range(10)]
        problems = [
            f"scenario.{name}={value}: {needed}"
            for name, value, good, needed in (
                ("experiences", experiences, experiences >= 1, "at least one is needed"),
                ("classes", classes, 1 <= classes <= 10, "1 to 10 are there"),
                ("exponent", exponent, exponent >= 0, "must not be negative"),
                ("replace", replace, 0 <= replace <= 1, "a probability is needed"),
                ("fraction", fraction, 0 < fraction <= 1, "a share above 0 and up to 1 is needed"),
                ("reduction", reduction, reduction >= 1, "at least 1 is needed"),
                ("periods", periods, periods == "one" or classes <= 5, "five classes are there in a period"),
                ("periods", periods, periods == "one" or experiences > 1, "two periods need two tasks"),
            )
            if not good
        ]
        if (periods != "one" or reduction != 1) and occurrence not in ("uniform", "zipf"):
            problems.append(
                f"scenario.occurrence={occurrence}: periods and a reduction are for uniform and zipf, which draw each "
                "task by itself"
            )
        most = classes * min(map(len, own))
        if samples is not None and not classes <= samples <= most:
            problems.append(f"scenario.samples={samples}: {classes} classes have {classes} to {most}")
        if problems:
            raise UsageError(*problems)
        self.classes_of_tasks = occurrences(
            10,
            classes,
            experiences,
            occurrence,
            seed,
            exponent=exponent,
            replace=replace,
            fraction=fraction,
            periods=periods,
            reduction=reduction,
        )

        def make(e: int) -> TensorData:
            rows = []
            for number, c in enumerate(self.classes_of_tasks[e].tolist()):
                n = len(own[c]) if samples is None else samples // classes + (number < samples % classes)
                rows.append(own[c][torch.randperm(len(own[c]), generator=generator(seed, "scole/samples", e, c))[:n]])
            return data.subset(torch.cat(rows))

        super().__init__(
            Spec((1, 8, 8), 10, "class"),
            LazyStream("train", make, [0] * experiences),
            stream("test", [parts["test"]]),
            stream("valid", [parts["valid"]]) if validation else (),
            tests=(0,) * experiences,
        )


def occurrences(
    total: int,
    each: int,
    n: int,
    law: Literal["uniform", "zipf", "cyclic", "randomized-order", "couples"],
    seed: int,
    *,
    exponent: float = 1.0,
    replace: float = 0.1,
    fraction: float = 0.5,
    periods: Literal["one", "incremental", "forgetting"] = "one",
    reduction: float = 1.0,
) -> Tensor:
    """The classes of n tasks (n, each), all of a task different and in increasing order; see :class:`SCoLe`.

    Args:
        total, each: classes in all, and in a task.

    Raises:
        UsageError: there are too many combinations to list, or those chosen leave a class out.
    """
    source = generator(seed, "scole/classes")
    if law in ("uniform", "zipf"):
        rank_C = 1 + torch.randperm(total, generator=generator(seed, "scole/ranks"))
        # The largest of log-weight + Gumbel noise are a draw without replacement, one after another by weight.
        gumbel_NC = -torch.rand((n, total), generator=source, dtype=torch.float64).clamp(min=1e-300).log().neg().log()
        weight_C = -exponent * rank_C.double().log() if law == "zipf" else torch.zeros(total, dtype=torch.float64)
        key_NC = (weight_C + gumbel_NC).masked_fill(~_there(n, total, periods), -torch.inf)
        if reduction == 1:
            return key_NC.topk(each, 1).indices.sort(1).values
        drawn = []
        visits_C = torch.zeros(total, dtype=torch.float64)
        for key_C in key_NC:
            drawn.append((key_C - visits_C * math.log(reduction)).topk(each).indices.sort().values)
            visits_C[drawn[-1]] += 1
        return torch.stack(drawn)
    if math.comb(total, each) > MOST_COMBINATIONS:
        raise UsageError(
            f"scenario.occurrence={law}: {total} classes have too many combinations of {each}; use uniform"
        )
    all_KE = torch.combinations(torch.arange(total), each)
    all_KE = all_KE[torch.randperm(len(all_KE), generator=generator(seed, "scole/order"))]
    if law == "couples":
        used_KE = all_KE[: max(1, round(fraction * len(all_KE)))]
        if missing := sorted(set(range(total)) - set(used_KE.flatten().tolist())):
            raise UsageError(f"scenario.fraction={fraction}: the classes {missing} would be in no task; use more")
        return used_KE[torch.randint(len(used_KE), (n,), generator=source)]
    chosen_NE = all_KE[torch.arange(n) % len(all_KE)]
    if law == "randomized-order" and each < total:
        for position in range(each):
            draw_NC = torch.rand((n, total), generator=source).scatter(1, chosen_NE, -1)
            swap_N = torch.rand(n, generator=source) < replace
            chosen_NE[swap_N, position] = draw_NC.argmax(1)[swap_N]
    return chosen_NE.sort(1).values


def _there(n: int, total: int, periods: Literal["one", "incremental", "forgetting"]) -> Tensor:
    """Which classes may occur in each task, (n, total)."""
    late_N1, first_C = torch.arange(n)[:, None] >= n / 2, torch.arange(total) < total // 2
    if periods == "incremental":
        return first_C != late_N1
    return first_C | ~late_N1 if periods == "forgetting" else torch.ones(n, total, dtype=torch.bool)
