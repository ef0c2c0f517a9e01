"""A damped pendulum: its motion over time, in consecutive intervals, and forecasting it under changing damping."""

from __future__ import annotations

import math
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from clplat.errors import UsageError
from clplat.randomness import generator
from clplat.scenario import Scenario, Spec, TensorData, stream
from clplat.scenarios.chaos import path, repeated, rk4
from clplat.scenarios.forecasting import Cut, Forecasting, evenly, refuse

GRAVITY = 9.81  # divided by the pendulum's length: the square of the frequency of small swings
STEP = 0.005  # of the solver


def pendulum(state_N2: Tensor, damping: float, gravity: float = GRAVITY) -> Tensor:
    """``angle' = velocity``, ``velocity' = -damping velocity - gravity sin(angle)``."""
    angle_N, velocity_N = state_N2.unbind(-1)
    return torch.stack([velocity_N, -damping * velocity_N - gravity * angle_N.sin()], -1)


class Pendulum(Scenario):
    """Learn the motion of one pendulum, an interval of time in each experience.

    A sample is a time t, the target the angle and the velocity at that time: a regression of one function, whose
    consecutive pieces are the experiences. From Howard, Fu and Stinis 2023, A multifidelity approach to continual
    learning for physical systems, section 3.1: ``angle' = velocity``, ``velocity' = -0.05 velocity - 9.81 sin(angle)``
    from (1, 1) at t = 0, over [0, 10] in five intervals of 2 (values from the authors' published code, which learns it
    from the equation's residual; here from the values). Solved by the Runge-Kutta method of order 4 with steps of
    0.005, in double precision; between its grid points a step of the size that is missing.

    t is scaled to [-1, 1] over the whole time, the velocity divided by sqrt(9.81), so that both values are of the
    order of 1. Training times are drawn uniformly within the interval, by the seed, test times apart from them.
    Success is ``nrmse`` over both values, 1 for a constant guess.

    Settings: ``domain``: one head. ``task``: the label tells the interval, which t does as well.

    Args:
        experiences: intervals, of equal length.
        setting: task- or domain-incremental.
        time: length of all intervals together.
        damping: of the velocity.
        angle: at t = 0.
        velocity: at t = 0.
        samples: training times in an experience.
        test_samples: test times in an experience.
    """

    settings = ("task", "domain")

    def __init__(
        self,
        seed: int,
        *,
        experiences: int = 5,
        setting: Literal["task", "domain"] = "domain",
        time: float = 10.0,
        damping: float = 0.05,
        angle: float = 1.0,
        velocity: float = 1.0,
        samples: int = 256,
        test_samples: int = 100,
    ) -> None:
        least = {"experiences": experiences, "samples": samples, "test_samples": test_samples}
        problems = [f"scenario.{name}={value}: at least 1 is needed" for name, value in least.items() if value < 1]
        if time <= 0 or damping < 0:
            problems.append(
                f"scenario.time={time} and scenario.damping={damping}: time must pass, and damping not drive"
            )
        if problems:
            raise UsageError(*problems)
        begin_12 = torch.tensor([[angle, velocity]], dtype=torch.float64)
        grid_S2 = path(rk4(partial(pendulum, damping=damping), STEP), begin_12, math.ceil(time / STEP) + 1)[0]
        parts: dict[str, list[TensorData]] = {"train": [], "test": []}
        for e in range(experiences):
            for name, n in (("train", samples), ("test", test_samples)):
                source = generator(seed, f"pendulum/{name}", e)
                t_N = (e + torch.rand(n, generator=source, dtype=torch.float64)) * time / experiences
                y_N2 = _between(grid_S2, t_N, damping) / torch.tensor([1.0, math.sqrt(GRAVITY)])
                x_N1 = (2 * t_N / time - 1)[:, None]
                parts[name].append(TensorData(x_N1.float(), y_N2.float(), e if setting == "task" else 0))
        spec = Spec((1,), 2, setting, encoder="vectors", target="value", metric="nrmse", direction="min")
        super().__init__(spec, stream("train", parts["train"]), stream("test", parts["test"]))


