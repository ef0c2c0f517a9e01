"""Heads that copy what is asked from where it was shown."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from clplat.backbones.recording import without_heads
from clplat.errors import UsageError
from clplat.metrics.measures import IGNORED
from clplat.metrics.probes.base import Figure, Probe, Result
from clplat.metrics.probes.sampling import batches, draw_tests, look, no_copies, sources
from clplat.report import plots

if TYPE_CHECKING:
    from clplat.learner import Learner
    from clplat.scenario import Scenario, TensorData


def copied(weights_BHTT: Tensor, x_BT: Tensor, predicted_BT: Tensor) -> Tensor:
    """Whether each head looks most, at each step, at a step that holds the token which is then said, (B, H, T)."""
    target_BHT = weights_BHTT.argmax(-1)
    seen_BHT = x_BT[:, None].expand(-1, target_BHT.shape[1], -1).gather(2, target_BHT)
    return seen_BHT == predicted_BT[:, None]


def retrieval_scores(copied_BHT: Tensor, predicted_BT: Tensor, answer_BT: Tensor, needle_BT: Tensor) -> Tensor:
    """``|g_h and k| / |k|`` of each sample and head (Wu et al. 2024, arXiv 2404.15574): k the tokens of the
    needle, g_h those among them that the head copied when they were said.

    Args:
        answer_BT: the tokens that are asked.
        needle_BT: True at steps whose answer was shown before; all these answers are k.
    """
    B, H, _ = copied_BHT.shape
    scores = torch.zeros(B, H, dtype=torch.float64)
    for b in range(B):
        asked_T = needle_BT[b]
        tokens = answer_BT[b, asked_T].unique()
        if len(tokens) == 0:
            scores[b] = torch.nan
            continue
        said_T = predicted_BT[b, asked_T]
        hit_HKT = copied_BHT[b][:, None, asked_T] & (said_T == tokens[:, None])
        scores[b] = hit_HKT.any(-1).double().mean(-1)
    return scores


class RetrievalHeads(Probe):
    """Retrieval score of each head, and what is lost without the best (Wu et al. 2024, arXiv 2404.15574).

    The needles are what a recall stream shows and asks again: a head copies a token where the network says it, it is
    one of the sample's asked tokens, and the step that the head looks at most holds it. A head's score is the share of
    a sample's asked tokens that it copies, its mean over test samples; a retrieval head has ``threshold`` at least. The
    causal test: accuracy on the same samples with the ``top`` best heads off, and, for comparison, with as many others
    drawn at random (mean over ``controls`` draws).

    The paper decodes answers token by token in texts of many lengths with a needle at many depths; here the stream says
    how long samples are and where their needles lie. Networks without attention have no heads to score.

    Args:
        samples: test samples, of all experiences together.
        threshold: of a retrieval head.
        top: heads that are switched off; 0 for all retrieval heads.
        controls: draws of as many other heads.
    """

    needs = ("tokens", "attention")

    def __init__(self, *, samples: int = 256, threshold: float = 0.1, top: int = 1, controls: int = 5) -> None:
        if samples < 1 or top < 0 or controls < 1 or not 0 < threshold <= 1:
            raise UsageError(
                f"retrieval-heads: samples={samples} and controls={controls} must be positive, top={top} not negative, "
                f"and threshold={threshold} between 0 and 1"
            )
        self.samples, self.threshold, self.top, self.controls = samples, threshold, top, controls

    def unfit(self, learner: Learner, scenario: Scenario) -> str | None:
        return no_copies(learner, scenario)

    def measure(self, learner: Learner, scenario: Scenario) -> Result:
        data = draw_tests(learner, scenario, self.samples, "probe/retrieval-heads")
        scores_LH = self._scores(learner, data)
        L, H = scores_LH.shape
        heads = [(layer, head) for layer in range(L) for head in range(H)]
        ranked = sorted(heads, key=lambda at: -float(scores_LH[at]))
        retrieving = [at for at in ranked if float(scores_LH[at]) >= self.threshold]
        off = ranked[: self.top] if self.top else retrieving
        rest = [at for at in ranked if at not in off]
        without = []
        for draw in range(self.controls if len(rest) >= len(off) and off else 0):
            order = torch.randperm(len(rest), generator=learner.generator("probe/retrieval-heads/control", draw))
            without.append(self._accuracy(learner, data, [rest[i] for i in order[: len(off)].tolist()]))
        return {
            "best": float(scores_LH.max()),
            "share": len(retrieving) / len(heads),
            "accuracy": self._accuracy(learner, data, []),
            "accuracy_without_top": self._accuracy(learner, data, off),
            "accuracy_without_others": sum(without) / len(without) if without else None,
            "scores": scores_LH,
            "off": off,
        }

    def _scores(self, learner: Learner, data: TensorData) -> Tensor:
        parts = []
        for x, y, task in batches(data):
            logits, seen = look(learner, x, task)
            predicted, needle = logits.argmax(-1), sources(x, y) >= 0
            parts.append(
                torch.stack(
                    [retrieval_scores(copied(s.own_weights, x, predicted), predicted, y, needle) for s in seen], 1
                )
            )
        return torch.cat(parts).nanmean(0)

    def _accuracy(self, learner: Learner, data: TensorData, off: list[tuple[int, int]]) -> float:
        """Share of asked steps, whose answers were shown, that are right."""
        right = asked = 0
        with without_heads(learner.backbone, off):
            for x, y, task in batches(data):
                shown = (y != IGNORED) & (sources(x, y) >= 0)
                right += int((learner.answer(x, task).argmax(-1) == y)[shown].sum())
                asked += int(shown.sum())
        return right / max(asked, 1)

    def figure(self, result: Result) -> Figure:
        return plots.cells("Retrieval score", "head", "layer", result["scores"], low=0, high=1)
