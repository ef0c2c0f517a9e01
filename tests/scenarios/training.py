"""A network that is trained on a scenario through the engine, and can then be asked."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from clplat import optim
from clplat.backbones.base import Backbone
from clplat.build import assemble
from clplat.learner import Learner
from clplat.loop import Run
from clplat.scenario import Scenario
from clplat.settings import EvalSettings, LearnerSettings, TrainerSettings
from clplat.strategy import Strategy


@dataclass
class Trained:
    """A trained learner with what its run reports."""

    learner: Learner
    results: dict[str, Any]

    @property
    def last(self) -> list[float]:
        """The primary metric on each test experience at the end."""
        return self.results["matrix"][-1]

    def answers(self, x: Tensor) -> Tensor:
        """What the head says to samples without task labels."""
        with self.learner.evaluating():
            return self.learner.respond(x, torch.zeros(len(x), dtype=torch.long), None).logits


def trained(
    scenario: Scenario,
    network: Callable[[int], Backbone],
    *,
    epochs: int,
    lr: float = 5e-3,
    batch: int = 128,
    embedding: int = 16,
    clip: float | None = 1.0,
) -> Trained:
    """Plain training with Adam on a scenario, experience after experience, in this process.

    Args:
        network: makes the backbone for inputs of that many values.
    """
    built = assemble(
        scenario,
        Strategy,
        lambda D, shape: network(D),
        trainer=TrainerSettings(
            max_epochs=epochs, batch_size=batch, clip=clip, progress="none", accelerator="cpu", threads=1
        ),
        learner_settings=LearnerSettings(embedding=embedding),
        eval_settings=EvalSettings(),
        make_optimizer=functools.partial(optim.adam, lr=lr),
    )
    run = Run(built.learner, built.scenario, eval_settings=built.eval_settings, run_dir=None)
    return Trained(built.learner, run.execute())
