"""Forecasting of two chaotic systems whose parameter changes: Lorenz 1996 and the Kuramoto-Sivashinsky equation."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from clplat.metrics.dynamics import largest_lyapunov_exponent
from clplat.scenarios.forecasting import Cut, Forecasting, evenly, refuse

Step = Callable[[Tensor], Tensor]


class Chaos(Forecasting):
    """A stream over a chaotic system, whose Lyapunov exponent can be asked for. ``interval`` is the time between steps
    of a sample."""

    interval: float

    def step(self, regime: int) -> Step:
        """What takes states (N, D) of a regime one interval ahead; states may hold more than what is observed."""
        raise NotImplementedError

    def begin(self, regime: int, paths: int, source: torch.Generator) -> Tensor:
        """States (N, D) on the attractor, before which the paths' beginnings are forgotten."""
        raise NotImplementedError

    def observe(self, state: Tensor) -> Tensor:
        """What is seen of a state."""
        return state

    def lyapunov_exponent(self, regime: int, *, paths: int = 16, steps: int = 600) -> float:
        """The largest, of a regime, within some hundredths for systems that part quickly."""
        source = torch.Generator().manual_seed(0)  # a fact of the system, not of the run
        begin = self.begin(regime, paths, source)
        return largest_lyapunov_exponent(self.step(regime), begin, interval=self.interval, steps=steps, source=source)


def path(step: Step, state_ND: Tensor, steps: int) -> Tensor:
    """``steps`` states (N, steps, D), the first of them given."""
    states = [state_ND]
    while len(states) < steps:
        states.append(step(states[-1]))
    return torch.stack(states, 1)


def rk4(field: Step, dt: float | Tensor) -> Step:
    """One step of the classical Runge-Kutta method of order 4 for ``x' = field(x)``."""

    def step(x: Tensor) -> Tensor:
        a = field(x)
        b = field(x + dt / 2 * a)
        c = field(x + dt / 2 * b)
        d = field(x + dt * c)
        return x + dt / 6 * (a + 2 * b + 2 * c + d)

    return step


def repeated(step: Step, times: int) -> Step:
    """Several steps as one."""

    def steps(x: Tensor) -> Tensor:
        for _ in range(times):
            x = step(x)
        return x

    return steps


def lorenz96(x_NK: Tensor, forcing: float) -> Tensor:
    """``dX_k/dt = X_{k-1} (X_{k+1} - X_{k-2}) - X_k + F``, indices around a circle."""
    ahead, behind, two_behind = x_NK.roll(-1, -1), x_NK.roll(1, -1), x_NK.roll(2, -1)
    return behind * (ahead - two_behind) - x_NK + forcing


def lorenz96_two_scales(state_ND: Tensor, forcing: float, sites: int, fast: int) -> Tensor:
    """Each ``X_k`` loses ``hc/b sum_j Y_jk``; ``dY/dt = -cb Y_{j+1} (Y_{j+2} - Y_{j-1}) - c Y_j + hc/b X_k`` with the
    ``sites * fast`` Y around one circle; h = 1, c = b = 10."""
    h, c, b = 1.0, 10.0, 10.0
    x_NK, y_NJ = state_ND[:, :sites], state_ND[:, sites:]
    dx_NK = lorenz96(x_NK, forcing) - h * c / b * y_NJ.unflatten(1, (sites, fast)).sum(-1)
    ahead, two_ahead, behind = y_NJ.roll(-1, -1), y_NJ.roll(-2, -1), y_NJ.roll(1, -1)
    dy_NJ = -c * b * ahead * (two_ahead - behind) - c * y_NJ + h * c / b * x_NK.repeat_interleave(fast, 1)
    return torch.cat([dx_NK, dy_NJ], 1)


