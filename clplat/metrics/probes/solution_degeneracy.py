"""How different the solutions are that runs of one task have found."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from clplat.errors import UsageError
from clplat.metrics import degeneracy, measures
from clplat.metrics.probes.base import Figure, Probe, Result
from clplat.metrics.probes.sampling import draw_tests
from clplat.report import plots

if TYPE_CHECKING:
    from clplat.learner import Learner
    from clplat.scenario import Scenario, TensorData

Array = NDArray[np.float64]


def recurrent_blocks(learner: Learner, name: str = "") -> Array | None:
    """The recurrent weights of a network as square blocks (gates, N, N); None where it has none.

    Args:
        name: of the parameter of the backbone; empty for the first called ``hh`` or ``weight_hh`` whose rows are a
            multiple of its columns.
    """
    for own, parameter in learner.backbone.named_parameters():
        square = parameter.ndim == 2 and parameter.shape[0] % parameter.shape[1] == 0
        if square and (own == name if name else own.startswith("hh") or "weight_hh" in own):
            found: Array = parameter.detach().double().cpu().numpy().reshape(-1, parameter.shape[1], parameter.shape[1])
            return found
    return None


class SolutionDegeneracy(Probe):
    """Degeneracy of the solutions of several runs (Measuring and Controlling Solution Degeneracy across Task-Trained
    Recurrent Neural Networks, 2024, arXiv 2410.03972): of behaviour, dynamics and weights.

    The run and ``runs`` are trained on one scenario, usually with different seeds; all are asked with the same test
    samples, those of the first. Reported are

    - behaviour: the population standard deviation over networks of the error on these samples, and on samples of the
      scenario with other options (``shift``), such as longer trials, which is where solutions differ;
    - dynamics: the mean over pairs of the distance of dynamical similarity analysis between the trajectories of what
      the networks put out, see :mod:`clplat.metrics.degeneracy`;
    - weights: the mean over pairs of the distance between the recurrent matrices, whatever the order of units, over the
      root of the number of weights; not measured where a network has no recurrent matrix or widths differ.

    Assumed: delays, rank (the paper's are not known), unit variance of the delay coordinates, the root of the number of
    weights (the paper divides by it where widths differ). The paper trains 50 networks of 128 units per setting, to a
    criterion; whether these runs reached one is for their reports to say. Of its findings, that L1 brings weights
    together shows in 3 networks of 16 units trained for 160 steps on the 3-bit flip-flop (0.21 without, 0.16 with
    it); that dynamics are more alike on 3 bits than on 2 does not show at that size (0.33 and 0.29).

    Args:
        runs: the other run directories.
        shift: options of the scenario, for behaviour out of distribution.
        samples: test samples, of all experiences together.
        delays: steps that are looked at together.
        rank: delay coordinates that are kept.
        weights: name of the recurrent matrix in the backbone; empty finds it.
    """

    def __init__(
        self,
        *,
        runs: tuple[str, ...] = (),
        shift: dict[str, float] = {},  # noqa: B006 - read only, and read from source
        samples: int = 64,
        delays: int = 3,
        rank: int = 10,
        weights: str = "",
    ) -> None:
        if min(samples, delays, rank) < 1:
            raise UsageError(
                f"solution-degeneracy: samples={samples}, delays={delays} and rank={rank} must be positive"
            )
        self.runs, self.shift, self.samples = tuple(runs), dict(shift), samples
        self.delays, self.rank, self.weights = delays, rank, weights

    def unfit(self, learner: Learner, scenario: Scenario) -> str | None:
        if not self.runs:
            return "compares runs: name the others, e.g. clplat probe solution-degeneracy RUN 'runs=[runs/b, runs/c]'"
        T = learner.encoder.shape[0]
        if not learner.backbone.sequential or self.delays + 2 > T:
            return f"needs a backbone that reads a sequence of {self.delays + 2} steps at least, e.g. --backbone gru"
        return None

    def measure(self, learner: Learner, scenario: Scenario) -> Result:
        from clplat import config as configuration
        from clplat.build import build_scenario
        from clplat.restored import restored

        others = [restored(Path(run))[0].learner for run in self.runs]
        shifted = None
        if self.shift:
            section = configuration.load(Path(self.runs[0]) / "config.yaml")
            shifted = build_scenario({**section["scenario"], **self.shift}, learner.seed)
        return self.compare([learner, *others], scenario, shifted)

    def compare(self, learners: Sequence[Learner], scenario: Scenario, shifted: Scenario | None = None) -> Result:
        """The same for networks in hand; samples are drawn by the first one's seed."""
        data = draw_tests(learners[0], scenario, self.samples, "probe/solution-degeneracy")
        errors = [self._error(one, data, scenario) for one in learners]
        found: Result = {"networks": len(learners), "behaviour": float(np.std(errors)), "errors": errors}
        if shifted is not None:
            other = draw_tests(learners[0], shifted, self.samples, "probe/solution-degeneracy")
            found["errors_shifted"] = [self._error(one, other, scenario) for one in learners]
            found["behaviour_shifted"] = float(np.std(found["errors_shifted"]))
        maps = [self._dynamics(one, data) for one in learners]
        found["dynamics_by_pair"] = _table(maps, degeneracy.dynamical_distance)
        found["dynamics"] = degeneracy.mean_of_pairs(found["dynamics_by_pair"])
        blocks = [recurrent_blocks(one, self.weights) for one in learners]
        held = [block for block in blocks if block is not None]
        found["weights"] = None
        if len(held) == len(learners) and len({block.shape for block in held}) == 1:
            table = _table(held, lambda a, b: degeneracy.weight_distance(a, b) / a.size**0.5)
            found["weights_by_pair"], found["weights"] = table, degeneracy.mean_of_pairs(table)
        return found

    def _error(self, learner: Learner, data: TensorData, scenario: Scenario) -> float:
        """What is missing to a full score, or the loss measure itself where smaller is better."""
        metric = scenario.spec.metric
        with learner.evaluating(), learner.deployed():
            sums = measures.sums(learner.target, learner.answer(data.x, data.task).float(), data.y)
        value = measures.values(learner.target, sums)[metric]
        return 1 - value if scenario.spec.direction == "max" else value

    def _dynamics(self, learner: Learner, data: TensorData) -> Array:
        with learner.evaluating(), learner.deployed():
            y_BTD, _ = learner.backbone(learner.encoder(data.x))
        return degeneracy.dynamics(y_BTD.double().cpu().numpy(), delays=self.delays, rank=self.rank)

    def figure(self, result: Result) -> Figure:
        return plots.cells("Distance of dynamics", "network", "network", result["dynamics_by_pair"], low=0)


def _table(things: Sequence[Any], distance: Callable[[Any, Any], float]) -> list[list[float]]:
    """Distances of all pairs."""
    n = len(things)
    found = np.zeros((n, n))
    for i in range(n):
        for j in range(i + 1, n):
            found[i, j] = found[j, i] = distance(things[i], things[j])
    return found.tolist()
