"""Whether a network uses tokens rightly that it has never seen, as a circuit that works for any embedding does."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from clplat.errors import UsageError, suggestion
from clplat.metrics import measures
from clplat.metrics.probes.base import Figure, Probe, Result
from clplat.metrics.probes.sampling import batches, draw
from clplat.report import plots

if TYPE_CHECKING:
    from clplat.learner import Learner
    from clplat.scenario import Scenario

TABLE = "encoder.embedding.weight"


class NovelTokens(Probe):
    """Structural in-context learning (Anand et al. 2025, arXiv 2406.00053): the metric of the stream on samples of
    tokens that no training experience has.

    Their embeddings are drawn from N(0, 1), as at the beginning, so that neither training nor chance has said anything
    about them. The mean over draws, for each test experience (``by_experience``) and over all of them (``novel``),
    beside that on the same samples with the embeddings as they are (``kept``), which training has moved where answers
    are scored by them.

    Args:
        slice: of the scenario whose samples have such tokens.
        draws: of embeddings.
        samples: of each test experience.
    """

    needs = ("tokens",)

    def __init__(self, *, slice: str = "held-out", draws: int = 5, samples: int = 256) -> None:
        if min(draws, samples) < 1:
            raise UsageError(f"novel-tokens: draws={draws} and samples={samples} must be positive")
        self.slice, self.draws, self.samples = slice, draws, samples

    def unfit(self, learner: Learner, scenario: Scenario) -> str | None:
        if self.slice not in scenario.slices:
            valid = suggestion(self.slice, scenario.slices) if scenario.slices else " There are none."
            return f"finds no slice {self.slice!r}.{valid} Choose e.g. --scenario part-of-speech"
        if not len(_novel(scenario, self.slice)):
            return f"needs tokens that training never shows, and the slice {self.slice} has none"
        return None

    def measure(self, learner: Learner, scenario: Scenario) -> Result:
        novel = _novel(scenario, self.slice)
        table = learner.network()[TABLE].detach()
        found = []
        for number, experience in enumerate(scenario.slices[self.slice]):
            data = draw(learner, experience.dataset, self.samples, "probe/novel-tokens/samples", number)
            values = []
            for chosen in range(1 + self.draws):
                fresh = table.clone()
                if chosen:
                    source = learner.generator("probe/novel-tokens", number, chosen)
                    fresh[novel] = torch.randn(len(novel), table.shape[1], generator=source).to(table)
                weights = {TABLE: fresh}
                parts = [
                    measures.sums(learner.target, learner.output_with(weights, x, task).logits, y)
                    for x, y, task in batches(data)
                ]
                values.append(measures.values(learner.target, torch.stack(parts).sum(0))[scenario.spec.metric])
            found.append(values)
        values_ED = torch.tensor(found)
        by_experience = values_ED[:, 1:].mean(1)
        return {
            "novel": by_experience.mean().item(),
            "kept": values_ED[:, 0].mean().item(),
            "tokens": len(novel),
            "by_experience": by_experience.tolist(),
        }

    def figure(self, result: Result) -> Figure:
        places = list(range(len(result["by_experience"])))
        title = f"Tokens never seen: {result['novel']:.3f} under new embeddings, {result['kept']:.3f} under their own"
        return plots.lines(title, "experience", "measure", {"novel": (places, result["by_experience"])})


def _novel(scenario: Scenario, name: str) -> Tensor:
    """Tokens of a slice that no training experience has in its inputs."""
    asked, seen = (
        torch.cat([e.dataset.x.flatten() for e in stream]).unique()
        for stream in (scenario.slices[name], scenario.train_stream)
    )
    return asked[~torch.isin(asked, seen)].long()
