"""Symbols that are drawn from probabilities, and what is asked about them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as nnf
from torch import Generator, Tensor

from clplat.metrics.measures import IGNORED
from clplat.scenario import Experience, Spec, TensorData, stream
from clplat.scenarios.generated import BLANK


def within(low: float, high: float, **given: float) -> list[str]:
    """A line for each of the options that does not lie in [low, high]."""
    return [
        f"scenario.{name}={value}: must lie between {low} and {high}"
        for name, value in given.items()
        if not low <= value <= high
    ]


def predict_next(symbols_NT: Tensor) -> tuple[Tensor, Tensor]:
    """Sequences of symbols 0, 1, ... as x and y of next-symbol prediction: token 0 says that nothing was seen yet,
    token a + 1 is symbol a, and the label at each step is the symbol that comes."""
    return nnf.pad(1 + symbols_NT[:, :-1], (1, 0), value=BLANK), symbols_NT


def next_symbol(length: int, symbols: int) -> Spec:
    """The spec of :func:`predict_next`: bits for a symbol, the fewer the better."""
    spec = Spec((length,), symbols, "domain", encoder="tokens", target="token", vocabulary=symbols + 1)
    return replace(spec, metric="bits", direction="min")


def answered_whole(length: int, tokens: int) -> Spec:
    """Sequences whose answers, of any of the tokens, are judged as a whole."""
    return Spec(
        (length,), tokens, "domain", encoder="tokens", target="token", vocabulary=tokens, metric="sequence_accuracy"
    )


def asked_where(experiences: Iterable[Experience], where: Callable[[Tensor, Tensor], Tensor]) -> tuple[Experience, ...]:
    """The same test experiences asking only some of what they ask: a slice of a scenario of tokens.

    Args:
        where: (x, y) -> a mask of y.
    """
    parts = [experience.dataset for experience in experiences]
    return stream("test", [asking(data, where(data.x, data.y)) for data in parts])


def asking(data: TensorData, asked: Tensor) -> TensorData:
    """The same samples, asking only some of what they ask."""
    return TensorData(data.x, torch.where(asked, data.y, IGNORED), data.task)


def dirichlet(alpha_A: Tensor, n: int, source: Generator) -> Tensor:
    """``n`` points (n, A) of the Dirichlet distribution with parameters ``alpha``, in double precision."""
    seed = torch.randint(2**62, (), generator=source).item()
    return torch.from_numpy(np.random.default_rng(int(seed)).dirichlet(alpha_A.double().numpy(), n))


def categorical(probabilities: Tensor, source: Generator) -> Tensor:
    """One number for each distribution in the last dimension, (..., A) -> (...)."""
    chance = torch.rand(probabilities.shape[:-1], generator=source, dtype=torch.float64).unsqueeze(-1)
    edges = probabilities.double().cumsum(-1)
    # Scaled by the last edge, which rounding may leave just below one: then no empty class can be drawn at the end.
    return (chance * edges[..., -1:] >= edges[..., :-1]).sum(-1)


def power_law(options: int, exponent: float) -> Tensor:
    """Probabilities of ranks 1, 2, ... that fall as ``rank^-exponent`` (Zipf's law), (options,)."""
    weight = torch.arange(1, options + 1, dtype=torch.float64) ** -exponent
    return weight / weight.sum()
