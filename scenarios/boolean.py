"""Streams of Boolean functions that are learnt in context: a new function in every sequence."""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as nnf
from torch import Generator, Tensor

from clplat.errors import UsageError
from clplat.metrics.measures import IGNORED
from clplat.scenario import Scenario, Spec, TensorData
from clplat.scenarios.generated import at_least, chosen, streams
from clplat.scenarios.regression import interleaved

Function = Literal[
    "conjunction",
    "disjunction",
    "majority",
    "sparse-parity",
    "parity",
    "dnf",
    "cnf",
    "halfspace",
    "sparse-threshold",
    "nearest-neighbour",
]
FUNCTIONS: tuple[Function, ...] = get_args(Function)
TAUGHT = ("conjunction", "disjunction")
TERMS = 3  # of a normal form


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
    - dnf: 1 where one of three conjunctions holds, of variables with 0.1, 0.1 and 0.8. With 0.35 a point is made to
      fulfil one of them, the same in all of a sequence.
    - cnf: 1 where three disjunctions hold, likewise, with 0.3 of the points made to contradict one of them.
    - halfspace: ``y = sign(w x - 1/2)`` with whole weights from -3 to 3.
    - sparse-threshold: the w of conjunctions, ``y = sign(w x - k)`` with k of -2.5, -1.5, ..., 2.5.
    - nearest-neighbour: the first quarter of the points have random values (equal ones for equal points), each later
      one that of the point before it that it agrees with in most variables, the earliest of several.

    With ``teaching`` conjunctions begin with the points that pin them down among all conjunctions: all literals hold,
    first with all other variables -1 and then 1; then each literal in turn is broken, others being -1. For disjunctions
    all of it is negated. Random points follow.

    As a stream (domain-incremental) the experiences are the kinds of functions in this order and again, or all of the
    kind ``function``. Success is accuracy, 0.5 or the more frequent value being chance; parity is not learnable in
    practice, and stays there. With few variables normal forms are mostly 1 (dnf) or mostly -1 (cnf): about 3 in 4 of 10
    variables, and half of 28. Published: dim 28, about 70 points, 15,000 steps of fresh sequences. As in the authors'
    code (satwik77/incontext-bool), but for what is said above; their teaching sequences are of conjunctions and normal
    forms without negation, and how many points have random values for neighbours is not set there.

    Args:
        experiences: how many.
        stream: one kind of functions after another, or one kind throughout.
        function: the kind of streams that are the same.
        teaching: begin with the points that pin a conjunction or disjunction down.
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
        function: Function = "conjunction",
        teaching: bool = False,
        points: int = 16,
        dim: int = 8,
        samples: int = 2048,
        test_samples: int = 512,
    ) -> None:
        problems = at_least(1, experiences=experiences, points=points, samples=samples, test_samples=test_samples)
        problems += at_least(2, dim=dim)
        kinds = [function if stream == "same" else FUNCTIONS[e % len(FUNCTIONS)] for e in range(experiences)]
        if teaching and not set(kinds) <= set(TAUGHT):
            others = ", ".join(sorted(set(kinds) - set(TAUGHT)))
            problems.append(f"scenario.teaching=true: only {' and '.join(TAUGHT)} can be taught, not {others}")
        if teaching and points < dim + 3:
            problems.append(f"scenario.points={points}: teaching {dim} variables takes up to {dim + 2}, and one to ask")
        if problems:
            raise UsageError(*problems)

        def make(e: int, part: str, n: int, source: Generator) -> TensorData:
            x_NPD, y_NP = problem(kinds[e], n, points, dim, source, teaching)
            x_NTD, value_NT1 = interleaved(x_NPD, y_NP)
            return TensorData(x_NTD, torch.where(value_NT1.isnan(), IGNORED, (value_NT1 > 0).long()))

        spec = Spec((2 * points, dim + 1), 1, "domain", target="bits")
        super().__init__(spec, *streams(seed, "icl-boolean", experiences, samples, test_samples, make))