def _between(grid_S2: Tensor, t_N: Tensor, damping: float) -> Tensor:
    """States at times: one step of the solver from the grid point before."""
    number_N = (t_N / STEP).long()
    missing_N1 = (t_N - number_N * STEP)[:, None]
    return rk4(partial(pendulum, damping=damping), missing_N1)(grid_S2[number_N])


class PendulumForecast(Forecasting):
    """Forecasting swings of a damped pendulum whose gravity or damping changes from experience to experience.

    ``angle' = velocity``, ``velocity' = -damping velocity - gravity sin(angle)``, the equation of
    :class:`Pendulum` as a forecast. A sample is angle and velocity at steps of ``interval``, the target at each step
    both ``horizon`` steps later. Each path begins with an angle between -2 and 2 and a velocity between -1/2 and 1/2
    times sqrt(gravity), so that it never goes over the top. Solved by the Runge-Kutta
    method of order 4 with steps of at most 0.025. Gravity, or damping, is evenly spaced from
    the first regime to the last.

    Success is ``nrmse``, 1 for a constant guess; to repeat the last value comes to about 0.3 at the default interval.
    Made for this platform.

    Args:
        experiences: how many.
        regimes: different gravities or dampings; after the last they return in order. Null: as many as experiences.
        setting: task- or domain-incremental.
        change: what differs between experiences.
        gravity: divided by the length; of the first regime if it changes.
        last_gravity: of the last regime, if it changes.
        damping: of the first regime if it changes.
        last_damping: of the last regime, if it changes.
        interval: time between steps.
        length: T, steps of a sample.
        horizon: how many steps ahead is asked for.
        samples: training samples in an experience.
        test_samples: test samples in an experience.
    """

    def __init__(
        self,
        seed: int,
        *,
        experiences: int = 3,
        regimes: int | None = None,
        setting: Literal["task", "domain"] = "domain",
        change: Literal["gravity", "damping"] = "gravity",
        gravity: float = 9.81,
        last_gravity: float = 19.62,
        damping: float = 0.05,
        last_damping: float = 1.0,
        interval: float = 0.1,
        length: int = 32,
        horizon: int = 1,
        samples: int = 256,
        test_samples: int = 64,
    ) -> None:
        cut = Cut(
            experiences=experiences, regimes=regimes, length=length, horizon=horizon, samples=samples,
            test_samples=test_samples, contiguous=False,
        )  # fmt: skip
        problems = cut.problems()
        if change == "damping":
            last_gravity = gravity
        else:
            last_damping = damping
        if min(gravity, last_gravity, interval) <= 0:
            problems.append(
                f"scenario.gravity={gravity}, {last_gravity} at last, and scenario.interval={interval} must be positive"
            )
        if min(damping, last_damping) < 0:
            problems.append(f"scenario.damping={damping} and its last {last_damping}: must not be negative")
        refuse(problems)
        self.gravities = evenly(gravity, last_gravity, cut.different)
        self.dampings = evenly(damping, last_damping, cut.different)
        self.interval = interval
        super().__init__(seed, "pendulum-forecast", cut, self._paths, setting)

    def _paths(self, regime: int, n: int, steps: int, source: torch.Generator) -> Tensor:
        gravity, damping = self.gravities[regime], self.dampings[regime]
        draw_N2 = 2 * torch.rand(n, 2, generator=source, dtype=torch.float64) - 1
        begin_N2 = draw_N2 * torch.tensor([2.0, 0.5 * math.sqrt(gravity)])
        inner = math.ceil(self.interval / 0.025 - 1e-9)
        field = partial(pendulum, damping=damping, gravity=gravity)
        return path(repeated(rk4(field, self.interval / inner), inner), begin_N2, steps)
