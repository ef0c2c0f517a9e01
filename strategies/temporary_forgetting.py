"""Active and temporary forgetting (Anand et al. 2025, "Dual Process Learning", ICLR; arXiv 2406.00053)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from clplat.errors import UsageError
from clplat.strategy import Strategy

if TYPE_CHECKING:
    from clplat.batch import Batch
    from clplat.learner import Learner


class TemporaryForgetting(Strategy):
    """Forget what tokens mean, again and again, so that the rest of the network learns to read it from the context.

    With E the table of token embeddings and s the number of optimiser steps over the whole run::

        after step s:  E_ij ~ N(0, 1) anew, if s is a multiple of K and s <= N;  all other weights stay

    Without N that is active forgetting (Chen et al. 2023): what is known can only be a circuit that works for any
    embedding. With N it is temporary forgetting: after step N the tokens' own meanings are learned on top of it. The
    draw is the one that the table is initialised with. The optimiser takes the new table as a new parameter, with no
    moments and no count of steps, and goes on as before with all others (the released code clears the moments of all).

    Measured here is that facts stay out of the weights while the table is reset. The paper's own probes (held-out
    tokens under a random table, known nouns in the place of adjectives) are not: they need its stream of nouns and
    adjectives and an output layer tied to the table, so that a token that was never trained can be answered; our heads
    are not tied.

    Args:
        every: K, steps between two resets; the authors take 1000 for active and 10 for temporary forgetting.
        until: N, the last step after which the table may be reset; null never stops.
    """

    needs = ("tokens",)

    def __init__(self, *, every: int = 1000, until: int | None = None) -> None:
        super().__init__()
        if every < 1 or (until is not None and until < 0):
            raise UsageError(f"temporary-forgetting: every={every} >= 1 and until={until} >= 0 are needed")
        self.every, self.until = every, until

    @torch.no_grad()
    def after_step(self, learner: Learner, batch: Batch) -> None:
        if learner.step % self.every or (self.until is not None and learner.step > self.until):
            return
        assert learner.encoder.embedding is not None
        table = learner.encoder.embedding.weight
        draws = learner.generator(f"{self.name}/embedding", learner.step)
        table.copy_(torch.randn(table.shape, generator=draws).to(table))
        learner.forget_moments([table])
