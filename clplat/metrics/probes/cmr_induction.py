"""Induction heads, and how like human recall their attention falls off with the lag."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from clplat.errors import UsageError
from clplat.metrics import cmr
from clplat.metrics.probes.base import Figure, Probe, Result
from clplat.metrics.probes.sampling import look
from clplat.report import plots

if TYPE_CHECKING:
    from clplat.learner import Learner
    from clplat.scenario import Scenario


def lag_profile(weights_BHTT: Tensor, lags: int) -> Tensor:
    """Mean attention from each token of the second copy to the first, by the place relative to the token that is the
    same, (B, H, 2 lags + 1); T is twice the list. Places beyond the first copy are left out of the mean."""
    n = weights_BHTT.shape[-1] // 2
    second_BHNN = weights_BHTT[..., n:, :n]
    return torch.stack([second_BHNN.diagonal(d, -2, -1).mean(-1) for d in range(-lags, lags + 1)], -1)


class CMRInduction(Probe):
    """Induction matching and distance from human memory of each head (Ji-An et al. 2024, arXiv 2405.14992).

    Lists of different random tokens, each repeated once; a head's profile is its mean attention from a token of the
    second copy to the first copy, by the lag from the same token. The matching score is the attention at lag +1, to
    what came after the token last time. The profile over lags -5 to 5 is compared with the conditional response
    probability of the CMR model (:mod:`clplat.metrics.cmr`); a head is like CMR where the distance is below 0.5.

    Assumed: tokens are drawn from those of the test samples (not the blank of number 0), without special tokens in
    front. The copying score of the authors (from the weights alone) is not measured; nor is what is lost without the
    heads, which ``retrieval-heads`` measures.

    Args:
        length: tokens of a list; at most as many as there are different ones.
        samples: lists.
        lags: largest lag.
        threshold: distance below which a head is like CMR.
    """

    needs = ("tokens", "attention")

    def __init__(self, *, length: int = 24, samples: int = 64, lags: int = 5, threshold: float = 0.5) -> None:
        if lags < 1 or length < 2 * lags or samples < 1:
            raise UsageError(
                f"cmr-induction: lags={lags} and samples={samples} must be positive, length={length} 2 lags"
            )
        self.length, self.samples, self.lags, self.threshold = length, samples, lags, threshold

    def measure(self, learner: Learner, scenario: Scenario) -> Result:
        tokens = torch.cat([e.dataset.x.flatten().cpu() for e in scenario.test_stream]).unique()
        tokens = tokens[tokens > 0]
        n = min(self.length, len(tokens))
        if n < 2 * self.lags:
            raise UsageError(f"cmr-induction: {len(tokens)} different tokens are too few for lags={self.lags}")
        source = learner.generator("probe/cmr-induction")
        order = torch.rand(self.samples, len(tokens), generator=source).argsort(1)[:, :n]
        list_NL = tokens[order].to(learner.ranks.device)
        x = torch.cat([list_NL, list_NL], 1)
        _, seen = look(learner, x, torch.zeros(len(x), dtype=torch.long, device=x.device))
        profiles = torch.stack([lag_profile(layer.own_weights, self.lags).mean(0) for layer in seen]).double().cpu()
        fits = [[cmr.fit(head) for head in layer] for layer in profiles.numpy()]
        distances = np.array([[distance for distance, _ in layer] for layer in fits])
        middle = self.lags
        near = profiles[..., middle + 1]
        asymmetry = profiles[..., middle + 1 :].sum(-1) - profiles[..., :middle].sum(-1)
        return {
            "matching": float(near.max()),
            "asymmetry": float(asymmetry.flatten()[near.argmax()]),
            "distance": float(np.nanmin(distances)) if np.isfinite(distances).any() else float("nan"),
            "cmr_like": int((distances < self.threshold).sum()),
            "length": n,
            "matching_scores": near,
            "distances": distances,
            "parameters": [[best for _, best in layer] for layer in fits],
            "by_layer": (distances < self.threshold).mean(1),
            "profiles": profiles,
        }

    def figure(self, result: Result) -> Figure:
        lags = list(range(-self.lags, self.lags + 1))
        heads = [
            (score, f"layer {layer}, head {head}", result["profiles"][layer][head])
            for layer, row in enumerate(result["matching_scores"])
            for head, score in enumerate(row)
        ]
        best = sorted(heads, reverse=True)[:4]
        curves = {name: (lags, profile) for _, name, profile in best}
        return plots.lines("Attention to the first copy", "lag from the same token", "attention", curves)
