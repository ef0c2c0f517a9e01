"""The operations of a training step."""

from __future__ import annotations

from torch.utils.flop_counter import FlopCounterMode

from clplat.learner import StepReport
from clplat.metrics.evidence import Evidence, NotMeasuredError


class _Enough(Exception):  # noqa: N818 - nobody's error: it ends a run that has shown what it costs
    pass


def flops(run: Evidence) -> int:
    """Floating-point operations of the second optimiser step of the first experience, forward and backward passes, what
    the strategy adds and all accumulated batches included; of the first step where there is no second.

    Matrix products, convolutions and attention are counted, as torch.utils.flop_counter does it (a multiplication and
    an addition are two); element by element operations are not, nor is what a fused kernel does that it does not know.
    """
    job = run.network().fresh()
    found: list[int] = []

    def count(report: StepReport) -> None:
        found.append(counter.get_total_flops())
        if len(found) == 2:
            raise _Enough

    job.learner.on_step = count
    job.evaluations.baseline = [None] * len(job.scenario.test_stream)  # nothing is asked of the untrained network
    job.stop_after = 1
    with FlopCounterMode(display=False) as counter:
        try:
            job.execute()
        except _Enough:
            return found[1] - found[0]
    if not found:
        raise NotMeasuredError("the strategy takes no optimiser step in the first experience")
    return found[0]
