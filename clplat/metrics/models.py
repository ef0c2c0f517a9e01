"""A run's networks at the ends of its experiences, built again from its checkpoints."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from clplat import config as configuration
from clplat.build import build
from clplat.errors import ClplatError
from clplat.learner import Learner
from clplat.loop import Run
from clplat.metrics.evidence import NotMeasuredError
from clplat.ranks import Ranks
from clplat.restored import restored

BATCH = 256


class Models:
    """The networks of a run; one is held at a time.

    Args:
        run_dir: the run directory.
    """

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self._held: tuple[int, Run] | None = None

    def at(self, i: int) -> Run:
        """The run as it stood at the end of train experience i.

        Raises:
            NotMeasuredError: there is no such checkpoint.
        """
        if self._held is None or self._held[0] != i:
            try:
                job, _ = restored(self.run_dir, i + 1)
            except ClplatError as error:
                raise NotMeasuredError(
                    f"there is no checkpoint of the end of experience {i} (trainer.keep_boundaries=true keeps them): "
                    f"{str(error).splitlines()[-1]}"
                ) from None
            self._held = i, job
        return self._held[1]

    def fresh(self) -> Run:
        """The run as it stood before it began; it writes nothing."""
        config = configuration.load(self.run_dir / "config.yaml")
        built = build(config, Ranks.from_environment(config["trainer"]["accelerator"]))
        return Run(built.learner, built.scenario, eval_settings=built.eval_settings)

    def features(self, i: int, j: int) -> Tensor:
        """Features (N, D) of test experience j at the end of train experience i; steps count as samples."""
        job = self.at(i)
        with job.learner.deployed():
            found = job.learner.features_of(job.scenario.test_stream[j].dataset)
        return found.flatten(0, -2).cpu()

    def head(self, i: int) -> dict[str, Tensor]:
        """The parameters of the head at the end of train experience i."""
        return {name: p.detach().clone().cpu() for name, p in self.at(i).learner.head.named_parameters()}

    def gradient(self, i: int, of: int, samples: int) -> Tensor:
        """The gradient of the mean loss on the first samples of train experience ``of``, at the end of i, flat."""
        job = self.at(i)
        learner: Learner = job.learner
        data = job.scenario.train_stream[of].dataset
        data = data.subset(torch.arange(min(samples, len(data)))).to(learner.ranks.device, job.dtype)
        weights = [p for p in learner.network().values() if p.requires_grad]
        total = torch.zeros(sum(p.numel() for p in weights), dtype=torch.float64)
        for start in range(0, len(data), BATCH):
            x, y, task = data.rows(slice(start, start + BATCH))
            with torch.enable_grad():
                loss = learner.base_loss(learner.output_with({}, x, task).logits, y).sum() / len(data)
            found = torch.autograd.grad(loss, weights, allow_unused=True)
            flat = [torch.zeros_like(p) if g is None else g for p, g in zip(weights, found, strict=True)]
            total += torch.cat([g.flatten() for g in flat]).double().cpu()
        return total
