"""Bigram sequences in which some tokens copy the one before them."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from clplat.errors import UsageError
from clplat.randomness import generator
from clplat.scenario import Scenario, Spec, TensorData
from clplat.scenario import stream as stream_of


class BigramBackcopy(Scenario):
    """Bigram-Backcopy: next-token prediction on which one layer of attention already grows sinks (Guo et al. 2024,
    Active-Dormant Attention Heads, arXiv 2410.13835, and the authors' code).

    A sample is a token of beginning (V, never predicted) and then T tokens: the first drawn from pi without triggers;
    after a trigger the token before the trigger, ``x_{t+1} = x_{t-1}`` (after a trigger in the first place, which does
    not occur, there would be none); else ``x_{t+1} ~ P[x_t]``. The target at each step is the next token. Triggers are
    the k most frequent tokens. Success is nats per token; the bigram part has the entropy of P at best, and a step
    after a trigger none. Guessing has ``ln V``.

    Assumed: P and pi, which the authors count in a text, are drawn here, so that no text is needed: pi ~ 1/rank, rows
    of P are pi times exp(Gaussian noise of ``spread``), and no token follows itself after a back-copy but by chance.
    The authors' vocabulary is 67: 65 characters, the beginning and a delimiter, which is not used here. That triggers
    may follow triggers is theirs.

    Experiences differ in

    - triggers: each has k triggers of its own, the most frequent first;
    - bigrams: each has a P of its own, over the same triggers;
    - same: nothing, fresh sequences.

    Attributes:
        triggers: of all experiences, for the probe ``extreme-token``.

    Args:
        experiences: how many.
        stream: how they differ.
        vocabulary: V, without the token of beginning.
        triggers: k.
        length: T.
        spread: of the noise in P.
        samples: training sequences in an experience.
        test_samples: test sequences in an experience.
    """

    def __init__(
        self,
        seed: int,
        *,
        experiences: int = 2,
        stream: Literal["triggers", "bigrams", "same"] = "triggers",
        vocabulary: int = 32,
        triggers: int = 3,
        length: int = 64,
        spread: float = 1.5,
        samples: int = 1024,
        test_samples: int = 128,
    ) -> None:
        sets = experiences if stream == "triggers" else 1
        problems = []
        if min(experiences, triggers, samples, test_samples) < 1:
            problems.append("scenario: experiences, triggers, samples and test_samples must be at least 1")
        elif vocabulary < sets * triggers + 2:
            problems.append(
                f"scenario.vocabulary={vocabulary}: {sets} sets of {triggers} triggers and two other tokens need "
                f"{sets * triggers + 2} at least"
            )
        if length < 2 or spread < 0:
            problems.append(f"scenario.length={length} must be 2 at least, and scenario.spread={spread} not negative")
        if problems:
            raise UsageError(*problems)
        pi_V = 1 / torch.arange(1, vocabulary + 1, dtype=torch.float64)
        self.triggers = [
            list(range(e * triggers, (e + 1) * triggers)) if stream == "triggers" else list(range(triggers))
            for e in range(experiences)
        ]
        parts: dict[str, list[TensorData]] = {"train": [], "test": []}
        for e in range(experiences):
            which = e if stream == "bigrams" else 0
            noise_VV = torch.randn(
                vocabulary, vocabulary, generator=generator(seed, "bigram/P", which), dtype=torch.float64
            )
            P_VV = pi_V * (spread * noise_VV).exp()
            for name, n in (("train", samples), ("test", test_samples)):
                s_NT = _sequences(n, length, pi_V, P_VV, self.triggers[e], generator(seed, f"bigram/{name}", e))
                parts[name].append(TensorData(s_NT[:, :-1], s_NT[:, 1:]))
        V = vocabulary + 1
        spec = Spec(
            (length,), V, "domain", encoder="tokens", target="token", vocabulary=V, metric="nll", direction="min"
        )
        super().__init__(spec, stream_of("train", parts["train"]), stream_of("test", parts["test"]))


def _sequences(n: int, length: int, pi_V: Tensor, P_VV: Tensor, triggers: list[int], source: torch.Generator) -> Tensor:
    """(n, 1 + length) tokens, the first of each the token of beginning."""
    V = len(pi_V)
    copies_V = torch.zeros(V, dtype=torch.bool)
    copies_V[triggers] = True
    first_V = pi_V.masked_fill(copies_V, 0)
    before_N = torch.multinomial(first_V, n, replacement=True, generator=source)
    here_N = before_N
    tokens = [torch.full((n,), V), here_N]
    cumulative_VV = (P_VV / P_VV.sum(1, keepdim=True)).cumsum(1)
    for _ in range(length - 1):
        u_N1 = torch.rand(n, 1, generator=source, dtype=torch.float64)
        drawn_N = (u_N1 > cumulative_VV[here_N]).sum(1).clamp(max=V - 1)
        next_N = torch.where(copies_V[here_N], before_N, drawn_N)
        before_N, here_N = here_N, next_N
        tokens.append(next_N)
    return torch.stack(tokens, 1)
