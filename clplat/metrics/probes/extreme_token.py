"""Extreme tokens: a first step that draws all attention, has hardly a value, and a large residual; dormant heads."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as nnf
from torch import Tensor

from clplat.backbones.recording import without_heads
from clplat.errors import UsageError
from clplat.metrics.measures import IGNORED
from clplat.metrics.probes.attention_sink import relative_norm
from clplat.metrics.probes.base import Figure, Probe, Result
from clplat.metrics.probes.sampling import batches, draw, look, residuals
from clplat.report import plots
from clplat.scenario import TensorData

if TYPE_CHECKING:
    from clplat.learner import Learner
    from clplat.scenario import Scenario


def first_attention(weights_BHTT: Tensor, chosen_BT: Tensor) -> Tensor:
    """Mean weight of the first step for the chosen queries behind it, (H,); NaN where none is chosen."""
    first_BHT = weights_BHTT[..., 1:, 0].double()
    chosen_BHT = chosen_BT[:, None, 1:].expand_as(first_BHT)
    return (first_BHT * chosen_BHT).sum((0, 2)) / chosen_BHT.sum((0, 2))


class ExtremeToken(Probe):
    """Attention sinks, value-state drains and residual-state peaks of the first step, and which heads are active where
    (Guo et al. 2024, arXiv 2410.13835).

    On test samples of one experience, by layer and head: the weight of the first step for queries at triggers and at
    other steps (the sink score, against which triggers look elsewhere); the norm of the first step's value over the
    mean of its sample (a drain is far below 1); the norm of its residual after each layer over that mean (a peak is far
    above 1, in networks of three layers and more); how far its logit lies above the mean of the others (softmax only).
    A head is dormant where nothing is lost without it: the loss at triggers and at other steps is measured with each
    head switched off.

    Triggers are those that the scenario says it has (``bigram-backcopy``), or those that are given; without any all
    queries are other ones.

    Args:
        experience: of the test stream.
        triggers: tokens; empty for the scenario's own.
        samples: test samples.
    """

    needs = ("tokens", "steps", "attention")

    def __init__(self, *, experience: int = 0, triggers: tuple[int, ...] = (), samples: int = 128) -> None:
        if experience < 0 or samples < 1:
            raise UsageError(f"extreme-token: experience={experience} must not be negative, samples={samples} positive")
        self.experience, self.triggers, self.samples = experience, triggers, samples

    def unfit(self, learner: Learner, scenario: Scenario) -> str | None:
        if scenario.spec.target != "token":
            return "needs a stream whose answers are tokens"
        n = len(scenario.test_stream)
        return (
            None if self.experience < n else f"has experience={self.experience}, but the stream has {n}: 0 to {n - 1}"
        )

    def measure(self, learner: Learner, scenario: Scenario) -> Result:
        own = getattr(scenario, "triggers", None)
        triggers = list(self.triggers) or ([] if own is None else list(own[self.experience]))
        data = draw(learner, scenario.test_stream[self.experience].dataset, self.samples, "probe/extreme-token")
        at = torch.isin(data.x, torch.tensor(triggers, dtype=data.x.dtype, device=data.x.device))
        found: dict[str, list[Tensor]] = {}
        for start, (x, _, task) in zip(range(0, len(data), 64), batches(data, 64), strict=True):
            here = at[start : start + len(x)]
            _, seen = look(learner, x, task)
            streams = residuals(learner.backbone, learner.encoder(x))
            parts = {
                "sink": torch.stack([first_attention(s.own_weights, ~here) for s in seen]),
                "sink_at_triggers": torch.stack([first_attention(s.own_weights, here) for s in seen]),
                "drain": torch.stack([relative_norm(s.own_value)[..., 0].mean(0) for s in seen]),
                "margin": torch.stack([_margin(s.own_weights) for s in seen]),
                "peak": torch.stack([relative_norm(h)[:, 0].mean() for h in streams]),
            }
            for name, part in parts.items():
                found.setdefault(name, []).append(part.double() * len(x) / len(data))
        by_head = {name: torch.stack(parts).sum(0) for name, parts in found.items()}
        best = by_head["sink"].flatten().argmax()
        losses = self._losses(learner, data, at, [])
        L, H = by_head["sink"].shape
        dormancy = [[self._losses(learner, data, at, [(layer, head)]) for head in range(H)] for layer in range(L)]
        return {
            "sink": float(by_head["sink"].flatten()[best]),
            "sink_at_triggers": float(by_head["sink_at_triggers"].flatten()[best]),
            "drain": float(by_head["drain"].flatten()[best]),
            "margin": float(by_head["margin"].flatten()[best]),
            "peak": float(by_head["peak"].max()),
            "loss_at_triggers": losses[0],
            "loss_elsewhere": losses[1],
            "triggers": triggers,
            **{f"{name}_by_head": by_head[name] for name in ("sink", "sink_at_triggers", "drain", "margin")},
            "peak_by_layer": by_head["peak"],
            "lost_at_triggers": [[off[0] - losses[0] for off in row] for row in dormancy],
            "lost_elsewhere": [[off[1] - losses[1] for off in row] for row in dormancy],
        }

    def _losses(
        self, learner: Learner, data: TensorData, at: Tensor, off: list[tuple[int, int]]
    ) -> tuple[float, float]:
        """Nats per asked token at triggers and elsewhere."""
        parts = []
        with without_heads(learner.backbone, off):
            for x, y, task in batches(data):
                logits = learner.answer(x, task).double()
                parts.append(nnf.cross_entropy(logits.transpose(1, 2), y, ignore_index=IGNORED, reduction="none"))
        nll, asked = torch.cat(parts), data.y != IGNORED
        return float(nll[asked & at].mean()), float(nll[asked & ~at].mean())

    def figure(self, result: Result) -> Figure:
        heads = [f"{layer}.{head}" for layer, row in enumerate(result["sink_by_head"]) for head in range(len(row))]
        names = {"other queries": "sink_by_head", "triggers": "sink_at_triggers_by_head", "value norm": "drain_by_head"}
        groups = {name: (heads, [value for row in result[key] for value in row]) for name, key in names.items()}
        return plots.bars("The first step", "layer.head", "attention, or norm over the mean", groups)


def _margin(weights_BHTT: Tensor) -> Tensor:
    """How far the logit of the first step is above the mean of the others that a query sees, (H,), over the queries
    from the fourth step on that see it and two others at least; NaN where there are none. A difference of logits is one
    of log-weights, for softmax; what has no weight is not seen."""
    weights = weights_BHTT[..., 3:, :].double()
    seen, log = weights > 0, weights.clamp(min=1e-300).log()
    count = seen[..., 1:].sum(-1)
    others = (log * seen)[..., 1:].sum(-1) / count.clamp(min=1)
    counted = seen[..., 0] & (count >= 2)
    return ((log[..., 0] - others) * counted).sum((0, 2)) / counted.sum((0, 2))
