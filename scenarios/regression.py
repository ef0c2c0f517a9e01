"""Streams of regression problems that are solved in context: a new function in every sequence."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as nnf
from torch import Generator, Tensor

from clplat.errors import UsageError
from clplat.metrics.regression import ridge
from clplat.randomness import generator
from clplat.scenario import Scenario, Spec, TensorData
from clplat.scenarios.generated import at_least, streams


class LinearRegression(Scenario):
    """Linear regression in context: pairs (x_i, y_i) of a linear function that is new in every sequence (Akyürek et al.
    2023, What learning algorithm is in-context learning? Investigations with linear models, arXiv 2211.15661, section
    3, in the form ``pairs``; He et al. 2025, In-context linear regression demystified, arXiv 2503.12734, section 2, in
    the form ``joined``).

    w ~ N(0, ``spread``^2 I), x_i ~ N(0, C), ``y_i = w x_i + noise_i``, noise_i ~ N(0, ``noise``^2), for P = ``pairs``
    pairs. C is the identity, or in other experiences V diag(c) V^T with a random rotation V and c falling evenly in
    logarithm from the first to the last dimension by the factor ``condition``, their mean being 1.

    - pairs: the sequence is x_1, y_1, ..., x_P, y_P as vectors of dim + 1 numbers, (x_i, 0) and (0, y_i), T = 2 P; at
      each x_i its y_i is asked, NaN elsewhere, so errors by the number of pairs before are to be had.
    - joined: the vectors are (x_i, y_i) for all but the last, which is (x_P, 0), T = P; only its value is asked.

    Success is the mean squared error. With nothing known it is spread^2 trace(C) + noise^2. Least squares is best
    without noise from P > dim on; ridge with penalty noise^2 / spread^2 is Bayes' estimator in all cases, and what it
    says of a test experience is ``optimum(e)``. These and gradient descent and neighbours are in
    :mod:`clplat.metrics.regression`, to tell by the squared prediction difference which of them a network does;
    ``problems(e)`` gives the points and values of a test experience.

    As a stream (domain-incremental) the experiences are

    - noise: with noise growing evenly from 0 to ``noise`` (``noise`` itself if there is one);
    - covariance: with C of their own, the identity first;
    - weights: with w ~ N(m, spread^2 I) for a random m of length 2 spread sqrt(dim) each, 0 first;
    - same: alike, with fresh sequences.

    Published: dim 8, about 40 pairs, a sweep over noise, 16 layers, 500,000 steps of fresh sequences (pairs); dim 5, 40
    pairs and spread^2 = 1 / dim (joined; noise and optimiser there were not found). The defaults of pairs are smaller.

    Args:
        experiences: how many.
        stream: how they differ.
        form: how pairs become a sequence.
        pairs: P, the last of which is asked too.
        dim: of x.
        spread: deviation of the weights.
        noise: deviation of the noise.
        condition: ratio of the largest to the smallest variance in other covariances.
        samples: training sequences in an experience.
        test_samples: test sequences in an experience.
    """

    def __init__(
        self,
        seed: int,
        *,
        experiences: int = 3,
        stream: Literal["noise", "covariance", "weights", "same"] = "covariance",
        form: Literal["pairs", "joined"] = "pairs",
        pairs: int = 12,
        dim: int = 4,
        spread: float = 1.0,
        noise: float = 0.0,
        condition: float = 10.0,
        samples: int = 2048,
        test_samples: int = 512,
    ) -> None:
        problems = at_least(1, experiences=experiences, dim=dim, samples=samples, test_samples=test_samples)
        problems += [*at_least(2, pairs=pairs), *at_least(0, noise=noise), *at_least(1, condition=condition)]
        if spread <= 0:
            problems.append(f"scenario.spread={spread}: must be positive")
        if stream == "noise" and not noise:
            problems.append("scenario.noise=0: a stream of growing noise needs some")
        if problems:
            raise UsageError(*problems)
        self.form, self.spread = form, spread
        self.noise = [
            noise * e / (experiences - 1) if stream == "noise" and experiences > 1 else noise
            for e in range(experiences)
        ]
        self.mean = [torch.zeros(dim) for _ in range(experiences)]  # of the weights
        root = [torch.eye(dim) for _ in range(experiences)]  # of the covariance of points
        for e in range(1, experiences):
            own = generator(seed, "linear-regression/experience", e)
            if stream == "weights":
                self.mean[e] = nnf.normalize(torch.randn(dim, generator=own), dim=0) * 2 * spread * dim**0.5
            if stream == "covariance":
                root[e] = _root(dim, condition, own)

        def make(e: int, part: str, n: int, source: Generator) -> TensorData:
            w_N1D = self.mean[e] + spread * torch.randn(n, 1, dim, generator=source)
            x_NPD = torch.randn(n, pairs, dim, generator=source) @ root[e].T
            y_NP = (w_N1D * x_NPD).sum(-1) + self.noise[e] * torch.randn(n, pairs, generator=source)
            return TensorData(*(interleaved if form == "pairs" else joined)(x_NPD, y_NP))

        T = 2 * pairs if form == "pairs" else pairs
        spec = Spec((T, dim + 1), 1, "domain", target="series", metric="mse", direction="min")
        super().__init__(spec, *streams(seed, "linear-regression", experiences, samples, test_samples, make))

    def problems(self, e: int) -> tuple[Tensor, Tensor]:
        """Points (N, P, dim) and values (N, P) of a test experience."""
        data = self.test_stream[e].dataset
        if self.form == "pairs":
            return data.x[:, ::2, :-1], data.y[:, ::2, 0]
        return data.x[..., :-1], torch.cat([data.x[:, :-1, -1], data.y[:, -1]], 1)

    def optimum(self, e: int) -> Tensor:
        """What Bayes' estimator, which knows how weights and noise were drawn, predicts for each value of a test
        experience from the pairs before it, (N, P): ridge towards the mean weights m, with penalty noise^2 / spread^2.
        """
        x_NPD, y_NP = (part.double() for part in self.problems(e))
        usual_NP = x_NPD @ self.mean[e].double()
        return usual_NP + ridge(x_NPD, y_NP - usual_NP, (self.noise[e] / self.spread) ** 2)


def interleaved(x_NPD: Tensor, y_NP: Tensor) -> tuple[Tensor, Tensor]:
    """Sequences (n, 2 P, D + 1) of (x_i, 0) and (0, y_i), and what is asked at each, (n, 2 P, 1)."""
    n, P, D = x_NPD.shape
    sequence = torch.zeros(n, P, 2, D + 1)
    sequence[:, :, 0, :D], sequence[:, :, 1, D] = x_NPD, y_NP
    asked = torch.full((n, P, 2, 1), torch.nan)
    asked[:, :, 0, 0] = y_NP
    return sequence.flatten(1, 2), asked.flatten(1, 2)


def joined(x_NPD: Tensor, y_NP: Tensor) -> tuple[Tensor, Tensor]:
    """Sequences (n, P, D + 1) of (x_i, y_i) with 0 for the last value, and that value asked at the end, (n, P, 1)."""
    sequence = torch.cat([x_NPD, y_NP[..., None]], 2)
    sequence[:, -1, -1] = 0
    asked = torch.full((*y_NP.shape, 1), torch.nan)
    asked[:, -1, 0] = y_NP[:, -1]
    return sequence, asked


def _root(dim: int, condition: float, source: Generator) -> Tensor:
    """A matrix A such that A z has the covariance of :class:`LinearRegression` for white z."""
    rotation, _ = torch.linalg.qr(torch.randn(dim, dim, generator=source))
    variance = torch.logspace(0, -torch.tensor(condition).log10().item(), dim)
    return rotation * (variance / variance.mean()).sqrt()
