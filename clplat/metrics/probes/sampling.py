"""What several probes share: samples drawn by the run's seed, and looks into the network while it answers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from clplat.backbones.base import Backbone
from clplat.backbones.recording import watched
from clplat.backbones.seen import Seen
from clplat.errors import UsageError
from clplat.metrics.measures import IGNORED
from clplat.scenario import TensorData

if TYPE_CHECKING:
    from clplat.learner import Learner
    from clplat.scenario import Scenario

BATCH = 64


def draw(learner: Learner, data: TensorData, samples: int, purpose: str, *numbers: int) -> TensorData:
    """Up to ``samples`` different samples, in the order of the data, always the same ones for a seed and purpose."""
    order = torch.randperm(len(data), generator=learner.generator(purpose, *numbers))
    chosen = data.subset(order[:samples].sort().values)
    return chosen.to(learner.ranks.device, next(learner.parameters()).dtype)


def draw_tests(learner: Learner, scenario: Scenario, samples: int, purpose: str) -> TensorData:
    """About ``samples`` samples of all test experiences together, as many of each."""
    stream = scenario.test_stream
    each = -(-samples // len(stream))
    parts = [draw(learner, e.dataset, each, purpose, j) for j, e in enumerate(stream)]
    x, y, task = (torch.cat([getattr(part, name) for part in parts]) for name in ("x", "y", "task"))
    return TensorData(x, y, task)


def batches(data: TensorData, size: int = BATCH) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """x, y and task, ``size`` samples at a time."""
    for start in range(0, len(data), size):
        yield data.rows(slice(start, start + size))


def residuals(backbone: Backbone, x_BTD: Tensor) -> list[Tensor]:
    """What each layer hands on, (B, T, W) each; of a network that cannot be taken apart its output."""
    found, h_BTW = [], backbone.enter(x_BTD)
    for number in range(backbone.layer_count):
        h_BTW = backbone.layer(number, h_BTW)
        found.append(h_BTW)
    return found


def layer_outputs(backbone: Backbone, x_BTD: Tensor) -> list[Tensor]:
    """The encoded input, then what each layer hands on, (B, T, W) each; of the last what the head sees."""
    *between, last = residuals(backbone, x_BTD)
    return [x_BTD, *between, backbone.leave(last)]


def look(learner: Learner, x: Tensor, task: Tensor) -> tuple[Tensor, list[Seen]]:
    """The logits that are judged, and what each layer of attention saw on the way.

    Raises:
        UsageError: the strategy runs the network in another way than once, over the sample's own steps.
    """
    with watched(learner.backbone) as seen:
        logits = learner.answer(x, task)
    T = learner.backbone.enter(learner.encoder(x)).shape[1]
    if len(seen) != len(learner.backbone.attention_layers) or any(s.x.shape[1] != T for s in seen):
        raise UsageError(
            f"{learner.strategy.name or type(learner.strategy).__name__} does not run the network once over the steps "
            "of a sample, so its attention cannot be told by step: use a strategy without prompts or several networks"
        )
    return logits, seen


def sources(x_NT: Tensor, y_NT: Tensor) -> Tensor:
    """Where each asked token was last seen in the input, up to the step that asks, (N, T); -1 where nothing is asked,
    or it was not."""
    T = x_NT.shape[1]
    same_NTS = (y_NT[..., None] == x_NT[:, None]) & (y_NT != IGNORED)[..., None]
    same_NTS &= torch.ones(T, T, dtype=torch.bool, device=x_NT.device).tril()
    steps_S = torch.arange(1, T + 1, device=x_NT.device)
    return (same_NTS * steps_S).amax(-1) - 1


def no_copies(learner: Learner, scenario: Scenario) -> str | None:
    """Why a probe of recall cannot be taken: no answer was shown before it is asked."""
    data = draw_tests(learner, scenario, 2 * BATCH, "probe/copies")
    if scenario.spec.target == "token" and bool((sources(data.x, data.y) >= 0).any()):
        return None
    return "needs answers that were shown in the input: choose a recall stream, e.g. --scenario mqar"


def not_language(learner: Learner, scenario: Scenario) -> str | None:
    """Why a probe of language models cannot be taken: what is asked is not the next token."""
    spec = scenario.spec
    if spec.target == "token" and spec.vocabulary == spec.classes:
        data = draw_tests(learner, scenario, 2 * BATCH, "probe/next")
        asked = data.y[:, :-1] != IGNORED
        if bool(asked.any()) and bool((data.x[:, 1:] == data.y[:, :-1])[asked].all()):
            return None
    return "needs a stream whose target is the next token"
