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

    Measured: facts stay out of the weights while the table is reset. On nouns and adjectives as in the paper
    (``--scenario part-of-speech learner.head=tied`` with 40 words, 768 steps, K = 50, N = 450; seeds 0, 1, 2) the probe
    `novel-tokens` finds 0.77, 0.74, 0.70 right on words that were never seen, 0.77, 0.79, 0.64 where forgetting never
    stops, and 0.05, 0.03, 0.02 without. Without, 0.73, 0.65, 0.70 of the words in the other's place are answered by
    heart, after temporary forgetting 0.41, 0.45, 0.23. That this is more than under forgetting that never stops (0.24,
    0.23, 0.48) does not hold for each seed of so small a training.

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
