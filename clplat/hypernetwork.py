"""What hypernetwork strategies share: the backbone's weights made from a task's embedding, and held for old tasks."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from clplat.errors import UsageError
from clplat.isolation import BATCH_NORMS, Held, by_task, other_heads, take_backbone
from clplat.strategy import Strategy

if TYPE_CHECKING:
    from clplat.backbones.base import State
    from clplat.batch import Batch
    from clplat.learner import Learner, Output
    from clplat.scenario import Experience


class Hypernetwork(Strategy):
    """Base of strategies in which a hypernetwork makes the backbone's weights from an embedding of the task.

    With h_1, ..., h_K the pieces of ``chunk`` numbers that the generator makes of the embedding e_t (von Oswald et al.
    2020, arXiv 1906.00695, eq. 2 without the look-ahead, which the paper finds to matter little)::

        Theta(t) = offset + scale * [h_1(e_t), ..., h_K(e_t)]
        L(Theta(t), data) + beta / (t-1) * sum_{k<t} || Theta*(k) - Theta(k) ||^2

    Theta*(k) are the weights of task k before the current task began, made once. Embeddings of other tasks do not
    learn. offset and scale are the mean and the standard deviation with which the backbone initialises each of its
    tensors, so generated weights start where a plain network's do (our choice; the paper initialises h). Heads are per
    task and not generated (the paper generates them too); those of other tasks, and after the first task a learned
    encoder, stay as they are to the bit. A task that was never seen is answered with the newest embedding. The
    generator's parameters count as the network's (``stand_ins``), so that ``ewc`` beside it protects them.

    Args:
        beta: weight of the regulariser.
        embedding: size of task and piece embeddings.
        chunk: weights that are made in one piece.
    """

    kinds: ClassVar[Mapping[str, str]] = {"target": "teacher"}

    needs = ("task-labels", "boundaries")
    per_task: ClassVar[tuple[str, ...]] = ("tasks",)  # lists of parameters, one for each task
    offset: Tensor
    scale: Tensor

    def __init__(self, *, beta: float, embedding: int, chunk: int) -> None:
        super().__init__()
        if beta < 0 or min(embedding, chunk) < 1:
            raise UsageError(f"hypernetwork: beta={beta} >= 0 and embedding, chunk >= 1 are needed")
        self.beta, self.size, self.chunk = beta, embedding, chunk
        self.tasks = nn.ParameterList()
        self.shapes: list[tuple[str, torch.Size]] = []
        self.learned: list[int] = []
        self.held = Held()

    @abstractmethod
    def build(self, pieces: int) -> None:
        """Make the generator's modules and parameters for so many pieces; outputs should be of about unit size."""

    @abstractmethod
    def pieces(self, embedding: Tensor) -> Tensor:
        """All pieces (K, chunk), or more, of a task's embedding (embedding,)."""

    def attach(self, learner: Learner) -> None:
        """Take the backbone out of the learner's parameters; only its structure stays."""
        if any(isinstance(m, BATCH_NORMS) for m in learner.backbone.modules()):
            raise UsageError(
                f"{self.name}: the statistics of a batch norm are not generated and would be shared by all tasks: "
                "choose another norm (backbone.norm=group)"
            )
        parameters = dict(take_backbone(learner).named_parameters())
        self.shapes = [(name, p.shape) for name, p in parameters.items()]
        ones = [torch.ones(p.numel()) for p in parameters.values()]
        spread = [p.detach().std(correction=0).item() if p.numel() > 1 else 0.0 for p in parameters.values()]
        mean = [p.detach().mean().item() if s == 0 else 0.0 for p, s in zip(parameters.values(), spread, strict=True)]
        self.register_buffer("offset", torch.cat([m * one for m, one in zip(mean, ones, strict=True)]))
        # A tensor that starts constant (a norm's weight) may move by a tenth.
        self.register_buffer("scale", torch.cat([(s or 0.1) * one for s, one in zip(spread, ones, strict=True)]))
        self.build(math.ceil(len(self.offset) / self.chunk))

    def adapt(self, learner: Learner, experience: Experience) -> None:
        while len(self.tasks) <= experience.task_label:
            self.tasks.append(nn.Parameter(torch.randn(self.size)))

    def start(self, learner: Learner, experience: Experience) -> None:
        with torch.no_grad():
            held = {str(k): self.kept(k) for k in self.learned if k != experience.task_label}
        self.remember("target", held)

    def weights(self, task: int) -> Tensor:
        """All generated weights of a task, side by side."""
        return self.scaled(self.pieces(self.tasks[min(task, len(self.tasks) - 1)]))

    def kept(self, task: int) -> Tensor:
        """What the regulariser holds of an old task."""
        return self.weights(task)

    def scaled(self, pieces: Tensor) -> Tensor:
        """Weights of what the generator puts out."""
        return self.offset + self.scale * pieces.flatten()[: len(self.offset)]

    def forward(self, learner: Learner, x_BTD: Tensor, task: Tensor, state: State = None) -> tuple[Tensor, State]:
        def run(label: int, x_BTD: Tensor, state: Any) -> tuple[Tensor, Any]:
            return self.run(learner, self.weights(label), x_BTD, state)

        return by_task(run, x_BTD, task, state, newest=len(self.tasks) - 1)

    def run(self, learner: Learner, weights: Tensor, x_BTD: Tensor, state: State = None) -> tuple[Tensor, State]:
        """The backbone with these weights."""
        pieces = weights.split([shape.numel() for _, shape in self.shapes])
        named = {name: piece.view(shape) for piece, (name, shape) in zip(pieces, self.shapes, strict=True)}
        found: tuple[Tensor, State] = torch.func.functional_call(learner.backbone, named, (x_BTD, state))
        return found

    def loss(self, learner: Learner, batch: Batch, output: Output) -> dict[str, Tensor]:
        held = self.recall("target")
        if not held:
            return {}
        moved = torch.stack([(self.kept(int(k)) - old).square().sum() for k, old in held.items()])
        return {"output_change": self.beta * moved.mean()}

    def edit_gradients(self, learner: Learner) -> None:
        self.held.before_step(other_heads(learner, first=not self.learned))

    def after_step(self, learner: Learner, batch: Batch) -> None:
        self.held.after_step()

    def finish(self, learner: Learner, experience: Experience) -> None:
        self.learned = sorted({*self.learned, experience.task_label})

    def stand_ins(self) -> Iterable[nn.Parameter]:
        return [p for name, p in self.named_parameters() if name.split(".")[0] not in self.per_task]

    def param_groups(self, learner: Learner) -> Iterable[dict[str, Any]]:
        assert learner.experience is not None
        own = [getattr(self, name)[learner.experience.task_label] for name in self.per_task]
        return [{"params": [*self.stand_ins(), *own]}]

    def get_extra_state(self) -> dict[str, Any]:
        return {"learned": self.learned}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.learned = list(state["learned"])
