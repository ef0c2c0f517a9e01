"""Forecasting of series whose best forecast is known: autoregressive moving averages, and sums of sines."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from clplat.randomness import generator
from clplat.scenarios.forecasting import Cut, Forecasting, refuse


class ArmaRegimes(Forecasting):
    """Forecasting series that are autoregressive moving averages, with other coefficients in each experience.

    ``z_t = sum_{i<=p} phi_i z_{t-i} + e_t + sum_{j<=q} theta_j e_{t-j}`` with normal white noise e (Box and Jenkins
    1970), scaled to variance 1. A sample is a stretch of z, one value a step; the target at each step is the value
    ``horizon`` steps later. With ``states`` > 1 a regime is several sets of coefficients among which a hidden Markov
    chain switches at random, the past of z and e being kept (after Hamilton 1989, A new approach to the economic
    analysis of nonstationary time series and the business cycle, for autoregressions).

    Coefficients are drawn by the seed as partial autocorrelations between -``strength`` and ``strength``, which gives
    stationary and invertible ones and no others (Barndorff-Nielsen and Schou 1973, On the parametrization of
    autoregressive models by partial autocorrelations). A path's first 200 steps are left out. The first experience's
    deviation, by which all is divided, is 1 up to chance.

    Success is ``nrmse``. A constant guess has 1; nobody has less than ``floors[r]`` in regime r over long series, the
    deviation of what the innovations of the next ``horizon`` steps add (null where there are several states).

    Args:
        experiences: how many.
        regimes: different sets of coefficients; after the last they return in order. Null: as many as experiences.
        setting: task- or domain-incremental.
        autoregressive: p, coefficients of past values.
        moving_average: q, coefficients of past noise.
        strength: largest partial autocorrelation, below 1.
        states: sets of coefficients among which a regime switches.
        stay: probability to stay in a state from step to step.
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
        experiences: int = 4,
        regimes: int | None = None,
        setting: Literal["task", "domain"] = "domain",
        autoregressive: int = 2,
        moving_average: int = 1,
        strength: float = 0.9,
        states: int = 1,
        stay: float = 0.95,
        length: int = 64,
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
        if min(autoregressive, moving_average) < 0 or autoregressive + moving_average < 1:
            problems.append(
                f"scenario.autoregressive={autoregressive} and scenario.moving_average={moving_average}: "
                "neither may be negative, and one coefficient is needed"
            )
        if not 0 < strength < 1:
            problems.append(f"scenario.strength={strength}: must be between 0 and 1")
        if states < 1 or not 0 <= stay <= 1:
            problems.append(
                f"scenario.states={states} and scenario.stay={stay}: one state and a probability are needed"
            )
        refuse(problems)
        self.stay = stay
        self.coefficients: list[tuple[Tensor, Tensor]] = []  # of each regime: phi (states, p) and theta (states, q)
        for regime in range(cut.different):
            source = generator(seed, "arma-regimes/coefficients", regime)
            draws = (
                2 * torch.rand(states, n, generator=source, dtype=torch.float64) - 1
                for n in (autoregressive, moving_average)
            )
            phi_SP, theta_SQ = (torch.stack([_from_partial(strength * row) for row in draw]) for draw in draws)
            self.coefficients.append((phi_SP, -theta_SQ))
        # Variance 1 in each state by itself.
        self.scales = [
            torch.tensor([_weights(*row).square().sum() for row in zip(*pair, strict=True)]).rsqrt()
            for pair in self.coefficients
        ]
        self.floors: list[float | None] = [None] * cut.different
        if states == 1:
            self.floors = [
                float(scale * _weights(phi[0], theta[0])[:horizon].square().sum().sqrt())
                for scale, (phi, theta) in zip(self.scales, self.coefficients, strict=True)
            ]
        super().__init__(seed, "arma-regimes", cut, self._paths, setting)

    def _paths(self, regime: int, n: int, steps: int, source: torch.Generator) -> Tensor:
        (phi_SP, theta_SQ), early = self.coefficients[regime], 200
        (S, p), q = phi_SP.shape, theta_SQ.shape[1]
        total, past = steps + early, max(p, q)
        state_NT = _markov(n, total, S, self.stay, source)
        noise_NT = torch.zeros(n, past + total, dtype=torch.float64)
        noise_NT[:, past:] = (
            torch.randn(n, total, generator=source, dtype=torch.float64) * self.scales[regime][state_NT]
        )
        z_NT = torch.zeros_like(noise_NT)
        for t in range(total):
            now, of = past + t, state_NT[:, t]
            # The latest value goes with the first coefficient.
            z_NT[:, now] = (
                noise_NT[:, now]
                + (z_NT[:, now - p : now].flip(1) * phi_SP[of]).sum(1)
                + (noise_NT[:, now - q : now].flip(1) * theta_SQ[of]).sum(1)
            )
        return z_NT[:, past + early :, None]


def _from_partial(partial_P: Tensor) -> Tensor:
    """Autoregressive coefficients of a process with these partial autocorrelations (Durbin and Levinson)."""
    phi = partial_P[:0]
    for value in partial_P:
        phi = torch.cat([phi - value * phi.flip(0), value[None]])
    return phi


