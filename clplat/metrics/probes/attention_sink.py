"""Attention sinks: steps that all later ones look at, whatever stands there."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from clplat.errors import UsageError
from clplat.metrics.probes.base import Figure, Probe, Result
from clplat.metrics.probes.sampling import batches, draw_tests, look, residuals
from clplat.report import plots
from clplat.scenario import TensorData

if TYPE_CHECKING:
    from clplat.learner import Learner
    from clplat.scenario import Scenario


def importance(weights: Tensor, causal: bool = True) -> Tensor:
    """``alpha_k = 1/(T - k + 1) sum_{i >= k} A_ik`` of each key k (counted from 1): (..., T, T) -> (..., T). Where all
    queries see all keys the mean over all of them."""
    T = weights.shape[-1]
    return weights.tril().sum(-2) / torch.arange(T, 0, -1, device=weights.device) if causal else weights.mean(-2)


def relative_norm(x_BTD: Tensor) -> Tensor:
    """The norm of each step's vector over the mean norm of the steps of its sample, (B, T)."""
    norm_BT = x_BTD.norm(dim=-1)
    return norm_BT / norm_BT.mean(-1, keepdim=True).clamp(min=1e-30)


class AttentionSink(Probe):
    """Sink rate of each step, layer and head (Gu et al. 2024, arXiv 2410.10781, and the code).

    On test samples: with ``alpha_k`` the mean attention that key k gets from the queries that see it, the sink rate of
    position k is the share of samples, layers and heads in which it is above ``epsilon`` (0.3 in the paper, of T = 64
    steps, k = 1). By it stands how large the first step's vectors are, against the mean over the steps of the same
    sample: what comes out of each layer (massive activations) and its keys and values (values of a sink are small).
    Weights that do not sum to 1 (sigmoid) count by their share, as in the code. A uniform causal map has ``alpha_k =
    mean_{i >= k} 1/i``, so that rates of short sequences mean little. Where all steps see all (images), alpha is the
    mean over all queries.

    Args:
        epsilon: above which a key is a sink.
        samples: test samples, of all experiences together.
        positions: how many positions are reported, from the first.
        steps: T, how much of a sample is read, where it is tokens; 0 for all.
    """

    needs = ("attention",)

    def __init__(self, *, epsilon: float = 0.3, samples: int = 128, positions: int = 10, steps: int = 64) -> None:
        problems = [] if 0 < epsilon < 1 else [f"attention-sink: epsilon={epsilon} must be between 0 and 1"]
        if samples < 1 or positions < 1 or steps < 0:
            problems.append("attention-sink: samples and positions must be positive, and steps at least 0")
        if problems:
            raise UsageError(*problems)
        self.epsilon, self.samples, self.positions, self.steps = epsilon, samples, positions, steps

    def measure(self, learner: Learner, scenario: Scenario) -> Result:
        data = draw_tests(learner, scenario, self.samples, "probe/attention-sink")
        if self.steps and scenario.spec.vocabulary is not None:
            data = TensorData(data.x[:, : self.steps], data.y[:, : self.steps], data.task)
        alphas, hidden, keys, values = [], [], [], []
        for x, _, task in batches(data):
            _, seen = look(learner, x, task)
            causal, streams = learner.backbone.causal, residuals(learner.backbone, learner.encoder(x))
            alphas.append(torch.stack([importance(layer.shares, causal) for layer in seen], 1))  # (B, L, H, T)
            hidden.append(torch.stack([relative_norm(h)[:, 0] for h in streams], 1))
            keys.append(torch.stack([relative_norm(layer.own_key)[..., 0] for layer in seen], 1))
            values.append(torch.stack([relative_norm(layer.own_value)[..., 0] for layer in seen], 1))
        alpha_NLHT = torch.cat(alphas)
        sink_NLHT = (alpha_NLHT > self.epsilon).double()
        return {
            "sink_rate": float(sink_NLHT[..., 0].mean()),
            "alpha": float(alpha_NLHT[..., 0].mean()),
            "value_norm": float(torch.cat(values).mean()),
            "positions": sink_NLHT.mean((0, 1, 2))[: self.positions],
            "heads": sink_NLHT[..., 0].mean(0),
            "alpha_heads": alpha_NLHT[..., 0].mean(0),
            "hidden_norms": torch.cat(hidden).mean(0),
            "key_norms": torch.cat(keys).mean(0),
            "value_norms": torch.cat(values).mean(0),
        }

    def figure(self, result: Result) -> Figure:
        return plots.cells("Sink rate of the first step", "head", "layer", result["heads"], low=0, high=1)
