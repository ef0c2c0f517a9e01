"""How many heads of attention a network's mixing of steps is worth."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch

from clplat.errors import UsageError
from clplat.metrics import interaction
from clplat.metrics.probes.base import Figure, Probe, Result
from clplat.metrics.probes.sampling import draw_tests
from clplat.metrics.representation import effective_rank
from clplat.report import plots

if TYPE_CHECKING:
    from clplat.learner import Learner
    from clplat.scenario import Scenario


class InteractionRank(Probe):
    """Interaction rank of the backbone (Ghodsi 2025, How Many Heads Make an SSM? A Unified Framework for Attention and
    State Space Models, arXiv 2512.15115).

    A mixer gives ``y_i = sum_{j <= i} W_ij(x) x_j``; with H heads of fixed value maps all W_ij lie in a space of H
    dimensions, while the operators ``C A^(i-j) B`` of a state space model span as many as A has modes that are used. So
    the rank of the stacked W_ij says how many heads would be needed. Of a trained network W_ij is taken to be the
    Jacobian block ``dy_i / dx_j``, y what the backbone puts out and x the encoded steps of test samples: in a network
    whose weights depend on x it holds their change as well, and MLPs, so that the rank is that of the whole network
    linearised at a sample. Reported are the mean over samples of the numerical rank (singular values above
    ``tolerance`` of the largest) and of exp of the entropy of the singular values; and how ``log |J_ij|`` changes with
    the distance i - j, whose slope is near 0 where gradients reach far.

    Computed in double precision on a copy. The cost grows with steps times the output's width: one backward pass each.

    Args:
        samples: test samples, of all experiences together.
        steps: how many of a sample's first steps.
        tolerance: of the numerical rank.
    """

    needs = ()

    def __init__(self, *, samples: int = 4, steps: int = 8, tolerance: float = 1e-6) -> None:
        problems = []
        if samples < 1 or steps < 3:
            problems.append(f"interaction-rank: samples={samples} must be positive, and steps={steps} 3 at least")
        if not 0 < tolerance < 1:
            problems.append(f"interaction-rank: tolerance={tolerance} must be between 0 and 1")
        if problems:
            raise UsageError(*problems)
        self.samples, self.steps, self.tolerance = samples, steps, tolerance

    def unfit(self, learner: Learner, scenario: Scenario) -> str | None:
        if learner.backbone.sequential and learner.encoder.shape[0] >= 3:
            return None
        return "needs a backbone that reads a sequence of three steps at least, e.g. --backbone gru"

    def measure(self, learner: Learner, scenario: Scenario) -> Result:
        network = copy.deepcopy(learner.backbone).double().requires_grad_(False)
        data = draw_tests(learner, scenario, self.samples, "probe/interaction-rank")
        x_BTD = learner.encoder(data.x)[:, : self.steps].double()
        with torch.autocast(x_BTD.device.type, enabled=False):
            found = [interaction.jacobian(lambda x: network(x[None])[0][0], x_TD) for x_TD in x_BTD]
        rows = [interaction.operators(J) for J in found]
        norm_T = torch.stack([interaction.fading(J) for J in found]).mean(0)
        return {
            "rank": sum(interaction.rank(part, self.tolerance) for part in rows) / len(rows),
            "effective_rank": sum(effective_rank(part) for part in rows) / len(rows),
            "most": min(rows[0].shape),
            "slope": interaction.slope(norm_T),
            "norms": norm_T,
        }

    def figure(self, result: Result) -> Figure:
        curve = {"mean over samples": (list(range(len(result["norms"]))), result["norms"])}
        title = f"Influence by distance; interaction rank {result['rank']:.1f} of {result['most']}"
        return plots.lines(title, "steps between", "norm of the Jacobian", curve)
