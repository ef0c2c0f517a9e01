"""iCaRL (Rebuffi et al. 2017, "iCaRL: Incremental Classifier and Representation Learning", CVPR; arXiv 1611.07725)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as nnf
from torch import Tensor

from clplat.distillation import Taught
from clplat.memory import HerdingMemory
from clplat.scenario import TensorData
from clplat.strategy import Phase

if TYPE_CHECKING:
    from clplat.batch import Batch
    from clplat.learner import Learner, Output
    from clplat.scenario import Experience


class ICaRL(Taught):
    """iCaRL: train on exemplars and on the old network's answers, classify by the nearest mean of exemplars.

    Each experience trains on the union of its samples and the exemplars of all classes before (algorithm 3), with
    g(x) the sigmoid of the logits and q(x) that of the network before the experience::

        - 1/C sum_y [ t_y log g_y(x) + (1 - t_y) log(1 - g_y(x)) ],   t_y = q_y(x) for old y, else 1[y = label of x]

    over all C outputs, the mean over outputs being that of the authors' code (the paper writes a sum). Then each class
    gets its exemplars by herding on features of length one (algorithm 4), equal numbers for all classes so far, and
    older classes keep the beginning of their lists (algorithm 5). Evaluation takes the class whose mean of exemplar
    features, of length one both before and after the mean, is nearest to the sample's own (algorithm 1), by the network
    as it is; the logits are minus the squared distances, and -inf for a class that has no exemplar yet. Before the
    first experience has ended the head answers. The authors also average over mirrored images; samples here are not
    always images, so this does not.

    Args:
        memory: exemplars of all classes together.
    """

    needs = ("boundaries", "classes", "new-classes")

    def __init__(self, *, memory: int = 200) -> None:
        super().__init__()
        self.memory = HerdingMemory(memory)
        self.old: list[int] = []  # classes of the experiences before
        self._means: tuple[int, Tensor] | None = None  # at which step they were made

    def start(self, learner: Learner, experience: Experience) -> None:
        if self.old:
            self.keep_teacher(learner)

    def phases(self, learner: Learner, experience: Experience) -> Sequence[Phase]:
        return [Phase("train", data=self._with_exemplars(learner, experience))]

    def _with_exemplars(self, learner: Learner, experience: Experience, *classes: int) -> TensorData:
        """The experience's samples and all exemplars, or those of some classes."""
        data = experience.dataset.to(learner.ranks.device, next(learner.parameters()).dtype)
        held = self.memory.rows(self.memory.slots())
        if not held:
            return data
        chosen = torch.isin(held["y"], torch.tensor(classes or self.old, device=held["y"].device))
        rows = zip(data.rows(slice(None)), (held[name][chosen] for name in ("x", "y", "task")), strict=True)
        return TensorData(*(torch.cat(pair) for pair in rows))

    def base_loss(self, learner: Learner, batch: Batch, output: Output) -> Tensor:
        there_NC = output.logits != -torch.inf  # which a growing head has for classes to come
        target_NC = nnf.one_hot(batch.y, output.logits.shape[-1]).to(output.logits.dtype)
        if before := self.ask_teacher(learner, batch):
            before_NC = before.logits.sigmoid()
            assert learner.experience is not None
            old = sorted({*self.old} - {*learner.experience.classes_in_this_experience})
            target_NC[:, old] = before_NC[:, old].to(target_NC.dtype)
        logits_NC = output.logits.masked_fill(~there_NC, 0.0)
        each_NC = nnf.binary_cross_entropy_with_logits(logits_NC, target_NC, reduction="none") * there_NC
        return each_NC.sum(1) / there_NC.sum(1)

    def finish(self, learner: Learner, experience: Experience) -> None:
        classes = experience.classes_in_this_experience
        data = self._with_exemplars(learner, experience, *classes)  # exemplars of a class that came back compete again
        x, y, task = data.rows(slice(None))
        self.memory.add({"x": x, "y": y, "task": task, "features": learner.features_of(data)})
        self.old = sorted({*self.old, *classes})
        self._means = None

    def classify(self, learner: Learner, output: Output, task: Tensor) -> Tensor:
        if not len(self.memory):
            return output.logits
        features_NF = nnf.normalize(output.features.to(next(learner.parameters()).dtype), dim=1)
        apart_NC = (features_NF[:, None] - self._class_means(learner)).square().sum(-1)
        logits_NC = apart_NC.new_full(output.logits.shape, -torch.inf)
        logits_NC[:, [y for _, y in self.memory.groups]] = -apart_NC
        return logits_NC

    def _class_means(self, learner: Learner) -> Tensor:
        """Mean of each class's exemplars by the network as it is, (classes held, F), on this rank alone."""
        if self._means is None or self._means[0] != learner.step:
            held = self.memory.rows(self.memory.slots())
            pairs = zip(held["x"].split(256), held["task"].split(256), strict=True)
            features = torch.cat([learner.output_with({}, x, task).features.detach() for x, task in pairs])
            lengths = [len(group) for group in self.memory.groups.values()]
            means = [of_it.mean(0) for of_it in nnf.normalize(features.to(held["x"].dtype), dim=1).split(lengths)]
            self._means = (learner.step, nnf.normalize(torch.stack(means), dim=1))
        return self._means[1]

    def get_extra_state(self) -> dict[str, Any]:
        return {"old": self.old}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.old, self._means = list(state["old"]), None