class Lorenz96(Chaos):
    """Forecasting Lorenz 1996, a circle of weather-like sites, under a forcing that changes from experience to
    experience.

    ``dX_k/dt = X_{k-1} (X_{k+1} - X_{k-2}) - X_k + F`` for k = 1 .. ``sites`` around a circle (Lorenz 1996,
    Predictability: a problem partly solved, equation 1), chaotic for 8 sites or more at F = 8. With ``fast`` > 0 each
    site drives as many fast variables that are not observed (equations 2 and 3 there, h = 1, c = b = 10; Heidenreich,
    Vlachas and Koumoutsakos 2024, arXiv 2410.02654, forecast those X). A sample is a stretch of X at steps of
    ``interval``, the target at each step X ``horizon`` steps later.

    Paths begin at F plus noise and are let run for 10 time units (one is about 5 days) before they count. Solved by the
    Runge-Kutta method of order 4 with steps of at most 0.0125, or 0.005 with fast variables, in double precision.
    Experience e has its own F, evenly spaced from ``forcing`` to ``last_forcing``.

    Success is ``nrmse``, 1 for a constant guess; repeating the last value comes to about 0.26 at F = 8 and
    horizon 1. Values are standardised by the first experience; stronger forcing is seen as larger values.

    Args:
        experiences: how many.
        regimes: different forcings; after the last they return in order. Null: as many as experiences.
        setting: task- or domain-incremental.
        sites: K.
        fast: fast variables at each site, which are not seen; 0 for none.
        forcing: F of the first regime.
        last_forcing: F of the last regime.
        interval: time between steps.
        length: T, steps of a sample.
        horizon: how many steps ahead is asked for.
        samples: training samples in an experience.
        test_samples: test samples in an experience.
        contiguous: samples are windows of one path, one after another (for trainer.carry_state).
    """

    def __init__(
        self,
        seed: int,
        *,
        experiences: int = 3,
        regimes: int | None = None,
        setting: Literal["task", "domain"] = "domain",
        sites: int = 8,
        fast: int = 0,
        forcing: float = 8.0,
        last_forcing: float = 16.0,
        interval: float = 0.05,
        length: int = 32,
        horizon: int = 1,
        samples: int = 256,
        test_samples: int = 64,
        contiguous: bool = False,
    ) -> None:
        cut = Cut(
            experiences=experiences, regimes=regimes, length=length, horizon=horizon, samples=samples,
            test_samples=test_samples, contiguous=contiguous,
        )  # fmt: skip
        problems = cut.problems()
        if sites < 4:
            problems.append(f"scenario.sites={sites}: a site and its neighbours are 4 at least")
        if fast < 0:
            problems.append(f"scenario.fast={fast}: must not be negative")
        if interval <= 0:
            problems.append(f"scenario.interval={interval}: must be positive")
        refuse(problems)
        self.forcings = evenly(forcing, last_forcing, cut.different)
        self.sites, self.fast, self.interval = sites, fast, interval
        super().__init__(seed, "lorenz96", cut, self._paths, setting)

    def step(self, regime: int) -> Step:
        forcing = self.forcings[regime]
        inner = math.ceil(self.interval / (0.005 if self.fast else 0.0125) - 1e-9)
        field = partial(lorenz96, forcing=forcing)
        if self.fast:
            field = partial(lorenz96_two_scales, forcing=forcing, sites=self.sites, fast=self.fast)
        return repeated(rk4(field, self.interval / inner), inner)

    def begin(self, regime: int, paths: int, source: torch.Generator) -> Tensor:
        slow = self.forcings[regime] + torch.randn(paths, self.sites, generator=source, dtype=torch.float64)
        quick = 0.1 * torch.randn(paths, self.sites * self.fast, generator=source, dtype=torch.float64)
        return repeated(self.step(regime), math.ceil(10 / self.interval))(torch.cat([slow, quick], 1))

    def observe(self, state: Tensor) -> Tensor:
        return state[..., : self.sites]

    def _paths(self, regime: int, n: int, steps: int, source: torch.Generator) -> Tensor:
        return self.observe(path(self.step(regime), self.begin(regime, n, source), steps))


def etdrk4(linear_M: Tensor, nonlinear: Step, dt: float) -> Step:
    """A step of exponential time differencing of order 4 for ``v' = linear * v + nonlinear(v)``, the coefficients as
    means over a circle of radius 1 in the complex plane (Cox and Matthews 2002; Kassam and Trefethen 2005, Fourth-order
    time-stepping for stiff PDEs, equations 19 and 2.5)."""
    points = 32
    turn_P = torch.exp(1j * math.pi * (torch.arange(points, dtype=torch.float64) + 0.5) / points)
    z_MP = dt * linear_M[:, None] + turn_P  # upper half suffices: linear is real, so the other half is the conjugate
    exp_MP = z_MP.exp()
    whole_M, half_M = (dt * linear_M).exp(), (dt * linear_M / 2).exp()
    inner_M = dt * ((z_MP / 2).exp().sub(1) / z_MP).mean(1).real
    first_M = dt * ((-4 - z_MP + exp_MP * (4 - 3 * z_MP + z_MP**2)) / z_MP**3).mean(1).real
    middle_M = dt * ((2 + z_MP + exp_MP * (z_MP - 2)) / z_MP**3).mean(1).real
    last_M = dt * ((-4 - 3 * z_MP - z_MP**2 + exp_MP * (4 - z_MP)) / z_MP**3).mean(1).real

    def step(v: Tensor) -> Tensor:
        at_v = nonlinear(v)
        a = half_M * v + inner_M * at_v
        at_a = nonlinear(a)
        b = half_M * v + inner_M * at_a
        at_b = nonlinear(b)
        c = half_M * a + inner_M * (2 * at_b - at_v)
        return whole_M * v + first_M * at_v + 2 * middle_M * (at_a + at_b) + last_M * nonlinear(c)

    return step


