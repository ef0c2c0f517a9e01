"""How long forecasts hold in closed loop."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from clplat.errors import UsageError
from clplat.metrics.dynamics import valid_prediction_time
from clplat.metrics.probes.base import Figure, Probe, Result
from clplat.metrics.probes.sampling import draw
from clplat.report import plots

if TYPE_CHECKING:
    from clplat.learner import Learner
    from clplat.scenario import Scenario, TensorData


class ValidPredictionTime(Probe):
    """Valid prediction time (Vlachas et al. 2020, arXiv 1910.05266): the network reads the first ``warm_up`` steps of a
    test sample, then its own predictions; counted is how long the error, normalised by the deviation of each value,
    stays below ``threshold``; see :func:`clplat.metrics.dynamics.valid_prediction_time`.

    For streams whose target is the next step of the sample itself (lorenz96, kuramoto-sivashinsky, sines, ... with
    horizon=1). A forecast cannot be longer than what is left of a sample: where ``reached`` is not small, choose a
    larger scenario.length. In steps for every test experience, and where the scenario knows its largest Lyapunov
    exponent and its ``interval`` in Lyapunov times as well, which makes systems comparable.

    A network that answers with the last value has what the system itself allows for so long.

    Args:
        warm_up: steps that are read before the forecast.
        threshold: of the normalised error.
        samples: forecasts for each experience.
    """

    needs = ("steps",)

    def __init__(self, *, warm_up: int = 8, threshold: float = 0.5, samples: int = 64) -> None:
        problems = [
            f"valid-prediction-time: {name}={value} must be at least 1"
            for name, value in (("warm_up", warm_up), ("samples", samples))
            if value < 1
        ]
        if threshold <= 0:
            problems.append(f"valid-prediction-time: threshold={threshold} must be positive")
        if problems:
            raise UsageError(*problems)
        self.warm_up, self.threshold, self.samples = warm_up, threshold, samples

    def unfit(self, learner: Learner, scenario: Scenario) -> str | None:
        spec, data = scenario.spec, scenario.test_stream[0].dataset
        if spec.target == "series" and spec.shape == (spec.shape[0], spec.classes):
            x_NTD, y_NTD, _ = data.rows(slice(0, 4))
            if not torch.equal(y_NTD[:, :-1], x_NTD[:, 1:]):
                return "needs targets that are the next step: choose e.g. --scenario lorenz96 with scenario.horizon=1"
            if spec.shape[0] <= self.warm_up:
                return f"needs samples of more than warm_up={self.warm_up} steps, and these have {spec.shape[0]}"
            return None
        return "needs a stream whose target is the next step of the sample: choose e.g. --scenario lorenz96"

    def measure(self, learner: Learner, scenario: Scenario) -> Result:
        steps: list[float] = []
        times: list[float | None] = []
        errors: list[Tensor] = []
        reached = 0.0
        exponent = getattr(scenario, "lyapunov_exponent", None)
        for j, experience in enumerate(scenario.test_stream):
            data = experience.dataset
            some = draw(learner, data, self.samples, "probe/valid-prediction-time", j)
            predicted_NTD, true_NTD = forecast(learner, some, self.warm_up)
            deviation_D = data.x.to(true_NTD).std((0, 1), correction=0)
            vpt_N = valid_prediction_time(
                predicted_NTD, true_NTD, deviation_D, interval=1.0, lyapunov=1.0, threshold=self.threshold
            )
            steps.append(float(vpt_N.mean()))
            reached += float((vpt_N == true_NTD.shape[1]).double().mean()) / len(scenario.test_stream)
            times.append(None if exponent is None else steps[-1] * scenario.interval * exponent(j))  # type: ignore[attr-defined]
            errors.append(((predicted_NTD - true_NTD) / deviation_D).square().mean(-1).sqrt().mean(0))
        known = [time for time in times if time is not None]
        return {
            "steps": sum(steps) / len(steps),
            "lyapunov_times": sum(known) / len(known) if known else float("nan"),
            "reached": reached,
            "steps_of_each": steps,
            "lyapunov_times_of_each": times,
            "errors": errors,
        }

    def figure(self, result: Result) -> Figure:
        ahead = list(range(1, len(result["errors"][0]) + 1))
        curves = {f"experience {j + 1}": (ahead, error) for j, error in enumerate(result["errors"])}
        title = f"Forecasts in closed loop; valid for {result['steps']:.1f} steps"
        return plots.lines(title, "steps ahead", "normalised error", curves)


def forecast(learner: Learner, data: TensorData, warm_up: int) -> tuple[Tensor, Tensor]:
    """What the network says and what came, (N, T - warm_up + 1, D) each, from the first step after the warm-up on."""
    x_NTD, y_NTD, task_N = data.rows(slice(None))
    output = learner.respond(x_NTD[:, :warm_up], task_N)
    said = [output.logits[:, -1]]
    for _ in range(warm_up, x_NTD.shape[1]):
        output = learner.respond(said[-1][:, None], task_N, output.state)
        said.append(output.logits[:, -1])
    return torch.stack(said, 1).double(), y_NTD[:, warm_up - 1 :].double()
