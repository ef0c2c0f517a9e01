"""Variational continual learning (Nguyen, Li, Bui and Turner 2018, "Variational continual learning", ICLR; arXiv
1710.10628)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from clplat.errors import UsageError
from clplat.pretrained import plain_features
from clplat.scenario import TensorData
from clplat.strategy import Phase
from clplat.variational import Gaussian, Variational, head_with, logits_with, run_with

if TYPE_CHECKING:
    from clplat.backbones.base import State
    from clplat.batch import Batch
    from clplat.learner import Learner, Output
    from clplat.scenario import Experience


class VCL(Variational):
    """Variational continual learning: a Gaussian for each weight, whose prior is the posterior of before.

    With q_t a diagonal Gaussian over the weights of backbone and head, and N_t samples in experience t (eq. 4)::

        minimise   E_{theta ~ q_t} [ mean over samples of - log p(y | x, theta) ]  +  1 / N_t KL( q_t || q_{t-1} )

    q_0 is N(0, prior_variance). The network's own weights are the means; each step draws ``samples`` sets of weights,
    the same for the whole batch. Where each task has a head, only the current task's is in the divergence: heads of old
    tasks stay as they are, those of tasks to come start from q_0. Means start from maximum-likelihood training on the
    first experience. Evaluation averages the softmax over ``test_samples`` sets of weights (the authors: 100), always
    the same.

    Variances start at exp(log_variance), by default exp(-6), as in the authors' code. There networks train for 100
    epochs and more; in a short run that start decides, since Adam changes a log variance by about the learning rate in
    a step (by 0.3 to 0.5 over 40 epochs of permuted digits). It does two things at once: weights carry noise of that
    variance v, and where the posterior of before is the prior, moving a mean by d costs d^2 / (2 v N_t). So smaller
    ones learn the first task better and hold every later one to it. Measured (one seed, ACC; learning accuracy):

    - split digits with a head for each task, the default transformer, 5 epochs: naive 0.975; 0.997, at -6 0.933; 0.944,
      at -13.8 (a variance of 1e-6) 0.975; 0.975, without forgetting;
    - permuted digits with one head, an MLP of width 64, 10 epochs: naive 0.432; 0.921, at -6 0.564; 0.815, at -8 0.433;
      0.525.

    Where heads are per task and training is short, ``log_variance=-13.8`` is the better choice.

    With a coreset (algorithm 1), random samples of each experience are left out of its training. After it a copy of q_t
    is trained on all coresets together, with q_t as its prior, and answers in evaluation; q_t itself goes on without.

    Args:
        samples: sets of weights drawn in each step; the authors draw 10.
        likelihood_epochs: passes of maximum-likelihood training; null takes trainer.max_epochs, 0 for none.
        coreset: samples of each experience in its coreset; 0 for none.
        coreset_epochs: passes over the coresets; null takes trainer.max_epochs.
    """

    kinds: ClassVar[Mapping[str, str]] = {"coreset": "memory"}

    def __init__(
        self,
        *,
        samples: int = 1,
        likelihood_epochs: int | None = None,
        coreset: int = 0,
        coreset_epochs: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if samples < 1 or coreset < 0:
            raise UsageError(f"vcl: samples={samples} must be at least 1 and coreset={coreset} not negative")
        if (likelihood_epochs or 0) < 0 or (coreset_epochs is not None and coreset_epochs < 1):
            raise UsageError(
                f"vcl: likelihood_epochs={likelihood_epochs} must not be negative, coreset_epochs={coreset_epochs} at "
                "least 1"
            )
        self.samples, self.likelihood_epochs = samples, likelihood_epochs
        self.coreset, self.coreset_epochs = coreset, coreset_epochs
        self.tuned = False  # the copy is that of the posterior as it is
        self._micro = 0
        self._weights: dict[str, Tensor] = {}  # of the forward pass in training

    def attach(self, learner: Learner) -> None:
        super().attach(learner)
        if self.coreset:
            now = self.posterior(learner)
            self.tuned_means = nn.ParameterList(p.detach().clone() for p in now.means)
            self.tuned_log_variances = nn.ParameterList(p.detach().clone() for p in now.log_variances)

    def copy(self) -> Gaussian:
        """What the coresets tune."""
        return Gaussian(self.names, list(self.tuned_means), list(self.tuned_log_variances))

    def answering(self, learner: Learner) -> Gaussian:
        return self.copy() if self.tuned else self.posterior(learner)

    def start(self, learner: Learner, experience: Experience) -> None:
        self.tuned = False
        if self.coreset:
            x, y, task = experience.dataset.rows(self._split(learner, experience)[0])
            new = {name: t.to(learner.ranks.device) for name, t in {"x": x, "y": y, "task": task}.items()}
            held = self.recall("coreset")
            self.remember("coreset", {name: torch.cat([held[name], t]) if held else t for name, t in new.items()})

    def _split(self, learner: Learner, experience: Experience) -> tuple[Tensor, Tensor]:
        """The samples of an experience that are its coreset, and the others."""
        n = len(experience.dataset)
        order = torch.randperm(n, generator=learner.generator(f"{self.name}/coreset", experience.current_experience))
        size = min(self.coreset, n - 1)  # something must be left to train on
        return order[:size].sort().values, order[size:].sort().values

    def phases(self, learner: Learner, experience: Experience) -> Sequence[Phase]:
        found = []
        if experience.current_experience == 0 and self.likelihood_epochs != 0:
            network = list(learner.network().values())
            found.append(Phase("likelihood", self._likelihood, network, epochs=self.likelihood_epochs))
        if not self.coreset:
            return [*found, Phase("train")]
        found.append(Phase("train", data=experience.dataset.subset(self._split(learner, experience)[1])))
        tuned = [*self.tuned_means, *self.tuned_log_variances]
        coresets = TensorData(**self.recall("coreset"))
        return [*found, Phase("coreset", self._on_coreset, tuned, coresets, self.coreset_epochs, self._begin)]

    def _likelihood(self, learner: Learner, batch: Batch) -> Tensor:
        return learner.base_loss(learner.head(plain_features(learner, batch.x), batch.task), batch.y)

    @torch.no_grad()
    def _begin(self, learner: Learner) -> None:
        now, mine = self.posterior(learner), self.copy()
        for to, of in zip((*mine.means, *mine.log_variances), (*now.means, *now.log_variances), strict=True):
            to.copy_(of)
        self.tuned = True

    def _on_coreset(self, learner: Learner, batch: Batch) -> Tensor:
        assert learner.data is not None
        x_BTD, losses = learner.encoder(batch.x), []
        for number in range(self.samples):
            weights = self.draw(learner, self.copy(), "coreset-weights", batch.step, batch.micro, number)
            losses.append(learner.base_loss(logits_with(learner, weights, x_BTD, batch.task), batch.y))
        kl = self.copy().divergence(self.posterior(learner).detached())
        return torch.stack(losses).mean(0) + kl / len(learner.data)

    def rehearse(self, learner: Learner, batch: Batch) -> Batch:
        self._micro = batch.micro
        return batch

    def forward(self, learner: Learner, x_BTD: Tensor, task: Tensor, state: State = None) -> tuple[Tensor, State]:
        self._weights = self.draw(learner, self.posterior(learner), "weights", learner.step, self._micro, 0)
        return run_with(learner, self._weights, x_BTD, state)

    def base_loss(self, learner: Learner, batch: Batch, output: Output) -> Tensor:
        losses = [learner.base_loss(head_with(learner, self._weights, output.features, batch.task), batch.y)]
        for number in range(1, self.samples):
            weights = self.draw(learner, self.posterior(learner), "weights", learner.step, self._micro, number)
            logits = logits_with(learner, weights, learner.encoder(batch.x), batch.task)
            losses.append(learner.base_loss(logits, batch.y))
        return torch.stack(losses).mean(0)

    def loss(self, learner: Learner, batch: Batch, output: Output) -> dict[str, Tensor]:
        assert learner.data is not None
        kl = self.posterior(learner).divergence(self.prior(), partial(self.current, learner))
        return {"kl": kl / len(learner.data)}

    def get_extra_state(self) -> dict[str, Any]:
        return {"tuned": self.tuned}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.tuned = state["tuned"]
