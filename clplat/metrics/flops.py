"""The operations of a training step."""

from __future__ import annotations

import contextlib

from torch.utils.flop_counter import FlopCounterMode

from clplat.learner import StepReport
from clplat.metrics.evidence import Evidence, NotMeasuredError


class _Enough(Exception):  # noqa: N818 - nobody's error: it ends a run that has shown what it costs
    pass


def flops(run: Evidence) -> int:
    """Floating-point operations of the first optimiser step of the first experience, forward and backward passes, what
    the strategy adds and all accumulated batches included.

    Matrix products, convolutions and attention are counted, as torch.utils.flop_counter does it (a multiplication and
    an addition are two); element by element operations are not, nor is what a fused kernel does that it does not know.
    """
    job = run.network().fresh()
    learner, train = job.learner, job.learner.training_step
    counts: list[int] = []

    def begin(positions: tuple[int, int], batch_idx: int) -> None:
        counts.append(counter.get_total_flops())  # what the strategy did before its first step is not the step's
        train(positions, batch_idx)

    def end(report: StepReport) -> None:
        counts.append(counter.get_total_flops())
        raise _Enough

    learner.training_step, learner.on_step = begin, end  # type: ignore[method-assign]
    job.evaluations.baseline = [None] * len(job.scenario.test_stream)  # nothing is asked of the untrained network
    job.stop_after = 1
    with FlopCounterMode(display=False) as counter, contextlib.suppress(_Enough):
        job.execute()
    if len(counts) < 2:
        raise NotMeasuredError("the strategy takes no optimiser step in the first experience")
    return counts[1] - counts[0]
