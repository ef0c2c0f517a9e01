"""From a resolved configuration to objects, and the questions whether they fit together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from clplat import registry, sizing, wrapping
from clplat.backbones.base import Backbone
from clplat.backbones.encoder import Encoder, encoded_shape
from clplat.backbones.readout import readout_size
from clplat.config import parts
from clplat.errors import UsageError
from clplat.heads.head import GrowingHead, PerTaskHead, SharedHead, TiedHead
from clplat.learner import Learner
from clplat.pairing import given, missing
from clplat.randomness import derive
from clplat.ranks import Ranks
from clplat.scenario import PER_STEP, Scenario, Spec, changed
from clplat.settings import EvalSettings, LearnerSettings, TrainerSettings
from clplat.strategy import Combined, Strategy
from clplat.tracking.record import Mirror


@dataclass
class Built:
    """What a run consists of."""

    learner: Learner
    scenario: Scenario
    eval_settings: EvalSettings
    keep_optimizer_state: bool
    warnings: list[str]


def build(config: Mapping[str, Any], ranks: Ranks) -> Built:
    """Build everything that a configuration names.

    Raises:
        UsageError: parts that do not fit, with the reason and what would.
    """
    seed = int(config["seed"])
    entry = registry.find("backbone", config["backbone"]["name"])
    optimizer_options = _options(config["optimizer"])
    make = registry.find("optimizer", config["optimizer"]["name"]).load()
    return assemble(
        build_scenario(config["scenario"], seed),
        lambda: build_strategy(config["strategy"]),
        backbone_maker(entry, _options(config["backbone"])),
        trainer=TrainerSettings(**_options(config["trainer"])),
        learner_settings=LearnerSettings(**config["learner"]),
        eval_settings=EvalSettings(**config["eval"]),
        make_optimizer=lambda groups: make(groups, **optimizer_options),
        keep_optimizer_state=bool(optimizer_options.get("keep_state", False)),
        hints=entry.info,
        seed=seed,
        ranks=ranks,
    )


def assemble(
    scenario: Scenario,
    make_strategy: Callable[[], Strategy],
    make_backbone: Callable[[int, tuple[int, ...]], Backbone],
    *,
    trainer: TrainerSettings,
    learner_settings: LearnerSettings,
    eval_settings: EvalSettings,
    make_optimizer: Callable[[list[dict[str, Any]]], torch.optim.Optimizer],
    keep_optimizer_state: bool = False,
    hints: Mapping[str, Any] | None = None,
    seed: int = 0,
    ranks: Ranks | None = None,
) -> Built:
    """Put the parts of a run together.

    Args:
        make_strategy: makes the strategy, with the run's own initial randomness.
        make_backbone: called with (D, shape of a sample).
        hints: the backbone's own choice of ``encoder`` and ``readout``, for where the settings say auto.

    Raises:
        UsageError: parts that do not fit, with the reason and what would.
    """
    _check(trainer)
    if eval_settings.every < 0 or eval_settings.batch_size < 1:
        raise UsageError(
            f"eval.every={eval_settings.every} >= 0 and eval.batch_size={eval_settings.batch_size} >= 1 needed"
        )
    if eval_settings.stream == "valid":
        scenario = _judged_by_validation(scenario)
    ranks, hints, spec = ranks or Ranks(), hints or {}, scenario.spec
    torch.default_generator.manual_seed(derive(seed, "init"))
    strategy = make_strategy()
    name = _encoder(learner_settings.encoder, hints.get("encoder"), spec)
    encoder = Encoder(name, spec.shape, vocabulary=spec.vocabulary, dim=learner_settings.embedding)
    T, D = encoder.shape
    if spec.target in PER_STEP and spec.shape[0] != T:
        raise UsageError(
            f"learner.encoder={name} makes {T} steps of a sample, but each of its {spec.shape[0]} asks for an answer; "
            "leave learner.encoder=auto"
        )
    backbone = make_backbone(D, spec.shape)
    if ranks.world > 1 and any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in backbone.modules()):
        raise UsageError(
            f"{type(backbone).__name__} has batch norm, whose statistics would differ on each of {ranks.world} ranks: "
            "use trainer.devices=1, or another norm (backbone.norm=group)"
        )
    readout = learner_settings.readout if learner_settings.readout != "auto" else hints.get("readout", "last")
    width = backbone.output_size
    features = width if spec.target in PER_STEP else readout_size(readout, T, width)
    learner = Learner(
        backbone,
        _head(learner_settings.head, features, scenario, encoder),
        strategy,
        encoder=encoder,
        readout=readout,
        target=spec.target,
        settings=trainer,
        make_optimizer=make_optimizer,
        seed=seed,
        ranks=ranks,
    )
    warnings = pairing(strategy, spec, ranks.world, head=learner.head, backbone=learner.backbone)
    if spec.target in PER_STEP and not learner.backbone.causal:
        warnings.append(
            f"warning: {type(backbone).__name__} is not causal: the answer at each step is given with all later steps "
            "in sight, where it may stand"
        )
    if trainer.sharding == "fsdp":
        _check_shardable(strategy)
    if trainer.carry_state and not learner.backbone.sequential:
        raise UsageError(
            f"trainer.carry_state=true needs a backbone with a state, which {type(backbone).__name__} has not: choose "
            "one that reads a sequence, e.g. --backbone gru"
        )
    if trainer.carry_state and not spec.contiguous:
        warnings.append(
            "warning: trainer.carry_state=true, but the samples of this scenario do not go on from one another"
        )
    if scenario.single_pass and trainer.max_epochs > 1:
        warnings.append(
            f"warning: each sample of this stream is meant to be seen once, but trainer.max_epochs={trainer.max_epochs}"
        )
    strategy.attach(learner)
    if trainer.precision == "64":
        learner.double()
    return Built(learner, scenario, eval_settings, keep_optimizer_state, warnings)


def backbone_maker(
    entry: registry.Entry, options: Mapping[str, Any] | None = None
) -> Callable[[int, tuple[int, ...]], Backbone]:
    """What makes a backbone of the registry for (D, shape of a sample); most do not ask for the shape.

    Args:
        options: the entry's own and those of :class:`clplat.sizing.Sizing`; those not given at their defaults.
    """

    def make(D: int, shape: tuple[int, ...]) -> Backbone:
        given = (D, shape) if entry.load().takes_shape else (D,)
        return sizing.sized(entry, options or {}, lambda own: entry.build(*given, **own))

    return make


def build_scenario(section: Mapping[str, Any], seed: int) -> Scenario:
    """The scenario of a configuration, with the options of every scenario applied."""
    return wrapping.built(registry.find("scenario", section["name"]), _options(section), seed)


def build_strategy(section: Mapping[str, Any]) -> Strategy:
    """One strategy, or several as one."""
    built: dict[str, Strategy] = {}
    for name, options in parts(section):
        built[name] = registry.find("strategy", name).build(**options)
        built[name].name = name
    if len(built) == 1:
        return next(iter(built.values()))
    return Combined({name.replace(".", "_"): strategy for name, strategy in built.items()})


def build_mirrors(section: Mapping[str, Any]) -> list[Mirror]:
    """The mirrors that ``--logger`` names."""
    return [registry.find("logger", name).build(**options) for name, options in parts(section)]


def pairing(
    strategy: Strategy,
    spec: Spec,
    world: int = 1,
    *,
    head: nn.Module | None = None,
    backbone: Backbone | None = None,
) -> list[str]:
    """Warnings about a pairing of strategy and scenario that is known not to work well.

    Args:
        head: the learner's; None takes the one that suits the scenario.
        backbone: the learner's; None takes one that suits the strategy.

    Raises:
        UsageError: the pairing is impossible; says why, and what would fit.
    """
    each: Sequence[Strategy] = list(strategy) if isinstance(strategy, Combined) else [strategy]
    gives = given(spec, head=head, backbone=backbone)
    problems = []
    for part in each:
        problems += missing(part.name, part.needs, gives)
        if world > 1 and not part.distributed:
            problems.append(f"{part.name} cannot run on several ranks: use trainer.devices=1")
    if problems:
        raise UsageError(*problems)
    hopeless = [part.name for part in each if spec.setting in part.hopeless]
    if hopeless and len(hopeless) == len(each):
        names = "+".join(hopeless)
        return [
            f"warning: {names} alone is known to forget nearly everything when classes come one after another; "
            f"rehearsal helps: --strategy er, or {names}+er"
        ]
    return []


def _check_shardable(strategy: Strategy) -> None:
    each: Sequence[Strategy] = list(strategy) if isinstance(strategy, Combined) else [strategy]
    refusing = [part.name for part in each if not part.shardable]
    if refusing:
        fitting = [name for name in registry.names("strategy") if registry.find("strategy", name).load().shardable]
        raise UsageError(
            f"{' and '.join(refusing)} cannot work on weights that are cut among the ranks: use trainer.sharding=none, "
            f"or one of {', '.join(fitting)}"
        )


def _judged_by_validation(scenario: Scenario) -> Scenario:
    """The same streams, with validation samples in the place of the test samples."""
    if not scenario.valid_stream:
        raise UsageError(
            "eval.stream=valid: this scenario keeps no validation samples; set a share of them, such as "
            "scenario.validation=0.1"
        )
    return changed(scenario, test_stream=scenario.valid_stream, valid_stream=(), slices={})


def _options(section: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in section.items() if key != "name"}


def _encoder(wanted: str, backbones_own: str | None, spec: Spec) -> str:
    """The encoder asked for, or the first that fits the samples: the backbone's, the scenario's, one flat vector."""
    if wanted != "auto":
        return wanted
    for name in (backbones_own, spec.encoder):
        if name:
            try:
                T, _ = encoded_shape(name, spec.shape, vocabulary=spec.vocabulary)
            except UsageError:
                continue
            if spec.target not in PER_STEP or spec.shape[0] == T:
                return name
    return "tokens" if spec.vocabulary else "vectors"


def _head(wanted: str, features: int, scenario: Scenario, encoder: Encoder) -> nn.Module:
    spec = scenario.spec
    if wanted == "tied":
        if encoder.embedding is None or spec.target != "token" or spec.classes > encoder.embedding.num_embeddings:
            raise UsageError(
                "learner.head=tied needs a scenario whose answers are tokens of its inputs, which this one's are not: "
                "choose shared, or e.g. --scenario part-of-speech"
            )
        return TiedHead(features, encoder.embedding, spec.classes)
    if wanted == "per-task" and spec.setting != "task":
        raise UsageError(
            "learner.head=per-task needs task labels, which this scenario does not give: choose a task-incremental "
            "stream, e.g. --scenario split-digits scenario.setting=task"
        )
    if wanted == "growing":
        if spec.target != "class":
            raise UsageError("learner.head=growing needs a classification scenario: choose shared")
        return GrowingHead(features, spec.classes)
    if wanted == "shared" or spec.setting != "task":
        return SharedHead(features, spec.classes)
    return PerTaskHead(features, spec.classes_per_task or (spec.classes,) * scenario.tasks)


def _check(trainer: TrainerSettings) -> None:
    """Numbers that make no sense, all at once."""
    least = {
        "max_epochs": 1,
        "until_window": 1,
        "batch_size": 1,
        "accumulate": 1,
        "devices": 1,
        "num_nodes": 1,
        "keep_last": 1,
        "log_every": 1,
        "dispatch": 1,
    }
    problems = [
        f"trainer.{name}={getattr(trainer, name)}: at least {low} is needed"
        for name, low in {**least, "checkpoint_every": 0}.items()
        if getattr(trainer, name) < low
    ]
    if trainer.clip is not None and trainer.clip <= 0:
        problems.append(f"trainer.clip={trainer.clip}: must be positive, or null for no clipping")
    if trainer.threads is not None and trainer.threads < 1:
        problems.append(f"trainer.threads={trainer.threads}: at least 1 is needed")
    if problems:
        raise UsageError(*problems)
