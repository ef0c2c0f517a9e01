"""Less-forgetful learning (Jung et al. 2016, "Less-forgetting Learning in Deep Neural Networks", arXiv 1607.00122)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from clplat.distillation import Taught
from clplat.errors import UsageError
from clplat.projection import BoundaryKeeping

if TYPE_CHECKING:
    from clplat.batch import Batch
    from clplat.learner import Learner, Output
    from clplat.scenario import Experience


class LFL(Taught, BoundaryKeeping):
    """Less-forgetful learning: give the kept classifier the features that it was given before.

    At the start of each experience the network becomes a frozen teacher in evaluation mode, and the classifier of the
    classes so far stays as it is. With f the features that the head is given, for each new sample (section 3)::

        L + lambda/2 * || f_teacher(x) - f(x) ||_2^2

    The squared distance is summed over features and averaged over samples, so lambda does not depend on the batch's
    size but does on the number of features (code that sums over the batch has a lambda smaller by its size). Classes
    that are new, and the heads of new tasks, learn freely; the paper has the same classes in a new domain.

    Args:
        strength: lambda, weight of the distance.
    """

    needs = ("boundaries", "classes")

    def __init__(self, *, strength: float = 0.1) -> None:
        super().__init__()
        if strength < 0:
            raise UsageError(f"lfl: strength={strength} must not be negative")
        self.strength = strength

    def start(self, learner: Learner, experience: Experience) -> None:
        if self.seen:
            self.keep_teacher(learner)

    def loss(self, learner: Learner, batch: Batch, output: Output) -> dict[str, Tensor]:
        old = self.ask_teacher(learner, batch)
        if old is None:
            return {}
        distance_N = (output.features - old.features).square().flatten(1).sum(1)
        return {"features": 0.5 * self.strength * distance_N}
