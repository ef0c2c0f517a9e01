"""The experience loop: what happens in a run, in order, and how it goes on after it was stopped anywhere.

An experience is train (its phases), finish, evaluate. A checkpoint stands before ``finish`` and after it, and every
``trainer.checkpoint_every`` optimiser steps inside training. Everything else, the order of samples, noise, which lines
are in the record, follows from the checkpoint and the configuration alone.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from clplat import checkpoint, faults, lightning, sharding
from clplat.backbones.base import State
from clplat.criterion import Criterion
from clplat.errors import UsageError
from clplat.evaluations import Evaluations
from clplat.heads.head import GrowingHead
from clplat.identity import Identity
from clplat.lanes import Lanes
from clplat.learner import Learner, StepReport
from clplat.metrics import cost, measures
from clplat.metrics.ends import Ends
from clplat.probing import Probes
from clplat.randomness import derive
from clplat.scenario import Experience, Scenario
from clplat.settings import EvalSettings
from clplat.state import weights_sha256
from clplat.steps import Steps
from clplat.strategy import Phase
from clplat.tracking.progress import Display, Silent
from clplat.tracking.record import Record
from clplat.tracking.stopwatch import Stopwatch
from clplat.tracking.use import Use

TRAIN, FINISH, EVALUATE = "train", "finish", "evaluate"


class Run:
    """One run of a learner through a scenario.

    Args:
        learner, scenario: what learns from what.
        eval_settings: what is evaluated after each experience.
        run_dir: where checkpoints are read from, on every rank; None keeps none.
        record: where the run is written down, by the first rank; one that has no directory writes nothing.
        keep_optimizer_state: carry the optimiser's state from experience to experience.
        show: shows progress.
        config: the resolved configuration, for checkpoints and mirrors.
        stop_after: stop when this many experiences have been learned; None goes to the end.
    """

    def __init__(
        self,
        learner: Learner,
        scenario: Scenario,
        *,
        eval_settings: EvalSettings,
        run_dir: Path | None = None,
        record: Record | None = None,
        keep_optimizer_state: bool = False,
        show: Display | None = None,
        config: Mapping[str, Any] | None = None,
        stop_after: int | None = None,
    ) -> None:
        self.learner, self.scenario, self.eval_settings = learner, scenario, eval_settings
        self.run_dir, self.record = run_dir, record or Record(None)
        self.show: Display = show or Silent()
        self.keep_optimizer_state = keep_optimizer_state
        self.config = dict(config or {})
        self.identity = Identity(self.config, scenario)
        self.probes = Probes(eval_settings, learner, scenario)
        self.stop_after = len(scenario.train_stream) if stop_after is None else stop_after
        self.settings, self.ranks = learner.settings, learner.ranks
        self.dtype = next(learner.parameters()).dtype
        # Where the run stands; all of it goes into checkpoints.
        self.number, self.marker, self.phase, self.position = 0, TRAIN, 0, 0
        self.evaluations = Evaluations(learner, scenario, eval_settings, run_dir, self.record)
        self.ends = Ends(eval_settings, learner, scenario, run_dir, self.record)
        self.carried: dict[str, Any] | None = None  # the optimiser's state of the last main phase
        self.watch, self.use = Stopwatch(), Use(self.ranks, self.record.say)
        self._restored_optimizer: dict[str, Any] | None = None
        self._restored_lanes: State = None
        self._restored_recent: list[list[float]] = []
        self._restored = False
        self._adapted = self._started = -1  # the last experience that structure was grown for, that was begun
        learner.on_step, learner.save, learner.note = self._on_step, self._save, self.record.say

    # --- the run

    def execute(self) -> dict[str, Any]:
        """Run from the newest good checkpoint, or from the start, to the end; returns what ``results.json`` holds.

        Raises:
            Preempted: a signal came; a checkpoint says where to go on.
            UsageError: the checkpoints are of another run.
            RunFailedError: the loss is not finite, or the run directory cannot be read or written.
        """
        if not self._restored:
            self.restore()
        stream = self.scenario.train_stream
        if not self.evaluations.begun:
            self._adapt(stream[0])  # the untrained network is that of the first experience
            self._evaluate(-1)
        while self.number < min(self.stop_after, len(stream)):
            experience = stream[self.number]
            if self.marker == TRAIN:
                self._begin(experience)
                self._train(experience)
                self.marker = FINISH
                self._save()
            if self.marker == FINISH:
                self._finish(experience)
                self.marker = EVALUATE
                self._save()
            self._evaluate(self.number)
            self.ends.take(self.evaluations.known())
            self.probes.take(self.number + 1, self.record)
            self.number, self.marker, self.phase, self.position = self.number + 1, TRAIN, 0, 0
        return self._results()

    def _begin(self, experience: Experience) -> None:
        """Grow structure for an experience and let the strategy start; after a resume both have happened already."""
        self._adapt(experience)
        if self._started < experience.current_experience:
            self._seed("start", experience)
            self.learner.strategy.start(self.learner, experience)
            self._started = experience.current_experience

    def _adapt(self, experience: Experience) -> None:
        """Grow structure once; replayed for all experiences so far when a run goes on."""
        self.learner.experience = experience
        if self._adapted < experience.current_experience:
            self._seed("adapt", experience)
            self.learner.strategy.adapt(self.learner, experience)
            if isinstance(self.learner.head, GrowingHead):
                self.learner.head.grow(1 + max(experience.classes_in_this_experience))
            self.learner.to(self.ranks.device, self.dtype)
            self._adapted = experience.current_experience

    def _train(self, experience: Experience) -> None:
        phases = list(self.learner.strategy.phases(self.learner, experience))
        for number in range(self.phase, len(phases)):
            self.phase = number
            self._fit(phases[number], number, experience)
            self.position = 0
        self.phase = 0

    def _fit(self, phase: Phase, number: int, experience: Experience) -> None:
        learner = self.learner
        data = (phase.data or experience.dataset).to(self.ranks.device, self.dtype)
        carries = self.settings.carry_state and phase.data is None and phase.loss is None
        lanes = Lanes(self.settings.batch_size, self.ranks) if carries else None
        if lanes is not None and self._restored_lanes is not None:
            lanes.load(self._restored_lanes)
        main, until = phase.name == "train", self.settings.until
        criterion = None
        if main and phase.loss is None and until is not None:
            criterion = Criterion(until, self.settings.until_window, smaller=measures.first_is_error(learner.target))
            criterion.recent = self._restored_recent
        steps = Steps(phase, number, experience, data, self.settings, learner.seed, self.position, lanes, criterion)
        learner.data, learner.steps, learner.experience = data, steps, experience
        self.show.phase(
            experience.current_experience, len(self.scenario.train_stream), phase.name, self.position, steps.total
        )
        if self.position == 0 and phase.begin is not None:
            self._seed(f"begin/{phase.name}", experience)
            phase.begin(learner)
        if not steps.over:
            learner.restore_optimizer = self._restored_optimizer
            if self.position == 0 and main and self.keep_optimizer_state:
                learner.restore_optimizer, learner.restore_fitting = self.carried, True
            learner.train()
            trainer = lightning.trainer(self.settings, self.ranks)
            self.watch.start(self.position)
            trainer.fit(learner, train_dataloaders=steps)
            self.watch.stop()
            if main and self.keep_optimizer_state:
                self.carried = trainer.optimizers[0].state_dict()
            learner.to(self.ranks.device)  # Lightning takes it back to the CPU
        elif main and self.keep_optimizer_state and self._restored_optimizer is not None:
            self.carried = self._restored_optimizer  # it was stopped between its last step and its end
        if steps.total:
            first = self.watch.first
            samples = steps.samples(steps.position) - steps.samples(first)
            self._time(phase.name, self.watch.phase, steps=steps.position - first, samples=samples)
        self._restored_optimizer = self._restored_lanes = None
        self._restored_recent = []
        learner.data = learner.steps = None

    def _finish(self, experience: Experience) -> None:
        self.show.phase(experience.current_experience, len(self.scenario.train_stream), "finish", 0, 0)
        self._seed("finish", experience)
        self.learner.experience = experience
        started = time.monotonic()
        faults.point("finish")
        self.learner.strategy.finish(self.learner, experience)
        faults.point("finished")
        self._time("finish", time.monotonic() - started)

    def _time(self, phase: str, seconds: float, **done: int) -> None:
        """Write down how long a phase took."""
        line = {"event": "phase", "experience": self.number, "phase": phase, **done}
        self.record.timing(**line, seconds=round(seconds, 4))

    def _evaluate(self, after: int) -> None:
        """Evaluate at the end of an experience; ``after`` is -1 for the untrained network."""
        started, experiences = time.monotonic(), len(self.scenario.train_stream)
        self.show.phase(max(after, 0), experiences, "evaluate", 0, 0)
        row = self.evaluations.end(after)
        self.record.timing(event="evaluate", experience=after, seconds=round(time.monotonic() - started, 4))
        self.record.heartbeat(experience=self.number, step=self.learner.step)
        if after >= 0:
            known = {j: value for j, value in enumerate(row) if value is not None}
            self.show.evaluated(after, experiences, known, self.record.seconds)

    def _results(self) -> dict[str, Any]:
        state = sharding.whole(self.learner.state_dict())
        status = "done" if self.number == len(self.scenario.train_stream) else "stopped"
        results = {
            "status": status,
            **self.evaluations.results(),
            "steps": self.learner.step,
            **cost.sizes(self.learner, state),
            "weights_sha256": weights_sha256(state),
            "seconds": round(self.record.seconds, 3),
            "train_seconds": round(self.watch.total, 3),
            "peak_bytes": cost.peak_bytes(self.ranks.device),
        }
        if reported := self.learner.strategy.report():
            results["strategy"] = reported
        if self.ranks.first:
            if status == "done":
                self.record.write("results.json", results)
            self.record.status(status, experience=self.number, step=self.learner.step)
        return results

    # --- steps and checkpoints

    def _seed(self, purpose: str, experience: Experience) -> None:
        torch.default_generator.manual_seed(derive(self.learner.seed, purpose, experience.current_experience))

    def _on_step(self, report: StepReport) -> None:
        """After each optimiser step: the record, and a checkpoint when one is due."""
        steps = self.learner.steps
        assert steps is not None
        self.position = steps.position
        loss = None
        if self.settings.logs(report.step):
            loss = self._log(report, steps.phase.name)
            self.record.heartbeat(experience=self.number, step=report.step)
        self.show.advance(loss)
        if self.eval_settings.every and report.step % self.eval_settings.every == 0:
            self.evaluations.look(self.number)
        every = self.settings.checkpoint_every
        if every and report.step % every == 0 and not steps.over:
            terms = self._global(report)
            if not all(map(math.isfinite, terms.values())):
                raise self.learner.not_finite(report.step)
            self._save()

    def _log(self, report: StepReport, phase: str) -> float:
        """Write down what a step did, and what the ranks used meanwhile; returns the loss."""
        terms = self._global(report)
        line: dict[str, Any] = {"experience": self.number, "phase": phase, "step": report.step}
        line["lr"] = self.learner.group_rates()
        if report.grad_norm is not None:
            line["grad_norm"] = float(report.grad_norm)
        self.record.log(self.use.taken(), event="train", **line, terms=terms)
        return terms["loss"]

    def _global(self, report: StepReport) -> dict[str, float]:
        """The step's loss terms over all ranks."""
        values = self.ranks.all_reduce(torch.stack([t.double() for t in report.terms.values()]))
        return dict(zip(report.terms, values.tolist(), strict=True))

    def _save(self) -> None:
        """Write a checkpoint of the very moment: only between two optimiser steps, by the first rank."""
        writes = self.ranks.first and self.record.run_dir is not None
        lanes = None if self.learner.steps is None else self.learner.steps.lanes
        together = self.learner.sharded or lanes is not None  # what is cut among the ranks is put together by all
        if not writes and not (together and self.run_dir is not None):
            return
        now = time.monotonic()
        inside = self.marker == TRAIN and self.learner.steps is not None and self.position > 0
        model = sharding.whole(self.learner.state_dict())
        optimizer = sharding.whole(self.learner.optimizer_state()) if inside else None
        carried = sharding.whole(self.carried)
        states = lanes.whole() if lanes is not None and inside else None
        criterion = None if self.learner.steps is None else self.learner.steps.criterion
        if not writes:
            return
        assert self.record.run_dir is not None
        timed = self.watch.state()
        lengths = self.record.lengths()
        state = {
            "model": model,
            "optimizer": optimizer,
            "carried": carried,
            "lanes": states,
            "progress": {
                "experience": self.number,
                "marker": self.marker,
                "phase": self.phase,
                "position": self.position,
                "recent": criterion.recent if criterion is not None and inside else [],
                "step": self.learner.step,
                **self.evaluations.state(),
                "lengths": lengths,
                "seconds": self.record.seconds,
                **timed,
            },
        }
        path = checkpoint.save(
            self.record.run_dir / "checkpoints",
            state,
            experience=self.number,
            marker=self.marker,
            keep=self.settings.keep_last,
            keep_boundaries=self.settings.keep_boundaries,
            about={"step": self.learner.step, "lengths": lengths, **self.identity.about(self.number + 1)},
        )
        self.record.timing(
            event="checkpoint",
            name=path.name,
            bytes=(path / "state.pt").stat().st_size,
            seconds=round(time.monotonic() - now, 4),
        )

    def restore(self, learned: int | None = None) -> str | None:
        """Go to where the newest good checkpoint stands; with none, start with an empty record. Once, before all else.

        Args:
            learned: go to the end of that many experiences instead.

        Returns:
            The checkpoint's name.

        Raises:
            UsageError: the checkpoints are of another run, or of one that has come too far.
            RunFailedError: no checkpoint is whole.
        """
        self._restored = True
        self.learner.to(self.ranks.device)
        if self.learner.sharded:
            sharding.shard(self.learner.backbone, self.ranks)
        folder = self.run_dir / "checkpoints" if self.run_dir is not None else None

        def misfit(manifest: Mapping[str, Any]) -> str | None:
            if learned not in (None, checkpoint.ended(manifest)):
                return f"it is not from the end of {learned} experiences"
            return self.identity.misfit(manifest)

        found = checkpoint.newest(folder, misfit) if folder is not None else None
        self.ranks.barrier()  # nobody writes, or tidies up, before all have read
        if found is None:
            self.record.begin({}, 0.0, self.config)
            return None
        progress = found.state["progress"]
        self.number, self.marker = progress["experience"], progress["marker"]
        self.phase, self.position = progress["phase"], progress["position"]
        self.evaluations.load(progress)
        self._restored_recent = progress.get("recent", [])  # there since training can end by a criterion
        self.watch.load(progress)
        if self.number >= self.stop_after:
            raise UsageError(
                f"it cannot stop after {self.stop_after} experiences: {self.number} have been learned already, and "
                f"experience {self.number} is being learned"
            )
        if self.evaluations.new:
            self._adapt(self.scenario.train_stream[0])
        longer = self.evaluations.lengthen()
        for number in range(self.number + 1):  # not a slice, which would make all of a lazy stream at once
            self._adapt(self.scenario.train_stream[number])
        self._started = self.number
        try:
            self.learner.load_state_dict(sharding.cut_state(found.state["model"], self.learner.state_dict()))
        except RuntimeError as error:
            problem = "; ".join(line.strip() for line in str(error).splitlines()[1:4])
            raise UsageError(
                f"checkpoint {found.path.name} does not fit this network and strategy: {problem}"
            ) from None
        self.learner.to(self.ranks.device)
        sharding.cut_remembered(self.learner.strategy, self.learner.network())
        self.learner.step = progress["step"]
        self._restored_optimizer, self.carried = found.state["optimizer"], found.state["carried"]
        self._restored_lanes = found.state.get("lanes")  # there since states can be carried
        self.record.begin(progress["lengths"], progress["seconds"], self.config)
        self.ranks.barrier()  # the record has been cut to what the checkpoint knew
        self.evaluations.resume()
        for problem in found.passed_over:
            self.record.say(f"warning: {problem}")
        where = f"step {self.learner.step}, {found.bytes / 1e6:.1f} MB"
        self.record.say(f"going on from checkpoint {found.path.name} ({where})")
        if longer:
            self.evaluations.note_longer(self.number)
            self.record.say(f"the stream is longer than before by {longer} experiences")
        return found.path.name
