"""N-parity and N-delayed match-to-sample: what must be kept of a stream of bits grows from experience to experience."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from clplat.errors import UsageError
from clplat.metrics.measures import IGNORED
from clplat.scenario import Scenario, Spec, TensorData
from clplat.scenarios.generated import at_least, drawn_apart, streams


class NParityCurriculum(Scenario):
    """N-parity and N-delayed match-to-sample under the curricula single-head, sliding and multi-head.

    Khajehabdollahi et al. 2024, Emergent mechanisms for long timescales depend on training curriculum and affect
    performance in memory tasks (ICLR, arXiv 2309.12927), and the authors' code. A sample is a sequence of M bits b_t, M
    drawn from ``[N + 2, N + 2 + stretch * N)`` for the largest N that is asked. At its last bit one question for each
    of the N asked is put, whose answer is 0 or 1:

    - parity: ``(b_{M-N+1} + ... + b_M) mod 2``;
    - dms: 1 if ``b_{M-N+1} == b_M``.

    Each N has an output of its own, all N in the target ``bits`` at that step: this is a head for each N, without task
    labels. Inputs are +1 and -1 for a bit, 0 behind the end (the authors' bits are 0 and 1, one M for a batch). For
    parity the rate of ones is drawn for each training sequence from U(0, 1), as there, or is one half; for dms and in
    every test it is one half, so that chance is 0.5 for all N. Whether a sequence may be in the train or in the test
    stream is told by all of it but its last bit (:func:`held_out`), since there are few short ones: none is in both,
    and both answers are as likely.

    Experience e has N = first + e as its largest, and the test of experience e asks for that N alone: the matrix is
    how well each N is answered after each step of the curriculum. Training in experience e asks

    - single: this N alone (the paper's single-head networks, whose earlier readouts are kept here to be tested);
    - sliding: this and the ``window - 1`` before it;
    - multi: all from ``first`` on (multi-head: nothing is ever left out).

    There the curriculum goes on when the mean over heads and the newest head exceed 98%. ``trainer.until=0.98`` goes on
    when every N that is asked is answered that well on the batches of the last steps, after ``trainer.max_epochs`` at
    the latest. Published: N from 2 to beyond 30, 500 neurons of ``leaky-rnn``, SGD with rate 0.05
    and Nesterov momentum 0.1, clipped at norm 2, batch 128; stretch 3 (1.5 for parity in the last version of the code).
    The probe ``perturbation`` moves weights (``part=hh.``) or time constants (``part=tau``) and leaves neurons out.

    Args:
        experiences: how many N.
        task: parity or delayed match-to-sample.
        curriculum: which N are asked in training.
        first: the smallest N.
        window: how many N are asked at once when sliding.
        stretch: how much longer than N sequences become, as a multiple of N.
        rate: of ones in training sequences for parity, drawn for each sequence or one half.
        samples: training sequences in an experience.
        test_samples: test sequences in an experience.
    """

    def __init__(
        self,
        seed: int,
        *,
        experiences: int = 4,
        task: Literal["parity", "dms"] = "parity",
        curriculum: Literal["single", "sliding", "multi"] = "single",
        first: int = 2,
        window: int = 2,
        stretch: float = 3.0,
        rate: Literal["random", "half"] = "random",
        samples: int = 2000,
        test_samples: int = 500,
    ) -> None:
        problems = at_least(1, experiences=experiences, window=window, samples=samples, test_samples=test_samples)
        problems += at_least(2, first=first)
        if stretch * first < 1:
            problems.append(f"scenario.stretch={stretch}: at least {1 / max(first, 1):.2g} is needed")
        if problems:
            raise UsageError(*problems)
        largest = first + experiences - 1
        length = largest + 1 + int(stretch * largest)
        back = {"single": 1, "sliding": window, "multi": experiences}[curriculum]

        def make(e: int, name: str, n: int, source: torch.Generator) -> TensorData:
            N = first + e
            asked = range(max(0, e + 1 - back) if name == "train" else e, e + 1)

            def draw(rows: int) -> tuple[Tensor, Tensor, Tensor]:
                long_N = torch.randint(N + 2, N + 2 + int(stretch * N), (rows,), generator=source)
                rate_N1 = torch.full((rows, 1), 0.5)
                if name == "train" and task == "parity" and rate == "random":
                    rate_N1 = torch.rand((rows, 1), generator=source)
                bit_NT = (torch.rand((rows, length), generator=source) < rate_N1).long()
                bit_NT = torch.where(torch.arange(length) < long_N[:, None], bit_NT, -1)
                return bit_NT.scatter(1, long_N[:, None] - 1, 0), bit_NT, long_N

            _, bit_NT, long_N = drawn_apart(n, name == "test", seed, draw)
            y_NTK = torch.full((n, length, experiences), IGNORED)
            for k in asked:
                y_NTK[torch.arange(n), long_N - 1, k] = _answer(bit_NT, long_N, first + k, task)
            x_NT1 = torch.where(bit_NT < 0, 0, 2 * bit_NT - 1)[..., None].float()
            return TensorData(x_NT1, y_NTK)

        spec = Spec((length, 1), experiences, "domain", target="bits")
        super().__init__(spec, *streams(seed, f"n-parity/{task}", experiences, samples, test_samples, make))


def _answer(bit_NT: Tensor, long_N: Tensor, N: int, task: str) -> Tensor:
    """The answer for each sequence, (n,)."""
    last_NK = bit_NT.gather(1, long_N[:, None] - 1 - torch.arange(N))
    return last_NK.sum(1) % 2 if task == "parity" else (last_NK[:, 0] == last_NK[:, -1]).long()
