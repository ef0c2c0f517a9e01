"""Metrics that are computed at each experience's end (``eval.metrics``), without checkpoints being kept for them.

What later ends compare with is kept in the run directory: ``features/e003.npz`` holds the features of the test
samples of train experience 3 at its end, and the parameters of the head. So they cost one pass over the test
experiences seen at each end, and a file of as many numbers as the features of one test experience.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from clplat import registry
from clplat.errors import UsageError
from clplat.learner import Learner
from clplat.metrics import catalogue, runs, store
from clplat.metrics.evidence import Evidence, NotMeasuredError
from clplat.metrics.networks import Networks, features_of, gradient_of, head_of
from clplat.scenario import Scenario
from clplat.settings import EvalSettings
from clplat.tracking.record import Record

FOLDER = "features"
KNOWN = ("matrix", "looks", "predictions", "model")  # what there is of a run that goes on
Kept = dict[str, Tensor]  # "features", and "head.NAME" for each of the head's parameters


class Ends:
    """The metrics of a run that were asked for by name.

    All ranks take part in the features; the first one computes and writes.

    Args:
        settings: which, and their options.
        learner, scenario: what is judged on what.
        run_dir: the run directory; None holds in memory what earlier ends were.
        record: where the values are written down.

    Raises:
        UsageError: a metric that is not there, that cannot be computed while a run goes on, or an option of one that it
            does not have; all of them at once.
    """

    def __init__(
        self, settings: EvalSettings, learner: Learner, scenario: Scenario, run_dir: Path | None, record: Record
    ) -> None:
        self.names, self.options = settings.metrics, settings.options
        self.learner, self.scenario, self.record = learner, scenario, record
        self.networks = _Networks(learner, scenario, run_dir)
        problems: list[str] = []
        needed: set[str] = set()
        for name in self.names:
            try:
                needs = catalogue.needs(name)
                registry.find("metric", name).checked(self.options.get(name, {}))
            except UsageError as error:
                problems += [f"eval.metrics: {message}" for message in error.messages]
                continue
            if late := [need for need in needs if need not in KNOWN]:
                problems.append(
                    f"eval.metrics: {name} needs a {' and a '.join(late)}, which a run that goes on has not: use "
                    f"clplat metrics RUN --add {name} when it is done"
                )
            needed.update(needs)
        self.with_networks = "model" in needed
        if self.with_networks and learner.sharded:
            problems.append("eval.metrics: those of the network need whole weights: use trainer.sharding=none")
        if problems:
            raise UsageError(*problems)

    def take(self, known: Evidence) -> None:
        """Compute all of them after the evaluation of an experience's end, and write down what was found.

        Args:
            known: what has been measured of the run.
        """
        if not self.names:
            return
        if self.with_networks:
            self.networks.stand(known)
        if not self.learner.ranks.first:
            return
        home = self.record.run_dir
        answers = None if home is None else store.Answers(home)
        whole = replace(known, predictions=answers or None, models=self.networks)
        found, why = catalogue.compute(self.names, whole, self.options)
        values = {catalogue.label(name, self.options): value for name, value in found.items()}
        reasons = {catalogue.label(name, self.options): reason for name, reason in why.items()}
        line = {"event": "metrics", "experience": known.n - 1, "step": self.learner.step}
        self.record.log(**line, values=values, reasons=reasons)
        if home is not None:
            runs.add(home, known.n, values, reasons, {})


class _Networks(Networks):
    """The network as it is, and of earlier ends what was kept."""

    def __init__(self, learner: Learner, scenario: Scenario, run_dir: Path | None) -> None:
        self.learner, self.scenario, self.run_dir = learner, scenario, run_dir
        self.now, self.own = -1, 0
        self.seen: dict[int, Tensor] = {}
        self.held: dict[int, Kept] = {}  # without a run directory

    def stand(self, known: Evidence) -> None:
        """Take the features at the end of the newest experience, on all ranks, and keep what later ends ask for."""
        self.now = known.n - 1
        self.seen = {j: features_of(self.learner, self.scenario.test_stream[j].dataset) for j in known.seen}
        kept = {f"head.{name}": weight for name, weight in head_of(self.learner).items()}
        kept["features"] = self.seen[known.test(self.now)]
        if self.run_dir is None:
            self.held[self.now] = kept
        elif self.learner.ranks.first:
            store.save(self._path(self.now), {name: value.numpy() for name, value in kept.items()})

    def features(self, i: int, j: int) -> Tensor:
        if i == self.now:
            return self.seen[j]
        if j != self.scenario.tested[i]:
            raise NotMeasuredError(f"of the end of experience {i} only the features of its own test samples are kept")
        return self._kept(i)["features"]

    def head(self, i: int) -> dict[str, Tensor]:
        return {name.removeprefix("head."): v for name, v in self._kept(i).items() if name.startswith("head.")}

    def gradient(self, i: int, of: int, samples: int) -> Tensor:
        if i != self.now:
            raise NotMeasuredError(f"the network of the end of experience {i} is gone")
        return gradient_of(self.learner, self.scenario.train_stream[of].dataset, samples)

    def _path(self, i: int) -> Path:
        assert self.run_dir is not None
        return self.run_dir / FOLDER / f"e{i:03d}.npz"

    def _kept(self, i: int) -> Kept:
        if self.run_dir is None:
            return self.held[i]
        try:
            with np.load(self._path(i), allow_pickle=False) as stored:
                return {name: torch.from_numpy(stored[name]) for name in stored.files}
        except FileNotFoundError:
            raise NotMeasuredError(
                f"nothing was kept of the end of experience {i}: eval.metrics was not asked for then"
            ) from None