def _weights(phi_P: Tensor, theta_Q: Tensor, n: int = 2000) -> Tensor:
    """The first n weights psi of ``z_t = sum_k psi_k e_{t-k}``; they fall off geometrically."""
    phi, psi = phi_P.tolist(), [1.0, *theta_Q.tolist(), *[0.0] * n][:n]
    for k in range(1, n):
        psi[k] += sum(c * psi[k - 1 - i] for i, c in enumerate(phi[:k]))
    return torch.tensor(psi, dtype=torch.float64)


def _markov(n: int, steps: int, states: int, stay: float, source: torch.Generator) -> Tensor:
    """Chains (n, steps) that stay where they are with a probability and else go to any other state alike."""
    begin_N1 = torch.randint(states, (n, 1), generator=source)
    if states == 1:
        return begin_N1.expand(n, steps)
    moves_NT = torch.rand(n, steps, generator=source) >= stay
    jumps_NT = torch.randint(1, states, (n, steps), generator=source)
    return (begin_N1 + (moves_NT * jumps_NT).cumsum(1)) % states


class Sines(Forecasting):
    """Forecasting sums of sines, with other frequencies in each experience, or a wave moved by another phase.

    ``z_t = sum_{k <= waves} a_k sin(w_k t + b_k)``; amplitudes a (between 0.5 and 1.5) and phases b are drawn
    for each sample, so that a sample cannot be known by heart, and the frequencies w belong to the regime. They are
    evenly spread below half a turn a step and dealt to the regimes at random, so no two regimes share one.

    With ``change=frequency`` the target at each step is the value ``horizon`` steps later. It follows from the last
    ``2 * waves`` values by a linear recursion with the regime's own coefficients, ``z_t = 2 cos(w) z_{t-1} - z_{t-2}``
    for one wave, so that what is unlearned in another regime is this recursion. With ``change=phase`` the frequencies
    are the same in all experiences and the target is the wave at the same step with all phases moved ahead by the
    regime's own angle. Then the same sample would demand different answers: the task label is needed.

    Success is ``nrmse``. A constant guess has 1. The first ``2 * waves`` steps cannot be answered exactly by anyone, so
    that 0 is out of reach: what is left is of the order of the root of their share of the steps.

    Made for this platform; streams of sines whose phase or frequency differ go back to Finn et al. 2017 (Model-agnostic
    meta-learning, section 5.1).

    Args:
        experiences: how many.
        regimes: different sets of frequencies, or phases; after the last they return in order. Null: as many as
            experiences.
        setting: task- or domain-incremental.
        change: what differs between experiences.
        waves: sines in a sample.
        length: T, steps of a sample.
        horizon: how many steps ahead is asked for, with change=frequency.
        samples: training samples in an experience.
        test_samples: test samples in an experience.
    """

    def __init__(
        self,
        seed: int,
        *,
        experiences: int = 4,
        regimes: int | None = None,
        setting: Literal["task", "domain"] = "domain",
        change: Literal["frequency", "phase"] = "frequency",
        waves: int = 1,
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
        if waves < 1:
            problems.append(f"scenario.waves={waves}: at least 1 is needed")
        if change == "phase" and setting != "task":
            problems.append(
                f"scenario.change=phase: the same waves demand other answers in each experience, so the task label is "
                f"needed: scenario.setting=task, not {setting}"
            )
        if change == "phase" and horizon != 1:
            problems.append(f"scenario.horizon={horizon}: with change=phase the answer is about the same step")
        refuse(problems)
        self.change = change
        groups = cut.different if change == "frequency" else 1
        order = torch.randperm(groups * waves, generator=generator(seed, "sines/frequencies"))
        # Neither still nor too quick to be seen; with distances between neighbours that tell them apart.
        self.frequencies = (math.pi * (0.1 + 0.8 * (order + 0.5) / (groups * waves))).double().reshape(groups, waves)
        self.phases = (
            2 * math.pi * torch.rand(cut.different, generator=generator(seed, "sines/phases"), dtype=torch.float64)
        )
        super().__init__(seed, "sines", cut, self._paths, setting)

    def _paths(self, regime: int, n: int, steps: int, source: torch.Generator) -> Tensor:
        w_W = self.frequencies[regime % len(self.frequencies)]
        a_N1W = 0.5 + torch.rand(n, 1, len(w_W), generator=source, dtype=torch.float64)
        b_N1W = 2 * math.pi * torch.rand(n, 1, len(w_W), generator=source, dtype=torch.float64)
        angle_NTW = w_W * torch.arange(steps, dtype=torch.float64)[:, None] + b_N1W
        moved = [0.0, float(self.phases[regime])] if self.change == "phase" else [0.0]
        return torch.stack([(a_N1W * (angle_NTW + by).sin()).sum(-1) for by in moved], -1)

    def windows(self, path_NSD: Tensor) -> tuple[Tensor, Tensor]:
        if self.change == "frequency":
            return super().windows(path_NSD)
        now_NTD, _ = super().windows(path_NSD)
        return now_NTD[..., :1], now_NTD[..., 1:]
