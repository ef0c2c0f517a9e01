"""Recognition, recall and retention of single sequences."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clplat.errors import UsageError
from clplat.metrics.measures import base_loss
from clplat.metrics.probes.base import Figure, Probe, Result
from clplat.metrics.probes.sampling import draw, not_language
from clplat.report import plots
from clplat.scenario import TensorData

if TYPE_CHECKING:
    from clplat.learner import Learner
    from clplat.scenario import Experience, Scenario

Weights = Mapping[str, Tensor]


def recognition(seen_N: Tensor, foil_N: Tensor) -> float:
    """Share of pairs in which the loss of what was seen is the smaller one; half a pair where they are equal."""
    return float(((seen_N < foil_N).double() + 0.5 * (seen_N == foil_N)).mean())


def rouge2(said: list[int], meant: list[int]) -> float:
    """F-measure of the pairs of neighbours that two sequences have in common, each counted as often as it is in both
    (ROUGE-2, Lin 2004)."""
    first, second = (list(pairwise(words)) for words in (said, meant))
    if not first or not second:
        return 0.0
    common = sum(min(first.count(pair), second.count(pair)) for pair in set(first))
    return 2 * common / (len(first) + len(second))


def forgetting_curve(t: NDArray[np.float64], kept: NDArray[np.float64]) -> dict[str, float | str]:
    """The better of ``a exp(-b t)`` and ``a (1 + b t)^-c`` by least squares (Akaike's criterion, for they have two and
    three parameters), its error, and the time at which half of a is left: inf where b is 0."""
    from scipy.optimize import curve_fit

    best: dict[str, float | str] = {}
    for name, function, start, top in (
        ("exponential", lambda t, a, b: a * np.exp(-b * t), (1.0, 0.1), (2.0, 1e3)),
        ("power", lambda t, a, b, c: a * (1 + b * t) ** -c, (1.0, 0.1, 0.5), (2.0, 1e6, 10.0)),
    ):
        try:
            values, _ = curve_fit(function, t, kept, p0=start, bounds=(0.0, top), max_nfev=5000)
        except RuntimeError:
            continue
        rss = float(np.square(function(t, *values) - kept).sum())
        criterion = len(t) * np.log(max(rss / len(t), 1e-12)) + 2 * len(values)
        if best and criterion >= float(best["criterion"]):
            continue
        b, c = float(values[1]), float(values[2]) if len(values) == 3 else 0.0
        with np.errstate(divide="ignore", over="ignore"):
            half = np.log(2) / b if c == 0 and b > 0 else (2 ** (1 / c) - 1) / b if b > 0 and c > 0 else np.inf
        best = {"form": name, "criterion": float(criterion), "rss": rss, "half_life": float(half)}
    return best


class RetentionProbe(Probe):
    """Recognition, recall and retention of sequences (Orhan 2023, arXiv 2303.17557, and the author's code).

    Recognition: of pairs of a sequence that was seen and a foil that was not, the share in which the network's mean
    loss of a token is smaller for the seen one; 0.5 is chance. Recall: the first half is given, the rest decoded
    greedily; the share of tokens that are right, of sequences that are right to the end, and ROUGE-2 of the whole
    sequences, the given half included, as there (which of ROUGE's variants the paper shows is not known).

    - The run's own items: of each experience trained so far, training sequences against test sequences. Taken at each
      experience's end this is the forgetting of single items under the run's strategy.
    - Study: new items, against foils of the same kind, are trained on for 1, 2, ... ``exposures`` passes on a copy of
      the weights; the copy is then trained on sequences of the newest experience, and measured again after numbers of
      updates that are about evenly spaced on a logarithmic scale. By Adam and without the strategy, which the copy has
      not. The retention of recall is fitted by an exponential and a power law.

    Items and foils of the study are test sequences (stream), the same with their tokens shuffled, or random tokens; a
    foil can also be the item with one token changed. The paper has 600 items, AdamW with 1e-5 for a pretrained network
    of 6e9 weights, batches of 16, and up to 1e5 updates. Updates to relearn (savings) are not measured.

    Args:
        items: in the study, and of each experience.
        exposures: passes over them.
        updates: after the study, on other sequences.
        kind: of the items of the study.
        foils: of the same kind; or the item with one token changed.
        lr: learning rate.
        batch_size: sequences of an update.
    """

    needs = ("tokens", "steps")

    def __init__(
        self,
        *,
        items: int = 64,
        exposures: int = 5,
        updates: int = 100,
        kind: Literal["stream", "shuffled", "random"] = "random",
        foils: Literal["unrelated", "one-changed"] = "unrelated",
        lr: float = 1e-3,
        batch_size: int = 16,
    ) -> None:
        if min(items, batch_size) < 1 or min(exposures, updates) < 0 or lr <= 0:
            raise UsageError(
                f"retention-probe: items={items}, batch_size={batch_size} and lr={lr} must be positive, "
                f"exposures={exposures} and updates={updates} not negative"
            )
        self.items, self.exposures, self.updates = items, exposures, updates
        self.kind, self.foils, self.lr, self.batch_size = kind, foils, lr, batch_size

    def unfit(self, learner: Learner, scenario: Scenario) -> str | None:
        return not_language(learner, scenario)

    def measure(self, learner: Learner, scenario: Scenario) -> Result:
        newest = self._newest(learner, scenario)
        weights = {name: p.detach().clone().requires_grad_() for name, p in learner.network().items()}
        optimizer = torch.optim.Adam(weights.values(), lr=self.lr)
        own = []
        for j, train in enumerate(scenario.train_stream[: newest.current_experience + 1]):
            seen = draw(learner, train.dataset, self.items, "probe/retention/own", j)
            test = scenario.test_stream[scenario.tested[j]].dataset
            foil = draw(learner, test, self.items, "probe/retention/foils", j)
            own.append(self._score(learner, weights, seen, foil))
        seen, foil = self._study(learner, scenario)
        exposure = [self._score(learner, weights, seen, foil)]
        for e in range(self.exposures):
            order = torch.randperm(len(seen), generator=learner.generator("probe/retention/order", e))
            self._train(learner, weights, optimizer, seen, list(order.split(self.batch_size)))
            exposure.append(self._score(learner, weights, seen, foil))
        times = sorted({0, *(round(self.updates ** (k / 8)) for k in range(9))}) if self.updates else [0]
        source = learner.generator("probe/retention/later")
        other = newest.dataset.to(learner.ranks.device)
        retention = [exposure[-1]]
        for before, after in pairwise(times):
            parts = [torch.randint(len(other), (self.batch_size,), generator=source) for _ in range(after - before)]
            self._train(learner, weights, optimizer, other, parts)
            retention.append(self._score(learner, weights, seen, foil))
        kept = [score["recall"] for score in retention]
        fit = forgetting_curve(np.array(times, float), np.array(kept, float)) if len(times) > 3 else {}
        return {
            "recognition": own[0]["recognition"],
            "recall": own[0]["recall"],
            "studied_recognition": exposure[-1]["recognition"],
            "studied_recall": exposure[-1]["recall"],
            "kept_recognition": retention[-1]["recognition"],
            "kept_recall": retention[-1]["recall"],
            "half_life": fit.get("half_life"),
            "experiences": own,
            "exposures": exposure,
            "updates": times,
            "retention": retention,
            "fit": fit,
        }

    def _newest(self, learner: Learner, scenario: Scenario) -> Experience:
        return learner.experience or scenario.train_stream[0]

    def _study(self, learner: Learner, scenario: Scenario) -> tuple[TensorData, TensorData]:
        """Items and foils, as many of each."""
        test = scenario.test_stream[0].dataset
        both = draw(learner, test, 2 * self.items, "probe/retention/study")
        if len(both) < 2:
            raise UsageError("retention-probe: the first test experience has too few sequences")
        source = learner.generator("probe/retention/items")
        s_NT = torch.cat([both.x[:, :1], both.y], 1).cpu()  # with the token that is asked last
        if self.kind != "stream":
            order = torch.rand(s_NT.shape, generator=source).argsort(1)
            s_NT = s_NT.gather(1, order)
        if self.kind == "random":
            tokens = s_NT.unique()
            s_NT = tokens[torch.randint(len(tokens), s_NT.shape, generator=source)]
        half = len(s_NT) // 2
        item, foil = s_NT[:half], s_NT[half : 2 * half]
        if self.foils == "one-changed":
            foil = item.clone()
            place = torch.randint(1, item.shape[1], (half, 1), generator=source)
            vocabulary = int(scenario.spec.vocabulary or 2)
            step = torch.randint(1, vocabulary, (half, 1), generator=source)
            foil.scatter_(1, place, (foil.gather(1, place) + step) % vocabulary)
        label = both.task[0].expand(half)
        made = [TensorData(s[:, :-1], s[:, 1:], label.cpu()).to(learner.ranks.device) for s in (item, foil)]
        return made[0], made[1]

    def _train(
        self,
        learner: Learner,
        weights: Weights,
        optimizer: torch.optim.Optimizer,
        data: TensorData,
        parts: list[Tensor],
    ) -> None:
        """Change the copied weights by one step for each part of the data."""
        with torch.enable_grad():
            for part in parts:
                x, y, task = data.rows(part)
                loss = base_loss("token", learner.output_with(weights, x, task).logits, y).mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()

    def _score(self, learner: Learner, weights: Weights, seen: TensorData, foil: TensorData) -> dict[str, float]:
        n = min(len(seen), len(foil))
        seen, foil = (data.subset(torch.arange(n)) for data in (seen, foil))
        losses = [
            base_loss("token", learner.output_with(weights, data.x, data.task).logits.double(), data.y)
            for data in (seen, foil)
        ]
        whole_NT = torch.cat([seen.x[:, :1], seen.y], 1)
        given = whole_NT.shape[1] // 2
        said_NT = whole_NT.clone()
        for t in range(given, whole_NT.shape[1]):
            logits = learner.output_with(weights, said_NT[:, :t], seen.task).logits
            said_NT[:, t] = logits[:, -1].argmax(-1)
        right = said_NT[:, given:] == whole_NT[:, given:]
        pairs = zip(said_NT.tolist(), whole_NT.tolist(), strict=True)
        return {
            "recognition": recognition(losses[0], losses[1]),
            "recall": float(right.double().mean()),
            "exact": float(right.all(1).double().mean()),
            "rouge2": sum(rouge2(said, meant) for said, meant in pairs) / n,
        }

    def figure(self, result: Result) -> Figure:
        times = [max(t, 0.5) for t in result["updates"]]  # before the first, on a logarithmic scale
        names = ("recognition", "recall")
        curves = {name: (times, [score[name] for score in result["retention"]]) for name in names}
        return plots.lines("Retention of studied items", "updates on other data", "share", curves, log_x=True)
