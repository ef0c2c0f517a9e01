"""A run from Python: the same as ``clplat fit``, from objects or names, with no command line and no YAML."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from clplat import optim, registry
from clplat.backbones.base import Backbone
from clplat.build import assemble, backbone_maker
from clplat.errors import UsageError
from clplat.loop import Run
from clplat.notebook import Results
from clplat.ranks import Ranks
from clplat.scenario import Scenario
from clplat.settings import EvalSettings, LearnerSettings, TrainerSettings
from clplat.strategy import Strategy
from clplat.tracking.directory import locked
from clplat.tracking.directory import results as read_results
from clplat.tracking.progress import display
from clplat.tracking.record import Mirror, Record

MakeOptimizer = Callable[[list[dict[str, Any]]], torch.optim.Optimizer]


def fit(
    strategy: str | Strategy = "naive",
    scenario: str | Scenario = "permuted-digits",
    backbone: str | Callable[[int], Backbone] = "transformer",
    *,
    optimizer: MakeOptimizer = optim.adam,
    trainer: TrainerSettings | None = None,
    learner: LearnerSettings | None = None,
    evaluation: EvalSettings | None = None,
    keep_optimizer_state: bool = False,
    seed: int = 0,
    run_dir: str | Path | None = None,
    mirrors: Sequence[Mirror] = (),
    stop_after: int | None = None,
) -> Results:
    """Train a strategy on a scenario and return what ``results.json`` holds.

    Args:
        strategy: a strategy, or the name of one with its default options. It is changed by the run.
        scenario: a scenario, or the name of one with its default options.
        backbone: called with the size D of the encoded vectors, e.g. ``lambda D: GRU(D, hidden=64)``; or a name.
        optimizer: called with parameter groups, e.g. ``functools.partial(clplat.optim.sgd, lr=0.1)``.
        trainer, learner, evaluation: settings.
        keep_optimizer_state: carry the optimiser's state from experience to experience.
        seed: all randomness of the run follows from it.
        run_dir: where the run is written down and checkpointed. The same call again goes on where the run stopped, and
            returns the results of one that is done. None writes nothing.
        mirrors: where the record is shown as well.
        stop_after: stop when this many experiences have been learned; a later call goes on.

    Raises:
        UsageError: parts that do not fit; more than one device outside of a launcher.
        RunFailedError: the loss is not finite, or the run directory cannot be written.
    """
    trainer = trainer or TrainerSettings(progress="none")
    directory = None if run_dir is None else Path(run_dir)
    ranks = Ranks.from_environment(trainer.accelerator)
    if trainer.devices * trainer.num_nodes != ranks.world:
        nodes = f" on {trainer.num_nodes} nodes" if trainer.num_nodes > 1 else ""
        raise UsageError(
            f"trainer.devices={trainer.devices}{nodes}, but this process is one of {ranks.world}: start it with "
            f"torchrun --nproc-per-node {trainer.devices}{nodes}, or use the command line, which starts ranks itself"
        )
    if directory is not None:
        directory.mkdir(parents=True, exist_ok=True)
        done = read_results(directory)
        if done is not None and done.get("status") == "done":
            return Results(done)
    hints: dict[str, Any] = {}
    if isinstance(backbone, str):
        entry = registry.find("backbone", backbone)
        hints, make_backbone = entry.info, backbone_maker(entry)
    else:
        chosen = backbone

        def make_backbone(D: int, shape: tuple[int, ...]) -> Backbone:
            return chosen(D)

    def make_strategy() -> Strategy:
        made = registry.find("strategy", strategy).build() if isinstance(strategy, str) else strategy
        assert isinstance(made, Strategy)
        made.name = made.name or (strategy if isinstance(strategy, str) else type(made).__name__.lower())
        return made

    built = assemble(
        registry.find("scenario", scenario).build(seed) if isinstance(scenario, str) else scenario,
        make_strategy,
        make_backbone,
        trainer=trainer,
        learner_settings=learner or LearnerSettings(),
        eval_settings=evaluation or EvalSettings(),
        make_optimizer=optimizer,
        keep_optimizer_state=keep_optimizer_state,
        hints=hints,
        seed=seed,
        ranks=ranks,
    )
    record = Record(directory if ranks.first else None, mirrors)
    record.quiet = trainer.progress == "quiet"
    for warning in built.warnings:
        record.say(warning)
    show = display(trainer.progress if ranks.first else "none")
    run = Run(
        built.learner,
        built.scenario,
        eval_settings=built.eval_settings,
        run_dir=directory,
        record=record,
        keep_optimizer_state=built.keep_optimizer_state,
        show=show,
        stop_after=stop_after,
    )
    results = None
    hold = locked(directory) if directory is not None and ranks.first else contextlib.nullcontext()
    try:
        with hold:
            results = run.execute()
    finally:
        show.close()
        record.close(results)
    return Results(results)
