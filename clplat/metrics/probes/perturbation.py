"""How much of its accuracy a network keeps when its weights are shaken, or a unit is missing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from clplat.backbones.units import rows_of
from clplat.errors import UsageError
from clplat.metrics import measures
from clplat.metrics.probes.base import Figure, Probe, Result
from clplat.metrics.probes.sampling import batches, draw_tests
from clplat.report import plots

if TYPE_CHECKING:
    from clplat.learner import Learner
    from clplat.scenario import Scenario, TensorData


def shaken(weight: Tensor, strength: float, source: torch.Generator) -> Tensor:
    """``W + strength |W| R / |R|`` with R from N(0, 1) and Frobenius norms."""
    noise = torch.randn(weight.shape, generator=source, dtype=torch.float64).to(weight)
    return weight + strength * weight.norm() * noise / noise.norm().clamp(min=1e-30)


class Perturbation(Probe):
    """Robustness to noise in the weights and to the loss of single units (Khajehabdollahi et al. 2024, arXiv
    2309.12927, and the authors' code).

    Noise: each parameter of the backbone whose name has ``part`` in it is moved by ``strength`` times its own norm in a
    random direction, all at once::

        W' = W + strength |W| R / |R|        R ~ N(0, 1)

    There these are the recurrent weights (here ``part=hh.`` of a recurrent backbone) with strengths 0.01 to 10, or the
    time constants of ``leaky-rnn`` (``part=tau``) with 0.001 to 10. Ablation: the parameters that make a unit are zero,
    one unit at a time, so that it puts out zero. A unit is what the backbone says it is: a neuron, or, where
    nothing better is known, an output of any module.

    What is reported is the target's first measure on samples of all test experiences, the mean over draws or units,
    relative to that of the network as it is (``relative``, ``ablated``), and the worst unit (``ablated_worst``). The
    strategy's own way of answering is left aside: it is the network that is asked.

    Args:
        part: of the names of the parameters that are moved; empty for all of the backbone.
        strengths: of the noise.
        draws: directions for each strength.
        units: units that are left out one by one, evenly spread; 0 for none.
        samples: of the test experiences.
    """

    needs = ()

    def __init__(
        self,
        *,
        part: str = "",
        strengths: list[float] = [0.01, 0.1, 1.0],  # noqa: B006 - options are read from this line
        draws: int = 5,
        units: int = 16,
        samples: int = 512,
    ) -> None:
        problems = []
        if not strengths or min(strengths) < 0:
            problems.append(f"perturbation: strengths={strengths}: numbers that are not negative are needed")
        if min(draws, samples) < 1 or units < 0:
            problems.append(
                f"perturbation: draws={draws} and samples={samples} must be positive, units={units} not negative"
            )
        if problems:
            raise UsageError(*problems)
        self.part, self.strengths, self.draws, self.units, self.samples = part, strengths, draws, units, samples

    def unfit(self, learner: Learner, scenario: Scenario) -> str | None:
        names = [name for name, _ in learner.backbone.named_parameters()]
        if not any(self.part in name for name in names):
            return f"finds no parameter with '{self.part}' in its name; there are {', '.join(names)}"
        return None

    def measure(self, learner: Learner, scenario: Scenario) -> Result:
        data = draw_tests(learner, scenario, self.samples, "probe/perturbation/samples")
        whole = _measured(learner, data, {})
        network = {f"backbone.{name}": p.detach() for name, p in learner.backbone.named_parameters()}
        moved = []
        for number, strength in enumerate(self.strengths):
            found = []
            for draw in range(self.draws):
                source = learner.generator("probe/perturbation", number, draw)
                weights = {n: shaken(w, strength, source) for n, w in network.items() if self.part in n}
                found.append(_measured(learner, data, weights))
            moved.append(sum(found) / len(found))
        without = [_measured(learner, data, weights) for weights in self._ablations(learner, network)]
        scale = whole if whole else float("nan")
        worst = (max if measures.first_is_error(learner.target) else min)(without, default=float("nan"))
        return {
            "whole": whole,
            "strengths": self.strengths,
            "relative": [value / scale for value in moved],
            "ablated": sum(without) / len(without) / scale if without else float("nan"),
            "ablated_worst": worst / scale,
        }

    def _ablations(self, learner: Learner, network: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
        """The weights that are others where a unit is missing, for each of the units that are left out."""
        places = [(layer, i) for layer in learner.backbone.units() for i in range(layer.size)]
        if not self.units or not places:
            return []
        chosen = torch.linspace(0, len(places) - 1, min(self.units, len(places))).round().long().tolist()
        found = []
        for layer, i in (places[k] for k in chosen):
            kept_U = torch.ones(layer.size)
            kept_U[i] = 0
            names = [f"backbone.{name}" for name in layer.makes]
            found.append({name: network[name] * rows_of(kept_U.to(network[name]), network[name]) for name in names})
        return found

    def figure(self, result: Result) -> Figure:
        said = "" if result["ablated"] is None else f"; {result['ablated']:.3f} without a unit"
        curves = {"relative": (result["strengths"], result["relative"])}
        title = f"Perturbed weights, relative to {result['whole']:.3f}{said}"
        return plots.lines(title, "strength", "relative measure", curves, log_x=True)


def _measured(learner: Learner, data: TensorData, weights: Mapping[str, Tensor]) -> float:
    """The target's first measure with some weights replaced."""
    of, over = 0.0, 0.0
    for x, y, task in batches(data):
        logits = learner.output_with(weights, x, task).logits
        parts = measures.first_parts(learner.target, logits, y).tolist()
        of, over = of + parts[0], over + parts[1]
    return of / over if over else float("nan")
