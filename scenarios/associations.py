"""Pairs to be learnt by heart that are met as often as a power law says."""

from __future__ import annotations

import torch

from clplat.errors import UsageError
from clplat.randomness import generator
from clplat.scenario import Scenario, Spec, TensorData
from clplat.scenarios.generated import BLANK, at_least, streams
from clplat.scenarios.symbols import asked_where, categorical, power_law


class AssociativeMemoryScaling(Scenario):
    """One input token, one output: facts whose frequencies fall as a power law, new ones in each experience.

    Cabannes, Dohmatob and Bietti 2023, Scaling Laws for Associative Memories (arXiv 2310.02984). Input of rank x = 1 to
    N comes with probability ``p(x) ~ x^-exponent``, and its output is ``x mod M``. A sample is one input token and, at
    the same step, its output; training is ``samples`` draws, the test other draws by the same law, so its accuracy is
    one minus the paper's error ``sum_x p(x) [answer(x) != f(x)]``. Slices of the test: ``frequent`` are its inputs of
    the N/10 lowest ranks, ``rare`` the others.

    :mod:`clplat.metrics.associative` has what a matrix of outer products recalls of the same law, by rules of storage
    and by gradient steps, to hold a network against. Measured there at exponent 2 and N = 1000: with the ``dim / 4``
    most frequent stored the error falls as about ``dim^-1``; stored by frequency it is larger; and Adam is ahead of SGD
    after as many steps.

    Experience e has N input tokens of its own (which has which rank is the seed's), the outputs are the same: what is
    learnt next competes for the same outputs, and what is frequent has more to lose. Training and test show the same
    inputs, for it is memory that is measured. Domain-incremental. Who knows the law but not the pairs is right about
    as often as an output occurs, 0.63 at exponent 2 with M = 5 (output 1). Tokens: 0 is not used, then the inputs.

    Assumed: that a network with an embedding of its own for each token stands for the paper's fixed ones.

    Args:
        experiences: how many.
        inputs: N, of an experience.
        outputs: M.
        exponent: of the power law; the paper's alpha, above 1 there.
        samples: training draws in an experience.
        test_samples: test draws in an experience.
    """

    def __init__(
        self,
        seed: int,
        *,
        experiences: int = 3,
        inputs: int = 200,
        outputs: int = 5,
        exponent: float = 1.5,
        samples: int = 2000,
        test_samples: int = 1000,
    ) -> None:
        problems = at_least(1, experiences=experiences, samples=samples, test_samples=test_samples)
        problems += at_least(10, inputs=inputs) + at_least(2, outputs=outputs) + at_least(0, exponent=exponent)
        if inputs < outputs:
            problems.append(f"scenario.inputs={inputs}: {outputs} outputs need as many")
        if problems:
            raise UsageError(*problems)
        law_N = power_law(inputs, exponent)
        # The token of each rank: their numbers must not tell how frequent they are, nor from which experience.
        token_EN = 1 + torch.randperm(experiences * inputs, generator=generator(seed, "associations/tokens"))
        token_EN = token_EN.view(experiences, inputs)
        self.tokens = token_EN

        def make(e: int, name: str, n: int, source: torch.Generator) -> TensorData:
            rank_N = categorical(law_N.expand(n, -1), source)
            return TensorData(token_EN[e, rank_N][:, None], ((1 + rank_N) % outputs)[:, None])

        tokens = 1 + experiences * inputs
        spec = Spec((1,), outputs, "domain", encoder="tokens", target="token", vocabulary=tokens)
        train, test = streams(seed, "associations", experiences, samples, test_samples, make)
        common = torch.zeros(tokens, dtype=torch.bool)
        common[token_EN[:, : inputs // 10]] = True
        assert not common[BLANK]
        slices = {
            "frequent": asked_where(test, lambda x, y: common[x]),
            "rare": asked_where(test, lambda x, y: ~common[x]),
        }
        super().__init__(spec, train, test, slices=slices)
