"""The adding problem: two numbers of a long sequence are marked, and their sum is asked at its end."""

from __future__ import annotations

from typing import Literal

import torch

from clplat.errors import UsageError
from clplat.scenario import Scenario, Spec, TensorData
from clplat.scenarios.generated import at_least, share, streams


class Adding(Scenario):
    """The adding problem (Hochreiter and Schmidhuber 1997, Long short-term memory, experiment 4).

    A step is a random number and a marker; two numbers are marked, and what is asked at the end of the sequence depends
    on these two (target ``value``, measured by the mean squared error). Two forms:

    - unit (Le et al. 2015, arXiv 1504.00941, and most work since): numbers from [0, 1), marker 1 at one step of each
      half, else 0; the target is the sum. Who always says 1 has an error of 1/6 = 0.167.
    - original: numbers from [-1, 1], marker -1 at the first and the last step, 1 at two others, else 0: one of the
      first ten steps, and one of the first T/2 - 1 that are not marked yet. The target is ``0.5 + (X1 + X2) / 4``; the
      number of the first step counts as zero if that is marked. Who always says 0.5 has an error of about 1/24 = 0.042;
      there a sequence counts as processed correctly where the answer is wrong by less than 0.04, and T is drawn from
      [T, 1.1 T] (here it is fixed within an experience).

    As a stream (domain-incremental) the experiences are

    - same: alike, with fresh sequences;
    - length: over more and more steps, up to T in the last, zeros in front;
    - marker: each with an input of its own for the marker, the others being 0.

    Args:
        experiences: how many.
        stream: how they differ.
        form: unit or original.
        length: T, steps in a sequence.
        samples: training sequences in an experience.
        test_samples: test sequences in an experience.
    """

    def __init__(
        self,
        seed: int,
        *,
        experiences: int = 3,
        stream: Literal["same", "length", "marker"] = "length",
        form: Literal["unit", "original"] = "unit",
        length: int = 30,
        samples: int = 2000,
        test_samples: int = 500,
    ) -> None:
        problems = at_least(1, experiences=experiences, samples=samples, test_samples=test_samples)
        shortest = share(length, 0, experiences) if stream == "length" and not problems else length
        least = 2 if form == "unit" else 4
        if shortest < least:
            problems.append(
                f"scenario.length={length}: {least} steps are needed"
                + (f", and the first experience has {shortest}" if stream == "length" else "")
            )
        if problems:
            raise UsageError(*problems)
        markers = experiences if stream == "marker" else 1

        def make(e: int, name: str, n: int, source: torch.Generator) -> TensorData:
            steps = share(length, e, experiences) if stream == "length" else length
            number_NT = torch.rand(n, steps, generator=source)
            marker_NT = torch.zeros(n, steps)
            if form == "unit":
                half = steps // 2
                first_N1 = torch.randint(half, (n, 1), generator=source)
                second_N1 = torch.randint(half, steps, (n, 1), generator=source)
            else:
                number_NT = 2 * number_NT - 1
                marker_NT[:, 0] = marker_NT[:, -1] = -1
                first_N1 = torch.randint(min(10, steps), (n, 1), generator=source)
                second_N1 = torch.randint(steps // 2 - 1, (n, 1), generator=source)
                second_N1 += second_N1 >= first_N1  # among those that are not marked
            both_N2 = torch.cat([first_N1, second_N1], 1)
            marker_NT.scatter_(1, both_N2, 1.0)
            known_N2 = number_NT.gather(1, both_N2)
            if form == "unit":
                y_N1 = known_N2.sum(1, keepdim=True)
            else:
                y_N1 = 0.5 + (known_N2 * (both_N2 > 0)).sum(1, keepdim=True) / 4
            x = torch.zeros(n, length, 1 + markers)
            x[:, length - steps :, 0] = number_NT
            x[:, length - steps :, 1 + (e if stream == "marker" else 0)] = marker_NT
            return TensorData(x, y_N1)

        spec = Spec((length, 1 + markers), 1, "domain", target="value", metric="mse", direction="min")
        super().__init__(spec, *streams(seed, "adding", experiences, samples, test_samples, make))
