"""Deep generative replay (Shin et al. 2017, "Continual Learning with Deep Generative Replay", NeurIPS)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from clplat.batch import Batch, Part
from clplat.errors import UsageError
from clplat.strategy import Phase, Strategy
from clplat.vae import VAE

if TYPE_CHECKING:
    from clplat.learner import Learner
    from clplat.scenario import Experience


class GenerativeReplay(Strategy):
    """Generative replay: rehearse samples that a generator makes up, with the answers of the network before.

    The scholar of experience e is a generator G_e and a network f_e (the solver). Both learn from new data (x, y) and
    from what the scholar before makes up, ``x' = G_{e-1}(z)`` with ``y' = argmax f_{e-1}(x')`` (the paper's sec. 3.1)::

        L_solver    = r L(f(x), y) + (1 - r) L(f(x'), y')
        L_generator = r L_G(x) + (1 - r) L_G(x')

    r = 1/e, so every experience so far weighs the same (van de Ven and Tolias 2018, "Generative replay with feedback
    connections"); in each step as many samples are made up as the stream's batch has. The generator is a variational
    autoencoder (the paper's is a GAN; theirs is as here), see ``clplat.vae``: of images and sequences as flat vectors,
    or of tokens. Where the scenario gives task labels it is conditioned on them and makes up samples of all tasks so
    far in equal numbers. The generator learns in a phase of its own before the solver. No sample is stored.

    Args:
        hidden: width of the generator's hidden layers.
        latent: size of z.
        noise: standard deviation of the generator's Gaussian about each value, in the unit of the samples.
        epochs: passes of the generator over an experience; null takes trainer.max_epochs.
    """

    kinds: ClassVar[Mapping[str, str]] = {"solver": "teacher", "generator": "teacher"}

    needs = ("boundaries", "classes")
    vae: VAE

    def __init__(self, *, hidden: int = 256, latent: int = 32, noise: float = 0.2, epochs: int | None = None) -> None:
        super().__init__()
        if min(hidden, latent) < 1 or noise <= 0 or (epochs is not None and epochs < 1):
            raise UsageError(
                f"generative-replay: hidden={hidden} >= 1, latent={latent} >= 1, noise={noise} > 0 and epochs={epochs} "
                ">= 1 (or null) are needed"
            )
        self.hidden, self.latent, self.noise, self.epochs = hidden, latent, noise, epochs
        self.labels: list[int] = []  # task labels of the experiences before

    def attach(self, learner: Learner) -> None:
        encoder = learner.encoder
        vocabulary = None if encoder.embedding is None else encoder.embedding.num_embeddings
        self.vae = VAE(
            encoder.sample_shape, vocabulary=vocabulary, hidden=self.hidden, latent=self.latent, noise=self.noise
        )

    def adapt(self, learner: Learner, experience: Experience) -> None:
        self.vae.grow(experience.task_label + 1)

    def start(self, learner: Learner, experience: Experience) -> None:
        if self.labels:
            self.remember("solver", {name: p.clone() for name, p in learner.network().items()})
            self.remember("generator", {name: p.clone() for name, p in self.vae.named_parameters()})

    def phases(self, learner: Learner, experience: Experience) -> Sequence[Phase]:
        parameters = list(self.vae.parameters())
        return [
            Phase("generator", loss=self._generator_loss, parameters=parameters, epochs=self.epochs),
            Phase("train"),
        ]

    def param_groups(self, learner: Learner) -> Iterable[dict[str, Any]]:
        return []  # the generator learns in its own phase

    def make_up(self, learner: Learner, batch: Batch, purpose: str) -> tuple[Tensor, Tensor]:
        """This rank's rows of as many samples of the experiences before as the stream's batch has, and their tasks."""
        stream, draws = batch["stream"], learner.generator(f"{self.name}/{purpose}", batch.step, batch.micro)
        z = torch.randn(stream.n_global, self.latent, generator=draws)[stream.local]
        labels = torch.tensor(sorted(set(self.labels)))
        task = labels[torch.randint(len(labels), (stream.n_global,), generator=draws)][stream.local]
        held = self.recall("generator")
        z, task = z.to(next(iter(held.values()))), task.to(stream.task.device)
        with torch.no_grad():
            x: Tensor = torch.func.functional_call(self.vae, held, (z, task))
        return x, task

    def _share(self) -> float:
        return 1 / (len(self.labels) + 1)

    def _generator_loss(self, learner: Learner, batch: Batch) -> Tensor:
        stream = batch["stream"]
        new = self.vae.loss(stream.x, stream.task)
        if not self.labels:
            return new
        old = self.vae.loss(*self.make_up(learner, batch, "generator"))
        return self._share() * new + (1 - self._share()) * old

    def rehearse(self, learner: Learner, batch: Batch) -> Batch:
        if not self.labels:
            return batch
        x, task = self.make_up(learner, batch, "solver")
        with torch.no_grad():
            y = learner.output_with(self.recall("solver"), x, task).logits.argmax(-1)
        stream = batch["stream"]
        index = torch.arange(stream.n_global)
        return batch.with_part(Part(self.name, x, y, task, index, stream.local, 1 - self._share()), self._share())

    def finish(self, learner: Learner, experience: Experience) -> None:
        self.labels = [*self.labels, experience.task_label][: experience.current_experience + 1]

    def get_extra_state(self) -> dict[str, Any]:
        return {"labels": self.labels}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.labels = list(state["labels"])
