"""The norm of the gradient that is written down, against what the weights did."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from clplat import gradients
from clplat.learner import StepReport
from clplat.loop import Run
from clplat.tracking.record import Record
from tests.cases import before, built

RATE = 0.01
SGD = ["optimizer=sgd", f"optimizer.lr={RATE}", "trainer.precision=64", "scenario.experiences=1", "eval.every=0"]


class Kept(Record):
    """A record that keeps the lines of training."""

    def __init__(self) -> None:
        super().__init__(None)
        self.trained: list[dict[str, Any]] = []

    def log(self, use: Any = None, /, **line: Any) -> None:
        if line["event"] == "train":
            self.trained.append(line)


def trained(*options: str) -> tuple[list[dict[str, Any]], list[float]]:
    """The lines of a run with plain gradient descent, and how far each step went."""
    one, record = built("naive", *SGD, *options), Kept()
    run = Run(one.learner, one.scenario, eval_settings=one.eval_settings, record=record)
    moved: list[float] = []
    weights = [torch.nn.utils.parameters_to_vector(one.learner.parameters()).detach().clone()]

    def on_step(report: StepReport) -> None:
        weights.append(torch.nn.utils.parameters_to_vector(one.learner.parameters()).detach().clone())
        moved.append(float((weights[-1] - weights[-2]).norm()))
        run._on_step(report)

    one.learner.on_step = on_step
    run.execute()
    return record.trained, moved


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_step_of_gradient_descent_is_the_rate_times_the_norm(accumulate: int) -> None:
    """||theta' - theta|| = lr ||g||, also where several batches make one step."""
    lines, moved = trained("trainer.clip=null", "trainer.log_every=2", f"trainer.accumulate={accumulate}")
    assert len(lines) == len(moved) // 2 > 2
    assert [line["grad_norm"] for line in lines] == pytest.approx([m / RATE for m in moved[1::2]], rel=1e-9)
    assert [line["lr"] for line in lines] == [[RATE]] * len(lines)


def test_a_step_that_is_clipped_is_shorter_than_the_norm_that_is_written_down() -> None:
    free, moved = trained("trainer.clip=null", "trainer.log_every=1")
    largest = free[0]["grad_norm"] / 3
    lines, shortened = trained(f"trainer.clip={largest}", "trainer.log_every=1")
    assert lines[0]["grad_norm"] == free[0]["grad_norm"]
    assert shortened[0] == pytest.approx(RATE * largest, rel=1e-5)  # it is divided by the norm and a millionth
    assert moved[0] == pytest.approx(3 * shortened[0], rel=1e-5)


def test_the_norm_is_taken_after_the_strategy_and_only_for_steps_that_are_written_down() -> None:
    one = built("naive", *SGD, "trainer.clip=null", "trainer.log_every=3")
    reports: list[StepReport] = []

    def same(learner: Any) -> None:
        for p in learner.parameters():
            p.grad = torch.full_like(p, 2.0)

    before(one.learner.strategy, "edit_gradients", same)
    run = Run(one.learner, one.scenario, eval_settings=one.eval_settings)
    one.learner.on_step = reports.append
    run.execute()
    entries = sum(p.numel() for p in one.learner.parameters())
    norms = [None if report.grad_norm is None else float(report.grad_norm) for report in reports]
    expected = [2 * entries**0.5 if report.step % 3 == 0 else None for report in reports]
    assert norms == pytest.approx(expected)


def test_each_group_of_parameters_has_its_rate() -> None:
    """Of one that all share, one is told."""
    one = built("naive", *SGD, "trainer.log_every=1")
    groups = one.learner.learning_groups
    rates = iter([[RATE, 0.5], [0.5, 0.5]])

    def halves() -> list[dict[str, Any]]:
        (group,) = groups()
        first, second = next(rates)
        parameters = group["params"]
        return [{"params": parameters[:1], "lr": first}, {"params": parameters[1:], "lr": second}]

    one.learner.learning_groups = halves  # type: ignore[method-assign]
    record = Kept()
    Run(one.learner, one.scenario, eval_settings=one.eval_settings, record=record).execute()
    assert {tuple(line["lr"]) for line in record.trained} == {(RATE, 0.5)}


def test_nothing_that_has_a_gradient_has_no_norm() -> None:
    still = torch.nn.Parameter(torch.ones(2))
    assert gradients.norm([still]) is None
    assert gradients.clip([still], 1.0) is None
    still.grad = torch.tensor([3.0, 4.0])
    assert gradients.clip([still], 1.0) == 5.0
    torch.testing.assert_close(still.grad, torch.tensor([0.6, 0.8]))
