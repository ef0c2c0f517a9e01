"""A run in small: everything that a configuration names is built, and a few steps of each experience are run for real.

It is the loop's own code on a stream cut down to a few batches, so all hooks of the strategy run, in order; nothing is
written. From what it takes follows roughly what the whole run will take.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import ceil
from typing import Any

import torch

from clplat import evaluate
from clplat.build import Built, build, build_mirrors
from clplat.learner import Learner, StepReport
from clplat.loop import Run
from clplat.ranks import Ranks
from clplat.scenario import Experience, Scenario, TensorData
from clplat.settings import EvalSettings
from clplat.state import stored_bytes
from clplat.steps import Steps
from clplat.tracking.progress import Silent
from clplat.worker import set_threads

STEPS = 3  # optimiser steps of each phase: the first warms up, the quickest of the others is taken
WALKED = 50  # experiences of a longer stream that are walked through
LISTED = 20  # experiences that are listed one by one


@dataclass
class Tried:
    """A phase of an experience, of which some steps were run.

    Args:
        experience, phase: which.
        total: optimiser steps that the phase has in the real run.
        losses: the terms of the first step.
        times: when each step was done.
        learning: parameters that learn.
        optimizer_bytes: the optimiser's state.
    """

    experience: int
    phase: str
    total: int
    losses: dict[str, float]
    times: list[float]
    learning: int = 0
    optimizer_bytes: int = 0

    @property
    def seconds(self) -> float:
        """Seconds of one step."""
        return min(after - before for before, after in zip(self.times, self.times[1:], strict=False))


@dataclass
class Found:
    """What a dry run found out; sizes are those at the end of what was walked through."""

    built: Built
    walked: int
    tried: list[Tried]
    finish_seconds: float
    evaluate_seconds: float
    parameters: dict[str, int]
    weight_bytes: int
    strategy_bytes: int
    state_bytes: int
    devices: int
    steps: list[int] = field(default_factory=list)

    @property
    def train_seconds(self) -> float:
        """Seconds of training over the whole run."""
        return sum(one.total * one.seconds for one in self.tried) * len(self.steps) / self.walked


def run(config: Mapping[str, Any]) -> int:
    """Try a configuration out and print what it comes to; returns the exit code.

    Raises:
        ClplatError: what ``fit`` would end with.
    """
    devices = int(config["trainer"]["devices"])
    ranks = _first_rank(config, devices)
    torch.use_deterministic_algorithms(config["trainer"]["deterministic"])
    # Built as one of all ranks, so that what cannot be distributed is refused; then tried alone.
    built = build(config, Ranks(0, devices, ranks.device))
    built.learner.ranks = ranks
    build_mirrors(config["logger"])
    for warning in built.warnings:
        print(warning, file=sys.stderr)
    for line in lines(measure(built, devices)):
        print(line)
    return 0


def _first_rank(config: Mapping[str, Any], devices: int) -> Ranks:
    """This process in the place of the first rank: with its device and its share of the threads."""
    before = os.environ.get("LOCAL_WORLD_SIZE")
    os.environ["LOCAL_WORLD_SIZE"] = str(devices)
    try:
        ranks = Ranks.from_environment(config["trainer"]["accelerator"])
        set_threads(config["trainer"]["threads"])
    finally:
        if before is None:
            del os.environ["LOCAL_WORLD_SIZE"]
        else:
            os.environ["LOCAL_WORLD_SIZE"] = before
    return ranks


def measure(built: Built, devices: int = 1) -> Found:
    """Run the cut-down stream."""
    learner, full, settings = built.learner, built.scenario, built.learner.settings
    small = cut(full, settings.batch_size * settings.accumulate * STEPS, built.eval_settings.batch_size)
    learner.settings = replace(settings, max_epochs=1, checkpoint_every=0)
    watch = _Watch()
    job = Run(
        learner,
        small,
        eval_settings=EvalSettings(experiences="last-1", batch_size=built.eval_settings.batch_size),
        keep_optimizer_state=built.keep_optimizer_state,
        show=watch,
    )
    tried: dict[tuple[int, str], Tried] = {}
    record = learner.on_step

    def on_step(report: StepReport) -> None:
        steps = learner.steps
        assert steps is not None
        number, phase = steps.experience.current_experience, steps.phase
        if (number, phase.name) not in tried:
            data = full.train_stream[number].dataset if phase.data is None else phase.data
            total = Steps(phase, 0, steps.experience, data, settings, learner.seed).total
            losses = {name: float(value) for name, value in report.terms.items()}
            tried[number, phase.name] = Tried(number, phase.name, total, losses, [watch.began])
        one = tried[number, phase.name]
        one.times.append(time.monotonic())
        optimizer = learner.optimizers(use_pl_optimizer=False)
        assert isinstance(optimizer, torch.optim.Optimizer)
        one.learning = sum(p.numel() for group in optimizer.param_groups for p in group["params"])
        one.optimizer_bytes = stored_bytes(learner.optimizer_state())
        record(report)

    learner.on_step = on_step
    job.execute()
    learner.settings = settings
    return _found(built, len(small.train_stream), list(tried.values()), watch, devices)


def _found(built: Built, walked: int, tried: list[Tried], watch: _Watch, devices: int) -> Found:
    learner, full, settings = built.learner, built.scenario, built.learner.settings
    used = settings.batch_size * settings.accumulate * STEPS
    longer = [max(1.0, len(e.dataset) / used) for e in full.train_stream]
    # The untrained network was evaluated on one batch of each experience, then after each experience one.
    batch_seconds = min(seconds / (walked if i == 0 else 1) for i, seconds in enumerate(watch.seconds["evaluate"]))
    steps = [0] * len(full.train_stream)
    for one in tried:
        steps[one.experience] += one.total
    steps[walked:] = [steps[walked - 1]] * (len(steps) - walked)
    finishing = watch.seconds["finish"]
    return Found(
        built,
        walked,
        tried,
        finish_seconds=sum(finishing[min(i, walked - 1)] * times for i, times in enumerate(longer)),
        evaluate_seconds=batch_seconds * _evaluation_batches(full, built.eval_settings),
        parameters={name: sum(p.numel() for p in part.parameters()) for name, part in learner.named_children()},
        weight_bytes=stored_bytes(list(learner.parameters())),
        strategy_bytes=stored_bytes(learner.strategy.state_dict()),
        state_bytes=stored_bytes(learner.state_dict()),
        devices=devices,
        steps=steps,
    )


class _Watch(Silent):
    """Measures the stages of a run."""

    def __init__(self) -> None:
        self.stage, self.began = "", time.monotonic()
        self.seconds: dict[str, list[float]] = {"finish": [], "evaluate": []}

    def phase(self, experience: int, experiences: int, name: str, position: int, total: int) -> None:
        self._end()
        self.stage, self.began = name, time.monotonic()

    def evaluated(self, experience: int, experiences: int, row: Mapping[int, float], seconds: float) -> None:
        self._end()

    def _end(self) -> None:
        if self.stage in self.seconds:
            self.seconds[self.stage].append(time.monotonic() - self.began)
        self.stage = ""


def cut(scenario: Scenario, train: int, test: int) -> Scenario:
    """A scenario with about so many samples left in each experience, and the first experiences of a long one."""
    tested = scenario.tested[:WALKED]
    places = sorted(set(tested) & set(range(len(scenario.test_stream))))

    def few(stream: Sequence[Experience], which: Sequence[int], rows: int) -> list[Experience]:
        return [replace(stream[i], dataset=_few(stream[i].dataset, rows)) for i in which]

    return Scenario(
        scenario.spec,
        few(scenario.train_stream, range(len(tested)), train),
        few(scenario.test_stream, places, test),
        few(scenario.valid_stream, range(min(WALKED, len(scenario.valid_stream))), test),
        tuple(places.index(j) for j in tested) if scenario.tests else (),
        scenario.single_pass,
        {name: few(stream, places, test) for name, stream in scenario.slices.items()},
    )


def _few(data: TensorData, rows: int) -> TensorData:
    """The first rows, but of each class the same number where there are classes: a strategy may ask for each."""
    if data.y.ndim == 1 and not data.y.is_floating_point():
        labels = data.y.unique()
        of_each = max(1, rows // max(1, len(labels)))
        index = torch.cat([(data.y == label).nonzero()[:of_each, 0] for label in labels]).sort().values
    else:
        index = torch.arange(min(rows, len(data)))
    return TensorData(*data.rows(index))


def _evaluation_batches(scenario: Scenario, settings: EvalSettings) -> int:
    each = [ceil(len(e.dataset) / settings.batch_size) for e in scenario.test_stream]
    trained = range(1, len(scenario.train_stream) + 1)
    tested = scenario.tested
    after = (evaluate.chosen(settings.experiences, seen, len(each), tested) for seen in trained)
    return sum(each) + sum(each[j] for which in after for j in which)


# --- what it says ----------------------------------------------------------------------------------------------------


def lines(found: Found) -> list[str]:
    """The result in words and columns."""
    return [*_scenario(found), "", *_learner(found), "", *_steps(found), "", *_estimate(found)]


def _scenario(found: Found) -> list[str]:
    spec, stream = found.built.scenario.spec, found.built.scenario.train_stream
    tested, places = found.built.scenario.test_stream, found.built.scenario.tested
    text = [
        f"scenario      {len(stream)} experiences, {spec.setting}-incremental",
        f"sample        {'tokens ' if spec.vocabulary else ''}{spec.shape}"
        + (f", {spec.vocabulary} different tokens" if spec.vocabulary else ""),
        f"target        {spec.target}, {spec.classes} outputs; {spec.metric} ({spec.direction})",
    ]
    for i, experience in enumerate(stream):
        if LISTED // 2 <= i < len(stream) - LISTED // 2 and len(stream) > LISTED:
            if i == LISTED // 2:
                text.append(f"  ... {len(stream) - LISTED} more")
            continue
        classes = f", classes {_ranges(experience.classes_in_this_experience)}"
        text.append(
            f"  experience {i + 1}: {len(experience.dataset)} samples to train on, "
            f"{len(tested[places[i]].dataset) if places[i] < len(tested) else 0} to test on"
            f"{classes if experience.classes_in_this_experience else ''}; {found.steps[i]} steps"
        )
    return text


def _ranges(numbers: Sequence[int]) -> str:
    """``0-3, 7`` for 0, 1, 2, 3, 7."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def _learner(found: Found) -> list[str]:
    learner: Learner = found.built.learner
    T, D = learner.encoder.shape
    last = found.tried[-1]
    counts = ", ".join(f"{name} {count:,}" for name, count in found.parameters.items() if count)
    sizes = {
        "weights": found.weight_bytes,
        "gradients": last.learning * next(learner.parameters()).element_size(),
        "optimiser": last.optimizer_bytes,
        "kept by the strategy": found.strategy_bytes,
        "one checkpoint": found.state_bytes + last.optimizer_bytes,
    }
    return [
        f"encoder       {learner.encoder.name}: T = {T} steps of D = {D} values",
        f"backbone      {type(learner.backbone).__name__}, readout {learner.readout}",
        f"head          {type(learner.head).__name__}",
        f"parameters    {sum(found.parameters.values()):,} ({counts}); {last.learning:,} learn",
        *(f"{name:<22}{_size(count)}" for name, count in sizes.items()),
    ]


def _steps(found: Found) -> list[str]:
    ends = (found.tried[0].experience, found.tried[-1].experience)
    text = ["one step on one rank, run for real"]
    for one in found.tried:
        if one.experience in ends:
            losses = ", ".join(f"{name} {value:.4f}" for name, value in one.losses.items())
            text.append(f"  experience {one.experience + 1}, {one.phase}: {losses}; {one.seconds * 1000:.1f} ms")
    return text


def _estimate(found: Found) -> list[str]:
    parts = {"training": found.train_seconds, "finish": found.finish_seconds, "evaluation": found.evaluate_seconds}
    text = [
        f"the whole run: {sum(found.steps):,} steps, roughly {_time(sum(parts.values()))} on one rank ("
        + ", ".join(f"{name} {_time(seconds)}" for name, seconds in parts.items())
        + ") on a machine as busy as now"
    ]
    if found.devices > 1:
        text.append(f"{found.devices} ranks share each batch of {found.built.learner.settings.batch_size} samples")
    if found.walked < len(found.steps):
        text.append(f"only the first {found.walked} experiences were walked through")
    return [*text, "nothing was written"]


def _size(count: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.2f} GiB"


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
