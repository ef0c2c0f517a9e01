"""Temporal consistency of activity in recurrent networks (arXiv 2502.07256)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from clplat.errors import UsageError
from clplat.metrics.measures import asked_steps
from clplat.strategy import Strategy

if TYPE_CHECKING:
    from clplat.batch import Batch
    from clplat.learner import Learner, Output


class TemporalConsistency(Strategy):
    """Activity should change slowly: a penalty on the steps of the backbone's output, which favours slow points.

    With r_t the output of the backbone at step t, u its units, and the mean over a set P of neighbouring steps
    (Haputhanthri et al. 2025, Understanding and controlling the geometry of memory organization in RNNs)::

        L + strength * mean_{t in P, u} (r_{t+1,u} - r_{t,u})^2

    It shortens the plateau on which networks that are strongly coupled, or far from a solution, stay before they solve
    a memory task; where the solution needs fast activity it may hurt. The paper's own text was not at hand: that
    outputs (rates) are penalised and not inner states, and the mean as the normaliser, are assumed from summaries of
    it. With this normaliser a strength of 0.01 did nothing on a 3-bit flip-flop and 3 shortened its plateau. Against a
    plateau, not against forgetting.

    Args:
        strength: weight of the penalty.
        over: which neighbouring steps: all; or quiet, those where nothing is asked at either (a delay).
        until: optimiser steps of an experience after which the penalty ends; null never.
    """

    needs = ("steps",)

    def __init__(
        self, *, strength: float = 1.0, over: Literal["all", "quiet"] = "all", until: int | None = None
    ) -> None:
        super().__init__()
        if strength < 0 or (until is not None and until < 0):
            raise UsageError(f"temporal-consistency: strength={strength} >= 0 and until={until} >= 0 are needed")
        self.strength, self.over, self.until = strength, over, until

    def loss(self, learner: Learner, batch: Batch, output: Output) -> dict[str, Tensor]:
        assert learner.steps is not None
        if self.until is not None and learner.steps.position >= self.until:
            return {}
        change_NT = (output.features[:, 1:] - output.features[:, :-1]).square().mean(-1)
        pairs_NT = torch.ones_like(change_NT)
        if self.over == "quiet":
            asked_NT = asked_steps(learner.target, batch.y)
            pairs_NT = (~(asked_NT[:, 1:] | asked_NT[:, :-1])).to(change_NT.dtype)
        mean_N = (change_NT * pairs_NT).sum(1) / pairs_NT.sum(1).clamp(min=1)
        return {"consistency": self.strength * mean_N}