def problem(
    kind: Function, n: int, points: int, dim: int, source: Generator, teaching: bool = False
) -> tuple[Tensor, Tensor]:
    """Points (n, points, dim) and values (n, points), all of them -1 or 1; see :class:`BooleanICL`."""
    x_NPD = 2.0 * (torch.rand((n, points, dim), generator=source) < 0.5) - 1
    if kind in ("conjunction", "disjunction", "dnf", "cnf"):
        side = 1 if kind in ("conjunction", "dnf") else -1  # by negation one is the other
        many = TERMS if kind in ("dnf", "cnf") else 1
        w_NKD = _literals(n, many, dim, 0.3 if many == 1 else 0.2, source)
        made_NP1 = torch.rand((n, points, 1), generator=source) < (0.35 if kind == "dnf" else 0.3)
        one_N11 = torch.randint(many, (n, 1, 1), generator=source)
        w_N1D = w_NKD.gather(1, one_N11.expand(-1, -1, dim))
        x_NPD = torch.where(made_NP1 & (w_N1D != 0), side * w_N1D, x_NPD)
        if teaching:
            taught_NLD, live_NL1 = lesson(side * w_N1D[:, 0])
            L = taught_NLD.shape[1]
            x_NPD[:, :L] = torch.where(live_NL1, taught_NLD, x_NPD[:, :L])
        holds_NPK = (x_NPD @ w_NKD.mT - side * (w_NKD.abs().sum(2) - 1)[:, None]).sign()
        return x_NPD, holds_NPK.amax(2) if side > 0 else holds_NPK.amin(2)
    if kind == "nearest-neighbour":
        return x_NPD, _nearest(x_NPD, max(1, points // 4), source)
    if kind == "halfspace":
        w_ND = torch.randint(-3, 4, (n, dim), generator=source).float()
        return x_NPD, ((x_NPD @ w_ND[..., None])[..., 0] - 0.5).sign()
    if kind == "sparse-threshold":
        threshold_N1 = torch.randint(-3, 3, (n, 1), generator=source) + 0.5
        w_ND = _literals(n, 1, dim, 0.3, source)[:, 0]
        return x_NPD, ((x_NPD @ w_ND[..., None])[..., 0] - threshold_N1).sign()
    if kind == "majority":
        in_ND = torch.rand((n, dim), generator=source) < 0.3
        even_N1 = in_ND.sum(1, keepdim=True) % 2 == 0
        in_ND = in_ND ^ (even_N1 & (_one_of(n, dim, source) > 0))
        return x_NPD, (in_ND[:, None] * x_NPD).sum(2).sign()
    if kind == "sparse-parity":
        in_ND = torch.zeros(n, dim).scatter(1, chosen(n, dim, 2, source), 1) > 0
    else:
        in_ND = torch.rand((n, dim), generator=source) < 0.5
    return x_NPD, torch.where(in_ND[:, None], x_NPD, 1.0).prod(2)


def lesson(w_ND: Tensor) -> tuple[Tensor, Tensor]:
    """The points that pin down the conjunction of the literals w among all conjunctions, (n, D + 2, D), and which of
    them there are, (n, D + 2, 1): two, and one more for each literal."""
    D = w_ND.shape[1]
    in_ND = w_ND != 0
    low_ND, high_ND = torch.where(in_ND, w_ND, -1.0), torch.where(in_ND, w_ND, 1.0)
    order_ND = in_ND.long().argsort(dim=1, descending=True, stable=True)  # literals first
    broken_NDD = low_ND[:, None] * (1 - 2 * nnf.one_hot(order_ND, D))
    many_N1 = 2 + in_ND.sum(1, keepdim=True)
    return torch.cat([low_ND[:, None], high_ND[:, None], broken_NDD], 1), (torch.arange(D + 2) < many_N1)[..., None]


def _literals(n: int, terms: int, dim: int, share: float, source: Generator) -> Tensor:
    """Weights (n, terms, dim) of literals: 1 or -1 with ``share`` / 2 each, else 0, but at least one is 1."""
    chance_NKD = torch.rand((n, terms, dim), generator=source)
    w_NKD = (chance_NKD < share / 2).float() - ((chance_NKD >= share / 2) & (chance_NKD < share)).float()
    one_NKD = _one_of(n * terms, dim, source).unflatten(0, (n, terms))
    return torch.where((w_NKD == 0).all(2, keepdim=True), one_NKD, w_NKD)


def _one_of(n: int, dim: int, source: Generator) -> Tensor:
    return nnf.one_hot(torch.randint(dim, (n,), generator=source), dim).float()


def _nearest(x_NPD: Tensor, given: int, source: Generator) -> Tensor:
    """Values (n, points): random for the first ``given`` points, then those of the nearest point before."""
    n, P, D = x_NPD.shape
    agreement_NPP = x_NPD @ x_NPD.mT
    y_NP = 2.0 * (torch.rand((n, P), generator=source) < 0.5) - 1
    for t in range(1, P):
        most_N, which_N = agreement_NPP[:, t, :t].max(1)
        copied_N = y_NP.gather(1, which_N[:, None])[:, 0]
        y_NP[:, t] = torch.where((most_N == D) | (t >= given), copied_N, y_NP[:, t])
    return y_NP
