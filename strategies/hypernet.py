"""Continual learning with hypernetworks (von Oswald et al. 2020, ICLR; arXiv 1906.00695)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from clplat.errors import UsageError
from clplat.randomness import groups
from clplat.strategy import Strategy

if TYPE_CHECKING:
    from clplat.backbones.base import State
    from clplat.batch import Batch
    from clplat.learner import Learner, Output
    from clplat.scenario import Experience


class HyperNet(Strategy):
    """Hypernetwork: generate the backbone's weights from a task embedding, and keep old tasks' weights as they were.

    A chunked hypernetwork h makes the weights piece by piece from the task's embedding e and the piece's own c (sec.
    2.2), and its outputs for old tasks are held (eq. 2, with no look-ahead, which the paper finds to matter little)::

        Theta(t) = offset + scale * [h(e_t, c_1), ..., h(e_t, c_K)]
        L(Theta(t), data) + beta / (t-1) * sum_{k<t} || Theta*(k) - Theta(k) ||^2

    Theta*(k) are the weights of task k before the current task began. The embeddings of old tasks are fixed. offset and
    scale are the mean and the standard deviation with which the backbone initialises each of its tensors, so generated
    weights start where a plain network's do (our choice; the paper initialises h). Heads are per task and outside of h
    (the paper generates them too). A task that was never seen is answered with the newest embedding.

    Args:
        beta: weight of the regulariser.
        embedding: size of task and chunk embeddings.
        hidden: width of h's two hidden layers.
        chunk: weights that h makes in one piece.
    """

    needs = ("task-labels", "boundaries")
    offset: Tensor
    scale: Tensor

    def __init__(self, *, beta: float = 0.01, embedding: int = 16, hidden: int = 64, chunk: int = 1024) -> None:
        super().__init__()
        if beta < 0 or min(embedding, hidden, chunk) < 1:
            raise UsageError(f"hypernet: beta={beta} >= 0 and embedding, hidden, chunk >= 1 are needed")
        self.beta, self.size, self.hidden, self.chunk = beta, embedding, hidden, chunk
        self.tasks = nn.ParameterList()
        self.shapes: list[tuple[str, torch.Size]] = []

    def attach(self, learner: Learner) -> None:
        """Take the backbone out of the learner's parameters; only its structure stays."""
        backbone = learner.backbone
        parameters = dict(backbone.named_parameters())
        self.shapes = [(name, p.shape) for name, p in parameters.items()]
        ones = [torch.ones(p.numel()) for p in parameters.values()]
        spread = [p.detach().std(correction=0).item() if p.numel() > 1 else 0.0 for p in parameters.values()]
        mean = [p.detach().mean().item() if s == 0 else 0.0 for p, s in zip(parameters.values(), spread, strict=True)]
        self.register_buffer("offset", torch.cat([m * one for m, one in zip(mean, ones, strict=True)]))
        # A tensor that starts constant (a norm's weight) may move by a tenth.
        self.register_buffer("scale", torch.cat([(s or 0.1) * one for s, one in zip(spread, ones, strict=True)]))
        chunks = math.ceil(len(self.offset) / self.chunk)
        self.chunks = nn.Parameter(torch.randn(chunks, self.size))
        self.net = nn.Sequential(
            nn.Linear(2 * self.size, self.hidden), nn.ReLU(), nn.Linear(self.hidden, self.hidden), nn.ReLU(),
            nn.Linear(self.hidden, self.chunk),
        )  # fmt: skip
        with torch.no_grad():  # outputs of about unit size at first, whatever the widths
            unit = self.net(torch.randn(256, 2 * self.size)).std()
            for p in self.net[-1].parameters():
                p.div_(unit)
        del learner.backbone
        object.__setattr__(learner, "backbone", backbone.to("meta"))  # a skeleton: no parameter of the learner's

    def adapt(self, learner: Learner, experience: Experience) -> None:
        while len(self.tasks) <= experience.task_label:
            self.tasks.append(nn.Parameter(torch.randn(self.size)))

    def start(self, learner: Learner, experience: Experience) -> None:
        with torch.no_grad():
            held = {str(k): self.weights(k) for k in range(len(self.tasks)) if k != experience.task_label}
        self.remember("target", held)

    def weights(self, task: int) -> Tensor:
        """All generated weights of a task, side by side."""
        embedding = self.tasks[min(task, len(self.tasks) - 1)]
        pieces = self.net(torch.cat([embedding.expand(len(self.chunks), -1), self.chunks], 1))
        return self.offset + self.scale * pieces.flatten()[: len(self.offset)]

    def forward(self, learner: Learner, x_BTD: Tensor, task: Tensor, state: State = None) -> tuple[Tensor, State]:
        present = task.unique().tolist()
        if len(present) <= 1:
            number = present[0] if present else len(self.tasks) - 1
            return self._run(learner, number, x_BTD, state)
        if state is not None:
            raise ValueError("hypernet cannot carry a state through a batch of several tasks")
        rows = [(task == number).nonzero().squeeze(1) for number in present]
        runs = zip(present, groups(rows), strict=True)
        outputs = [self._run(learner, number, x_BTD[of_it], None)[0] for number, of_it in runs]
        order = torch.cat(rows).argsort()
        return torch.cat(outputs)[order], None

    def _run(self, learner: Learner, task: int, x_BTD: Tensor, state: State) -> tuple[Tensor, State]:
        flat, start = self.weights(task), 0
        weights: dict[str, Tensor] = {}
        for name, shape in self.shapes:
            weights[name] = flat[start : start + shape.numel()].view(shape)
            start += shape.numel()
        found: tuple[Tensor, State] = torch.func.functional_call(learner.backbone, weights, (x_BTD, state))
        return found

    def loss(self, learner: Learner, batch: Batch, output: Output) -> dict[str, Tensor]:
        held = self.recall("target")
        if not held:
            return {}
        moved = torch.stack([(self.weights(int(k)) - old).square().sum() for k, old in held.items()])
        return {"output_change": self.beta * moved.mean()}

    def param_groups(self, learner: Learner) -> Iterable[dict[str, Any]]:
        assert learner.experience is not None
        current = self.tasks[learner.experience.task_label]
        return [{"params": [*self.net.parameters(), self.chunks, current]}]
