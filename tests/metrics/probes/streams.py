"""Small streams, and learners trained on them, for the probes."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from clplat import optim
from clplat.backbones.base import Backbone
from clplat.build import assemble
from clplat.learner import Learner
from clplat.loop import Run
from clplat.scenario import Scenario, Spec, TensorData, stream
from clplat.settings import EvalSettings, LearnerSettings, TrainerSettings
from clplat.strategy import Strategy


def language(train: Tensor | list[Tensor], test: Tensor, vocabulary: int) -> Scenario:
    """Next-token prediction over sequences (N, T + 1); one experience, or one for each tensor."""
    trains = train if isinstance(train, list) else [train]
    spec = Spec((test.shape[1] - 1,), vocabulary, "domain", encoder="tokens", target="token", vocabulary=vocabulary)
    parts = [TensorData(part[:, :-1], part[:, 1:]) for part in trains]
    tests = [TensorData(test[:, :-1], test[:, 1:]) for _ in trains]
    return Scenario(spec, stream("train", parts), stream("test", tests))


def made(
    scenario: Scenario,
    backbone: Callable[[int], Backbone],
    *,
    epochs: int = 0,
    lr: float = 3e-3,
    batch: int = 64,
    seed: int = 0,
    embedding: int = 32,
    readout: str = "last",
    strategy: Callable[[], Strategy] = Strategy,
) -> Learner:
    """A learner, trained on the whole stream; with no epochs untrained."""
    built = assemble(
        scenario,
        strategy,
        lambda D, shape: backbone(D),
        trainer=TrainerSettings(max_epochs=max(epochs, 1), batch_size=batch, progress="none", accelerator="cpu"),
        learner_settings=LearnerSettings(embedding=embedding, readout=readout),
        eval_settings=EvalSettings(),
        make_optimizer=functools.partial(optim.adam, lr=lr),
        seed=seed,
    )
    if epochs:
        Run(built.learner, built.scenario, eval_settings=built.eval_settings).execute()
    return built.learner


def source(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
