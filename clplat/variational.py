"""Gaussians over a network's weights, and what strategies share whose network is one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from clplat.errors import UsageError
from clplat.heads.head import GrowingHead, PerTaskHead
from clplat.strategy import Strategy

if TYPE_CHECKING:
    from clplat.backbones.base import State
    from clplat.learner import Learner, Output
    from clplat.scenario import Experience

Weights = dict[str, Tensor]


@dataclass
class Gaussian:
    """A normal distribution for each weight, independent of the others.

    Args:
        names: of the parameters, as in ``learner.network()``.
        means, log_variances: a tensor of each for each parameter.
    """

    names: Sequence[str]
    means: Sequence[Tensor]
    log_variances: Sequence[Tensor]

    def draw(self, generator: torch.Generator) -> Weights:
        """One set of weights; gradients flow to means and log variances."""
        drawn = {}
        for name, mean, log_variance in zip(self.names, self.means, self.log_variances, strict=True):
            noise = torch.randn(mean.shape, generator=generator).to(mean)
            drawn[name] = mean + (0.5 * log_variance).exp() * noise
        return drawn

    def divergence(self, prior: Gaussian, part: Callable[[str, Tensor], Tensor] = lambda name, value: value) -> Tensor:
        """KL( self || prior ).

        Args:
            part: (name, a value for each weight) -> the values that count.
        """
        total = []
        each = zip(self.names, self.means, self.log_variances, prior.means, prior.log_variances, strict=True)
        for name, m, v, m0, v0 in each:
            value = (v - v0).exp() + (m - m0).square() / v0.exp() - 1 + v0 - v
            total.append(0.5 * part(name, value).sum())
        return torch.stack(total).sum()

    def detached(self) -> Gaussian:
        """The same, without gradients."""
        return Gaussian(self.names, [m.detach() for m in self.means], [v.detach() for v in self.log_variances])


def run_with(learner: Learner, weights: Mapping[str, Tensor], x_BTD: Tensor, state: State) -> tuple[Tensor, State]:
    """The backbone with other weights, by the names of ``learner.network()``."""
    own = part_of(weights, "backbone.")
    found: tuple[Tensor, State] = torch.func.functional_call(learner.backbone, own, (x_BTD, state))
    return found


def head_with(learner: Learner, weights: Mapping[str, Tensor], features: Tensor, task: Tensor) -> Tensor:
    """The head with other weights."""
    logits: Tensor = torch.func.functional_call(learner.head, part_of(weights, "head."), (features, task))
    return logits


def logits_with(learner: Learner, weights: Mapping[str, Tensor], x_BTD: Tensor, task: Tensor) -> Tensor:
    """Backbone and head with other weights."""
    return head_with(learner, weights, learner.features(run_with(learner, weights, x_BTD, None)[0]), task)


def part_of(weights: Mapping[str, Tensor], start: str) -> Weights:
    """The weights of one part of the network, by its own names."""
    return {name.removeprefix(start): tensor for name, tensor in weights.items() if name.startswith(start)}


class Variational(Strategy):
    """Base of strategies whose weights are Gaussian, those of backbone and head: the network's own are the means.

    After each experience the posterior becomes the prior. Where each task has a head, only the current task's goes
    along: heads of old tasks stay as they are, those of tasks to come start from the first prior. Evaluation averages
    the softmax over sets of weights that are always the same.

    Args:
        test_samples: sets of weights in evaluation.
        log_variance: of all weights at the start.
        prior_variance: of all weights in the first prior, whose means are zero.
    """

    kinds: ClassVar[Mapping[str, str]] = {"prior_mean": "importances", "prior_log_variance": "importances"}

    needs: tuple[str, ...] = ("boundaries", "classes")

    def __init__(self, *, test_samples: int = 10, log_variance: float = -6.0, prior_variance: float = 1.0) -> None:
        super().__init__()
        if test_samples < 1 or prior_variance <= 0:
            raise UsageError(
                f"test_samples={test_samples} must be at least 1 and prior_variance={prior_variance} positive"
            )
        self.test_samples, self.log_variance, self.prior_variance = test_samples, log_variance, prior_variance
        self._asked = torch.empty(0)  # what predict was last called with

    def attach(self, learner: Learner) -> None:
        if isinstance(learner.head, GrowingHead) or any(True for _ in learner.encoder.parameters()):
            raise UsageError(f"{self.name} needs learner.head=auto, shared or per-task, and an encoder without weights")
        weights = learner.network()
        self.names = list(weights)
        self.log_variances = nn.ParameterList(torch.full_like(p, self.log_variance) for p in weights.values())
        spread = math.log(self.prior_variance)
        self.remember("prior_mean", {name: torch.zeros_like(p) for name, p in weights.items()})
        self.remember("prior_log_variance", {name: torch.full_like(p, spread) for name, p in weights.items()})

    def posterior(self, learner: Learner) -> Gaussian:
        """What is learned, as parameters."""
        return Gaussian(self.names, list(learner.network().values()), list(self.log_variances))

    def prior(self) -> Gaussian:
        """The posterior after the experience before."""
        mean, log_variance = self.recall("prior_mean"), self.recall("prior_log_variance")
        return Gaussian(self.names, [mean[n] for n in self.names], [log_variance[n] for n in self.names])

    def answering(self, learner: Learner) -> Gaussian:
        """What answers in evaluation."""
        return self.posterior(learner)

    def draw(self, learner: Learner, gaussian: Gaussian, purpose: str, *numbers: int) -> Weights:
        """One set of weights, the same on all ranks."""
        return gaussian.draw(learner.generator(f"{self.name}/{purpose}", *numbers))

    def current(self, learner: Learner, name: str, value: Tensor) -> Tensor:
        """Of what belongs to heads of several tasks, the current task's."""
        assert learner.experience is not None
        per_task = isinstance(learner.head, PerTaskHead) and name.startswith("head.")
        return value[learner.experience.task_label] if per_task else value

    def param_groups(self, learner: Learner) -> Iterable[dict[str, Any]]:
        return [{"params": list(self.log_variances)}]

    @torch.no_grad()
    def finish(self, learner: Learner, experience: Experience) -> None:
        now, before = self.posterior(learner), self.prior()
        for kind, values, old in (
            ("prior_mean", now.means, before.means),
            ("prior_log_variance", now.log_variances, before.log_variances),
        ):
            new = {name: tensor.clone() for name, tensor in zip(self.names, old, strict=True)}
            for name, value in zip(self.names, values, strict=True):
                self.current(learner, name, new[name]).copy_(self.current(learner, name, value))
            self.remember(kind, new)

    def predict(self, learner: Learner, x_BTD: Tensor, task: Tensor, state: State = None) -> tuple[Tensor, State]:
        self._asked = x_BTD
        return run_with(learner, dict(zip(self.names, self.answering(learner).means, strict=True)), x_BTD, state)

    def classify(self, learner: Learner, output: Output, task: Tensor) -> Tensor:
        found = []
        for number in range(self.test_samples):
            weights = self.draw(learner, self.answering(learner), "test", number)
            found.append(logits_with(learner, weights, self._asked, task))
        return torch.stack(found).log_softmax(-1).logsumexp(0) - math.log(self.test_samples)
