"""Streams from sources that must be found out from what they say: the best prediction is known exactly."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as nnf
from torch import Generator, Tensor

from clplat.errors import UsageError
from clplat.scenario import Scenario, Spec, TensorData
from clplat.scenarios.generated import at_least, streams
from clplat.scenarios.symbols import categorical, dirichlet, next_symbol, predict_next

PROCESSES = ("static", "regular", "random", "ptw")


class PiecewiseSources(Scenario):
    """Piecewise stationary sources: say the next symbol while its probabilities change at times nobody tells (Genewein
    et al. 2023, Memory-based meta-learning on non-stationary distributions, arXiv 2302.03067).

    A sequence has T symbols. Its segments each have a distribution of their own, drawn from Dirichlet(c, ..., c); the
    symbols in a segment are independent. The label at every step is the symbol that comes; the input is the one before
    it (0: none yet, a + 1: symbol a). Where segments end is drawn anew in each sequence, by one of four processes:

    - static: nowhere;
    - regular: every ``period`` steps;
    - random: after a number of steps drawn from 1, ..., 2 * period - 1, alike likely;
    - ptw: the prior of partition tree weighting: a block of 2^d steps (the smallest that covers T) is cut in half with
      probability 1/2, and so are the halves, down to single steps.

    As a stream (domain-incremental) the experiences are

    - process: of the four processes in this order, and again from the beginning;
    - period: regular, with ``period``, twice, four times, ... as many steps;
    - same: alike, of ``process``, with fresh sequences.

    Success is the number of bits for a symbol, smaller being better; 1 for a fair coin. What is attainable is known: KT
    is the optimum for static, PTW for ptw sources, and LIN is good for all (:mod:`clplat.metrics.predictors`, for c =
    0.5, as published). Their regret and a network's are measured by :func:`clplat.metrics.in_context.regret`, also
    against ``truth`` (the log-probabilities (N, T, A) that the test symbols were drawn from) and by the distance to a
    switch (``switches``, (N, T), true where a segment begins), which are kept here for each test experience.

    The authors draw new sequences in every batch; here they are ``samples`` fixed ones. Their demonstration has 20
    steps; the lengths of the published figures could not be confirmed. In their generator a random duration may be
    rounded to 0, after which nothing ever changes again; here it is at least 1, and the law of durations, which they
    leave open, is ours. Few and short sequences occur in train and in test, as they would by chance.

    Args:
        experiences: how many.
        stream: how they differ.
        process: where segments end, in streams that are the same.
        period: (mean) length of a segment, of regular and random ones.
        length: T.
        symbols: A, size of the alphabet.
        concentration: c.
        samples: training sequences in an experience.
        test_samples: test sequences in an experience.
    """

    def __init__(
        self,
        seed: int,
        *,
        experiences: int = 4,
        stream: Literal["process", "period", "same"] = "process",
        process: Literal["static", "regular", "random", "ptw"] = "ptw",
        period: int = 8,
        length: int = 32,
        symbols: int = 2,
        concentration: float = 0.5,
        samples: int = 1024,
        test_samples: int = 256,
    ) -> None:
        problems = at_least(1, experiences=experiences, period=period, samples=samples, test_samples=test_samples)
        problems += at_least(2, length=length, symbols=symbols)
        if concentration <= 0:
            problems.append(f"scenario.concentration={concentration}: must be positive")
        if problems:
            raise UsageError(*problems)
        self.truth: list[Tensor] = []
        self.switches: list[Tensor] = []

        def make(e: int, part: str, n: int, source: Generator) -> TensorData:
            if stream == "process":
                kind, mean = PROCESSES[e % len(PROCESSES)], period
            else:
                kind, mean = (process, period) if stream == "same" else ("regular", period * 2**e)
            switch_NT = switches(kind, mean, n, length, source)
            theta_NTA = dirichlet(torch.full((symbols,), concentration), n * length, source).reshape(n, length, symbols)
            begun_NT = torch.where(switch_NT, torch.arange(length), 0).cummax(1).values
            theta_NTA = theta_NTA.gather(1, begun_NT[..., None].expand_as(theta_NTA))
            if part == "test":
                self.truth.append(theta_NTA.log())
                self.switches.append(switch_NT)
            return TensorData(*predict_next(categorical(theta_NTA, source)))

        made = streams(seed, "piecewise-sources", experiences, samples, test_samples, make)
        super().__init__(next_symbol(length, symbols), *made)


class BayesPredict(Scenario):
    """Prediction where Bayes' rule is the optimum: each sequence is drawn from a source that is itself drawn from a
    prior, and the next value is asked at every step (Ortega et al. 2019, Meta-learning of sequential strategies, arXiv
    1905.03030).

    - categorical: theta ~ Dirichlet(alpha), x_t ~ theta; for two symbols a coin with a Beta prior. The label at each
      step is the symbol that comes, the input the one before it (0: none yet, a + 1: symbol a). The optimum is
      ``(n_a + alpha_a) / (t + sum alpha)``, :func:`clplat.metrics.predictors.dirichlet`; with alpha = 1 Laplace's rule.
      Success is bits for a symbol.
    - gaussian: mu ~ N(m, ``spread``^2), x_t ~ N(mu, ``noise``^2); the target at each step is the value that comes, the
      input the one before it (0 at first). The optimum is the posterior mean,
      :func:`clplat.metrics.predictors.gaussian_mean`. Success is the mean squared error.

    As a stream (domain-incremental) the prior changes, which measures how far the network's implied prior is
    overwritten, and all else stays:

    - tilted: experience e favours symbol e mod A: alpha is ``concentration``, and ``tilt`` times that for the favoured
      symbol; for gaussian m is ``tilt`` * ``spread`` times 0, 1, -1, 2, -2, ...
    - same: one prior (alpha = ``concentration``, or m = 0) throughout.

    ``priors`` holds alpha, or m, of each experience. The report gives no sizes: the defaults are ours. Of its second
    half, decisions (bandits), nothing is here. Sequences of few symbols occur in train and in test, as by chance.

    Args:
        experiences: how many.
        family: what is drawn.
        stream: how the experiences' priors differ.
        length: T.
        symbols: A, of categorical sources.
        concentration: alpha.
        tilt: how much the prior favours something.
        spread: deviation of the level between sequences, of gaussian sources.
        noise: deviation within a sequence, of gaussian sources.
        samples: training sequences in an experience.
        test_samples: test sequences in an experience.
    """

    def __init__(
        self,
        seed: int,
        *,
        experiences: int = 2,
        family: Literal["categorical", "gaussian"] = "categorical",
        stream: Literal["tilted", "same"] = "tilted",
        length: int = 20,
        symbols: int = 2,
        concentration: float = 1.0,
        tilt: float = 4.0,
        spread: float = 1.0,
        noise: float = 0.5,
        samples: int = 2048,
        test_samples: int = 512,
    ) -> None:
        problems = at_least(1, experiences=experiences, length=length, samples=samples, test_samples=test_samples)
        problems += at_least(2, symbols=symbols)
        positive = {"concentration": concentration, "tilt": tilt, "spread": spread, "noise": noise}
        problems += [f"scenario.{name}={value}: must be positive" for name, value in positive.items() if value <= 0]
        if problems:
            raise UsageError(*problems)
        if stream == "same":
            tilt = 1.0 if family == "categorical" else 0.0
        self.priors = [_prior(family, e, symbols, concentration, tilt, spread) for e in range(experiences)]

        def make(e: int, part: str, n: int, source: Generator) -> TensorData:
            if family == "categorical":
                theta_NA = dirichlet(self.priors[e], n, source)
                return TensorData(*predict_next(categorical(theta_NA[:, None].expand(-1, length, -1), source)))
            level_N = self.priors[e] + spread * torch.randn(n, 1, generator=source)
            y_NT = level_N + noise * torch.randn(n, length, generator=source)
            return TensorData(nnf.pad(y_NT[:, :-1], (1, 0))[..., None], y_NT[..., None])

        spec = next_symbol(length, symbols)
        if family == "gaussian":
            spec = Spec((length, 1), 1, "domain", target="series", metric="mse", direction="min")
        super().__init__(spec, *streams(seed, "bayes-predict", experiences, samples, test_samples, make))


def _prior(family: str, e: int, symbols: int, concentration: float, tilt: float, spread: float) -> Tensor:
    """alpha (A,), or the mean m of experience e."""
    if family == "categorical":
        alpha_A = torch.full((symbols,), concentration)
        alpha_A[e % symbols] *= tilt
        return alpha_A
    side = (e + 1) // 2
    return torch.tensor(tilt * spread * (side if e % 2 else -side))


def switches(process: str, period: int, n: int, length: int, source: Generator) -> Tensor:
    """Where segments begin, (n, length), always at step 0; see :class:`PiecewiseSources`."""
    begins_NT = torch.zeros(n, length, dtype=torch.bool)
    begins_NT[:, 0] = True
    if process == "regular":
        begins_NT[:, ::period] = True
    elif process == "random":
        ends_NS = torch.randint(1, 2 * period, (n, length), generator=source).cumsum(1)
        # One place more, for all that lie beyond the end.
        beyond = torch.zeros(n, length + 1, dtype=torch.bool)
        begins_NT |= beyond.scatter(1, ends_NS.clamp(max=length), True)[:, :length]
    elif process == "ptw":
        size = 1 << (length - 1).bit_length()
        marks_NT = torch.zeros(n, size, dtype=torch.bool)
        cut_NB = torch.ones(n, 1, dtype=torch.bool)  # blocks of the tree that exist
        while size > 1:
            cut_NB = cut_NB & (torch.rand(cut_NB.shape, generator=source) < 0.5)
            marks_NT[:, size // 2 :: size] |= cut_NB
            cut_NB, size = cut_NB.repeat_interleave(2, 1), size // 2
        begins_NT |= marks_NT[:, :length]
    return begins_NT
