"""Streams of Boolean functions that are learnt in context: a new function in every sequence."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Generator, Tensor

from clplat.errors import UsageError
from clplat.metrics.measures import IGNORED
from clplat.scenario import Scenario, Spec, TensorData
from clplat.scenarios.generated import at_least, chosen, streams
from clplat.scenarios.regression import interleaved

Function = Literal["conjunction", "disjunction", "majority", "sparse-parity", "parity"]
FUNCTIONS: tuple[Function, ...] = ("conjunction", "disjunction", "majority", "sparse-parity", "parity")


class BooleanICL(Scenario):
    """Boolean functions in context: points and their values, the function being new in every sequence (Bhattamishra et
    al. 2024, Understanding in-context learning in transformers and LLMs by learning to learn discrete functions, arXiv
    2310.03016, section 3).

    A sequence is x_1, y_1, ..., x_P, y_P as vectors of dim + 1 numbers, (x_i, 0) and (0, y_i), with x in {-1, 1}^dim
    and y in {-1, 1}; at each x_i it is asked whether y_i is 1 (a bit; -100 elsewhere). The functions:

    - conjunction: each variable is in it, is in it negated, or is not, with 0.15, 0.15 and 0.7;
      ``y = sign(w x - (|w|_1 - 1))``. With probability 0.3 a point is made to fulfil it, or nearly all values would be
      -1. If no variable was drawn, one is.
    - disjunction: the same w, ``y = sign(w x + |w|_1 - 1)``, with points made to contradict it likewise.
    - majority: each variable is in it with 0.3; the sign of their sum; an odd number of them (one more or fewer where
      it was even), which the authors leave open.
    - sparse-parity: the product of two variables.
    - parity: the product of a random set of variables, each in it with 1/2.

    As a stream (domain-incremental) the experiences are the five kinds of functions in this order and again, or all of
    the kind ``function``. Success is accuracy, 0.5 or the more frequent value being chance; parity is not learnable in
    practice, and stays there. Not here: normal forms, threshold functions, neighbours, and teaching sequences, which
    show the points that pin a function down first. Published: dim 28, about 70 points, 15,000 steps of fresh sequences.

    Args:
        experiences: how many.
        stream: one kind of functions after another, or one kind throughout.
        function: the kind of streams that are the same.
        points: P.
        dim: variables.
        samples: training sequences in an experience.
        test_samples: test sequences in an experience.
    """

    def __init__(
        self,
        seed: int,
        *,
        experiences: int = 3,
        stream: Literal["functions", "same"] = "functions",
        function: Literal["conjunction", "disjunction", "majority", "sparse-parity", "parity"] = "conjunction",
        points: int = 16,
        dim: int = 8,
        samples: int = 2048,
        test_samples: int = 512,
    ) -> None:
        problems = at_least(1, experiences=experiences, points=points, samples=samples, test_samples=test_samples)
        problems += at_least(2, dim=dim)
        if problems:
            raise UsageError(*problems)

        def make(e: int, part: str, n: int, source: Generator) -> TensorData:
            kind = function if stream == "same" else FUNCTIONS[e % len(FUNCTIONS)]
            x_NPD, y_NP = problem(kind, n, points, dim, source)
            x_NTD, value_NT1 = interleaved(x_NPD, y_NP)
            return TensorData(x_NTD, torch.where(value_NT1.isnan(), IGNORED, (value_NT1 > 0).long()))

        spec = Spec((2 * points, dim + 1), 1, "domain", target="bits")
        super().__init__(spec, *streams(seed, "icl-boolean", experiences, samples, test_samples, make))


def problem(kind: Function, n: int, points: int, dim: int, source: Generator) -> tuple[Tensor, Tensor]:
    """Points (n, points, dim) and values (n, points), all of them -1 or 1; see :class:`BooleanICL`."""

    def random(*shape: int) -> Tensor:
        return torch.rand((n, *shape), generator=source)

    x_NPD = 2.0 * (random(points, dim) < 0.5) - 1
    one_ND = torch.nn.functional.one_hot(torch.randint(dim, (n,), generator=source), dim).float()
    if kind in ("conjunction", "disjunction"):
        chance_ND = random(dim)
        w_ND = (chance_ND < 0.15).float() - ((chance_ND >= 0.15) & (chance_ND < 0.3)).float()
        w_ND = torch.where((w_ND == 0).all(1, keepdim=True), one_ND, w_ND)
        side = 1 if kind == "conjunction" else -1
        made_NP1 = random(points, 1) < 0.3
        x_NPD = torch.where(made_NP1 & (w_ND != 0)[:, None], side * w_ND[:, None], x_NPD)
        size_N1 = w_ND.abs().sum(1, keepdim=True)
        return x_NPD, ((w_ND[:, None] * x_NPD).sum(2) - side * (size_N1 - 1)).sign()
    if kind == "majority":
        in_ND = random(dim) < 0.3
        even_N1 = in_ND.sum(1, keepdim=True) % 2 == 0
        in_ND = in_ND ^ (even_N1 & (one_ND > 0))
        return x_NPD, (in_ND[:, None] * x_NPD).sum(2).sign()
    if kind == "sparse-parity":
        in_ND = torch.zeros(n, dim).scatter(1, chosen(n, dim, 2, source), 1) > 0
    else:
        in_ND = random(dim) < 0.5
    return x_NPD, torch.where(in_ND[:, None], x_NPD, 1.0).prod(2)
