"""Streams of symbols that hidden Markov models emit."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Generator, Tensor

from clplat.errors import UsageError
from clplat.scenario import Scenario, TensorData
from clplat.scenarios.generated import at_least, streams
from clplat.scenarios.symbols import categorical, next_symbol, predict_next, within

TOPOLOGIES = ("chain", "full", "cyclic")


class HMMEmission(Scenario):
    """Symbols from a hidden Markov model of chosen topology: say the next one (Torre et al. 2025, Mechanistic
    interpretability of RNNs emulating hidden Markov models, arXiv 2510.25674).

    M hidden states, begun alike likely, follow a transition matrix; each emits one of three symbols. The label at each
    step is the symbol that comes, the input the one before it (0: none yet, a + 1: symbol a). With p = 1 - ``stay``:

    - chain: from the first state to its only neighbour and back with probability q, inner states to either neighbour
      with q each, ``q = p^(1/(M-1))``, which keeps the time from end to end the same for all M; state i emits
      (0.99 (1 - a), 0.01, 0.99 a) with a = i / (M - 1). From M = 6 on a row would be negative at the default, which the
      authors' formula does not see and is refused here.
    - full: every other state with p / (M - 1); state i emits symbol i mod 3 with 0.98 and the others with 0.01.
    - cyclic: p / 2 to each neighbour on a ring; state i emits one symbol with 0.9 and another with 0.1: (0, 1), (1, 0),
      (2, 1), (1, 2), and again.

    Matrices as in the authors' code (there: M = 2 to 5 for chain, 3 for full, 4 for cyclic; sequences of 30 to 150
    steps; 30,000 of them). As a stream (domain-incremental) the experiences are

    - topology: chain, full, cyclic with ``states`` states each, and again;
    - states: of ``topology`` with M = 2, 3, ...;
    - same: alike, with fresh sequences.

    Success is bits for a symbol. The best that is attainable is the Bayes filter
    (:func:`clplat.metrics.predictors.hidden_markov` with ``models[e]``: start, transitions and emissions). What the
    paper itself asks, that a network driven by noise alone makes sequences of the same statistics, is measured by
    :func:`statistics`; the network and its training by a Sinkhorn divergence are in :mod:`clplat.metrics.noise_driven`.
    Short sequences of a slow chain occur in train and in test, as by chance.

    Args:
        experiences: how many.
        stream: how they differ.
        topology: of streams that keep it.
        states: M.
        stay: 1 - p.
        length: T.
        samples: training sequences in an experience.
        test_samples: test sequences in an experience.
    """

    def __init__(
        self,
        seed: int,
        *,
        experiences: int = 3,
        stream: Literal["topology", "states", "same"] = "topology",
        topology: Literal["chain", "full", "cyclic"] = "chain",
        states: int = 4,
        stay: float = 0.95,
        length: int = 40,
        samples: int = 1024,
        test_samples: int = 256,
    ) -> None:
        problems = at_least(1, experiences=experiences, length=length, samples=samples, test_samples=test_samples)
        problems += [*at_least(2, states=states), *within(0, 1, stay=stay)]
        self.models: list[tuple[Tensor, Tensor, Tensor]] = []
        for e in range(0 if problems else experiences):
            kind = TOPOLOGIES[e % len(TOPOLOGIES)] if stream == "topology" else topology
            self.models.append(model(kind, 2 + e if stream == "states" else states, stay))
            if (self.models[-1][1] < 0).any():
                M = len(self.models[-1][0])
                problems.append(
                    f"scenario.stay={stay}: a chain of {M} states would leave its inner states with probability "
                    f"{2 * (1 - stay) ** (1 / (M - 1)):.2f}; more is needed, or fewer states"
                )
        if problems:
            raise UsageError(*problems)

        def make(e: int, part: str, n: int, source: Generator) -> TensorData:
            start_M, transition_MM, emission_MA = self.models[e]
            state_N = categorical(start_M.expand(n, -1), source)
            states = [state_N]
            for _ in range(1, length):
                states.append(categorical(transition_MM[states[-1]], source))
            return TensorData(*predict_next(categorical(emission_MA[torch.stack(states, 1)], source)))

        made = streams(seed, "hmm-emission", experiences, samples, test_samples, make)
        super().__init__(next_symbol(length, 3), *made)


def model(topology: str, states: int, stay: float) -> tuple[Tensor, Tensor, Tensor]:
    """Start (M,), transitions (M, M) and emissions (M, 3); see :class:`HMMEmission`."""
    M, p = states, 1 - stay
    emission_MA, number_M = torch.full((M, 3), 0.01, dtype=torch.float64), torch.arange(M)
    moves_MM = torch.zeros(M, M, dtype=torch.float64)
    if topology == "chain":
        moves_MM[number_M[:-1], number_M[1:]] = moves_MM[number_M[1:], number_M[:-1]] = p ** (1 / (M - 1))
        last_M = 0.99 * number_M / (M - 1)
        emission_MA[:, 0], emission_MA[:, 2] = 0.99 - last_M, last_M
    elif topology == "full":
        moves_MM = torch.full((M, M), p / (M - 1), dtype=torch.float64).fill_diagonal_(0)
        emission_MA[number_M, number_M % 3] = 0.98
    else:
        for step in (1, -1):
            moves_MM[number_M, (number_M + step) % M] += p / 2
        emission_MA = torch.tensor([[0.9, 0.1, 0], [0.1, 0.9, 0], [0, 0.1, 0.9], [0, 0.9, 0.1]]).double()[number_M % 4]
    moves_MM += torch.diag(1 - moves_MM.sum(1))
    return torch.full((M,), 1 / M, dtype=torch.float64), moves_MM, emission_MA


def statistics(symbols_NT: Tensor, symbols: int = 3) -> dict[str, Tensor]:
    """What sequences are compared by: ``frequency`` (A,) of the symbols, ``transition`` (A, A), the share of each
    symbol behind each, and ``volatility``, the share of steps at which the symbol changes."""
    pairs = torch.bincount((symbols_NT[:, :-1] * symbols + symbols_NT[:, 1:]).flatten(), minlength=symbols**2)
    pairs_AA = pairs.reshape(symbols, symbols).double()
    return {
        "frequency": torch.bincount(symbols_NT.flatten(), minlength=symbols).double() / symbols_NT.numel(),
        "transition": pairs_AA / pairs_AA.sum(1, keepdim=True).clamp(min=1),
        "volatility": 1 - pairs_AA.trace() / pairs_AA.sum(),
    }
