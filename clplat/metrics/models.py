"""A run's networks at the ends of its experiences, built again from its checkpoints."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from clplat import config as configuration
from clplat.build import build
from clplat.errors import ClplatError
from clplat.loop import Run
from clplat.metrics.evidence import NotMeasuredError
from clplat.metrics.networks import Networks, features_of, gradient_of, head_of
from clplat.ranks import Ranks
from clplat.restored import restored


class Models(Networks):
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
        job = self.at(i)
        return features_of(job.learner, job.scenario.test_stream[j].dataset)

    def head(self, i: int) -> dict[str, Tensor]:
        return head_of(self.at(i).learner)

    def gradient(self, i: int, of: int, samples: int) -> Tensor:
        job = self.at(i)
        return gradient_of(job.learner, job.scenario.train_stream[of].dataset, samples)
