"""Recall by the place in the list: primacy, recency, and what comes between showing and asking."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from clplat.errors import UsageError
from clplat.metrics.probes.base import Figure, Probe, Result
from clplat.metrics.probes.sampling import batches, draw_tests, no_copies, sources
from clplat.report import plots

if TYPE_CHECKING:
    from clplat.learner import Learner
    from clplat.scenario import Scenario


def places(source_NT: Tensor) -> tuple[Tensor, Tensor]:
    """The list of each sample is the steps that its asked answers come from, in order. For each asked step the place
    of its source in the list, from 0, (N, T), -1 where there is none; and the length of each list, (N,)."""
    N, T = source_NT.shape
    listed_NT = torch.zeros(N, T + 1, dtype=torch.bool, device=source_NT.device)
    listed_NT.scatter_(1, source_NT + 1, True)
    listed_NT = listed_NT[:, 1:]  # what has no source went to the column in front
    before_NT = listed_NT.long().cumsum(1) - 1
    place_NT = before_NT.gather(1, source_NT.clamp(min=0))
    return place_NT.where(source_NT >= 0, -1), listed_NT.sum(1)


def indices(curve: list[float]) -> tuple[float, float]:
    """Primacy and recency: accuracy on the first, and on the last, fifth of the list over that on the middle 60%."""
    ends = max(1, round(0.2 * len(curve)))
    middle = curve[ends:-ends]
    if not middle:
        return math.nan, math.nan
    centre = sum(middle) / len(middle)
    return sum(curve[:ends]) / ends - centre, sum(curve[-ends:]) / ends - centre


def half_life(curve: list[tuple[float, float]], chance: float) -> float:
    """The first distance at which what is above chance has fallen to half of what it is at the nearest, by straight
    lines between the points (distance, accuracy); infinite where it never does."""
    level = chance + 0.5 * (curve[0][1] - chance)
    for (a, high), (b, low) in pairwise(curve):
        if high > level >= low:
            return a + (b - a) * (high - level) / (high - low)
    return math.inf


class SerialPosition(Probe):
    """Accuracy by serial position, as in experiments on human memory (Janik 2023, arXiv 2311.03839).

    The list of a test sample is what its asked answers were shown as, in order; an answer's position is that of its
    last showing, which is how a recall stream such as ``mqar`` is read whatever its format. Reported are accuracy and
    the probability of the right answer by position (of the lists of the most common length), the primacy index
    (first 20% over the middle 60%) and the recency index (last 20%), accuracy by the number of further items shown
    between an answer and its question, by the number of steps, and by how often it was shown; and the half-life in
    steps of what is above chance. Which of items and steps goes with the loss tells interference from decay.

    The paper asks language models in prose; list lengths and prompts there are not verified, and a stream's own lists
    are taken here. Its control (the same network trained on a stream without structure) is a run of its own.

    Args:
        samples: test samples, of all experiences together.
        bins: of the delay in steps.
    """

    needs = ("tokens",)

    def __init__(self, *, samples: int = 512, bins: int = 8) -> None:
        if samples < 1 or bins < 1:
            raise UsageError(f"serial-position: samples={samples} and bins={bins} must be positive")
        self.samples, self.bins = samples, bins

    def unfit(self, learner: Learner, scenario: Scenario) -> str | None:
        return no_copies(learner, scenario)

    def measure(self, learner: Learner, scenario: Scenario) -> Result:
        data = draw_tests(learner, scenario, self.samples, "probe/serial-position")
        rows = []
        for x, y, task in batches(data):
            logits = learner.answer(x, task)
            source = sources(x, y)
            place, length = places(source)
            b, t = (source >= 0).nonzero(as_tuple=True)
            answer, place = y[b, t], place[b, t]
            listed = torch.zeros_like(x, dtype=torch.bool)
            listed[b, source[b, t]] = True
            upto = listed.long().cumsum(1)
            rows.append(
                torch.stack(
                    [
                        (logits[b, t].argmax(-1) == answer).double(),
                        logits[b, t].double().softmax(-1).gather(1, answer[:, None])[:, 0],
                        place.double(),
                        length[b].double(),
                        (upto[b, t] - place - 1).double(),
                        (t - source[b, t]).double(),
                        ((x[b] == answer[:, None]) & (torch.arange(x.shape[1], device=x.device) <= t[:, None])).sum(1),
                    ],
                    1,
                )
            )
        right, chance_of, place, length, items, delay, shown = torch.cat(rows).cpu().unbind(1)
        usual = length.mode().values
        chosen = length == usual
        by_place = _by(right[chosen], place[chosen])
        primacy, recency = indices([value for _, value in by_place])
        by_delay = _by(right, (delay / max(1.0, float(delay.max()) / self.bins)).floor(), delay)
        return {
            "accuracy": float(right.mean()),
            "primacy": primacy,
            "recency": recency,
            "half_life": half_life(by_delay, 1 / scenario.spec.classes),
            "length": int(usual),
            "positions": by_place,
            "probabilities": _by(chance_of[chosen], place[chosen]),
            "items_between": _by(right, items),
            "steps_between": by_delay,
            "times_shown": _by(right, shown),
        }

    def figure(self, result: Result) -> Figure:
        curves = {
            name: ([1 + x for x, _ in result[key]], [y for _, y in result[key]])
            for name, key in (("right", "positions"), ("probability of the answer", "probabilities"))
        }
        return plots.lines(f"Recall of lists of {result['length']}", "place in the list", "share", curves)


def _by(value: Tensor, group: Tensor, x: Tensor | None = None) -> list[tuple[float, float]]:
    """The mean of the values of each group, over the group's number, or over the mean of ``x`` in it."""
    return [(float(g if x is None else x[group == g].mean()), float(value[group == g].mean())) for g in group.unique()]