class KuramotoSivashinsky(Chaos):
    """Forecasting the Kuramoto-Sivashinsky equation, flames or films in one dimension, in a domain or with a viscosity
    that changes from experience to experience.

    ``u_t = -u u_x - u_xx - nu u_xxxx``, periodic in x with period L (Kuramoto 1978; Sivashinsky 1977; the form of
    Heidenreich, Vlachas and Koumoutsakos 2024, arXiv 2410.02654). Chaotic at L = 22, 30 and 38 with nu = 1; between
    such domains there are some in which it is nearly periodic. A sample is u on ``points`` points at steps of
    ``interval``, the target at each step u ``horizon`` steps later. Solved in Fourier space by ETDRK4 (Kassam and
    Trefethen 2005) with steps of at most 0.25 in double precision. The mean of u, which the equation keeps, is 0
    throughout, and products are freed of aliases by leaving the upper third of the waves empty.

    Paths begin as small random waves and are let run for 100 time units. Experience e has a domain, or a viscosity,
    evenly spaced from the first to the last.

    Success is ``nrmse``, 1 for a constant guess; to repeat the last value comes to about 0.1 at the default interval.

    Args:
        experiences: how many.
        regimes: different domains or viscosities; after the last they return in order. Null: as many as experiences.
        setting: task- or domain-incremental.
        change: what differs between experiences: the domain's size or the viscosity.
        domain: L, of the first regime if it changes.
        last_domain: L of the last regime, if it changes.
        viscosity: nu, of the first regime if it changes.
        last_viscosity: nu of the last regime, if it changes.
        points: of the grid.
        interval: time between steps.
        length: T, steps of a sample.
        horizon: how many steps ahead is asked for.
        samples: training samples in an experience.
        test_samples: test samples in an experience.
        contiguous: samples are windows of one path, one after another (for trainer.carry_state).
    """

    def __init__(
        self,
        seed: int,
        *,
        experiences: int = 3,
        regimes: int | None = None,
        setting: Literal["task", "domain"] = "domain",
        change: Literal["domain", "viscosity"] = "domain",
        domain: float = 22.0,
        last_domain: float = 38.0,
        viscosity: float = 1.0,
        last_viscosity: float = 0.6,
        points: int = 64,
        interval: float = 0.5,
        length: int = 24,
        horizon: int = 1,
        samples: int = 96,
        test_samples: int = 32,
        contiguous: bool = False,
    ) -> None:
        cut = Cut(
            experiences=experiences, regimes=regimes, length=length, horizon=horizon, samples=samples,
            test_samples=test_samples, contiguous=contiguous,
        )  # fmt: skip
        problems = cut.problems()
        n = max(cut.different, 0)
        self.domains = evenly(domain, last_domain if change == "domain" else domain, n)
        self.viscosities = evenly(viscosity, last_viscosity if change == "viscosity" else viscosity, n)
        positive = {"domain": self.domains, "viscosity": self.viscosities, "interval": (interval,)}
        problems += [f"scenario.{name}: {min(v)} must be positive" for name, v in positive.items() if n and min(v) <= 0]
        if not problems:
            # The equation damps waves from nu k^2 = 1 on; what is kept of the grid's reaches to twice that wave number.
            waves = 2 * max(self.domains) / (2 * math.pi * math.sqrt(min(self.viscosities)))
            if points < 3 * waves:
                problems.append(f"scenario.points={points}: {math.ceil(3 * waves)} resolve the waves in this domain")
        refuse(problems)
        self.points, self.interval = points, interval
        super().__init__(seed, "kuramoto-sivashinsky", cut, self._paths, setting)

    def waves(self, regime: int) -> Tensor:
        """The wave numbers k of the transform."""
        return 2 * math.pi / self.domains[regime] * torch.arange(self.points // 2 + 1, dtype=torch.float64)

    def step(self, regime: int) -> Step:
        k_M = self.waves(regime)
        kept_M = torch.arange(len(k_M)) < self.points / 3
        derivative_M = -0.5j * k_M * kept_M

        def advection(v: Tensor) -> Tensor:
            return derivative_M * torch.fft.rfft(torch.fft.irfft(v, self.points).square())

        inner = math.ceil(self.interval / 0.25 - 1e-9)
        linear_M = k_M.square() - self.viscosities[regime] * k_M**4
        step = repeated(etdrk4(linear_M, advection, self.interval / inner), inner)
        return lambda u: torch.fft.irfft(step(torch.fft.rfft(u)), self.points)

    def begin(self, regime: int, paths: int, source: torch.Generator) -> Tensor:
        few = min(6, self.points // 3 - 1)  # waves that are long enough to be resolved
        v_NM = torch.zeros(paths, self.points // 2 + 1, dtype=torch.complex128)
        parts_NM2 = torch.randn(paths, few, 2, generator=source, dtype=torch.float64)
        v_NM[:, 1 : few + 1] = 0.1 * self.points * torch.view_as_complex(parts_NM2)
        u_NX = torch.fft.irfft(v_NM, self.points)
        return repeated(self.step(regime), math.ceil(100 / self.interval))(u_NX)

    def _paths(self, regime: int, n: int, steps: int, source: torch.Generator) -> Tensor:
        return path(self.step(regime), self.begin(regime, n, source), steps)
