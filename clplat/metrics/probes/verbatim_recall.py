"""How much less surprising a list of tokens is the second time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from clplat.errors import UsageError
from clplat.metrics.probes.base import Figure, Probe, Result
from clplat.metrics.probes.sampling import batches, not_language
from clplat.report import plots
from clplat.scenario import TensorData

if TYPE_CHECKING:
    from clplat.learner import Learner
    from clplat.scenario import Scenario

CONDITIONS = ("repeat", "permute", "control")


@dataclass(frozen=True)
class Stimuli:
    """Sequences x (N, T) of prefix, cue, list, filler, cue, list; the lists' places are ``first`` and ``second``."""

    x: Tensor
    first: slice
    second: slice


def stimuli(
    condition: str, prefix_NP: Tensor, cue_NC: Tensor, list_NL: Tensor, filler_NF: Tensor, other_NL: Tensor
) -> Stimuli:
    """The second list is the first (repeat), the first turned by half its length (permute: every token moves), or
    ``other_NL`` (control)."""
    n = list_NL.shape[1]
    again_NL = {"repeat": list_NL, "permute": list_NL.roll(n // 2, 1), "control": other_NL}[condition]
    parts = [prefix_NP, cue_NC, list_NL, filler_NF, cue_NC, again_NL]
    start = prefix_NP.shape[1] + cue_NC.shape[1]
    x_NT = torch.cat(parts, 1)
    return Stimuli(x_NT, slice(start, start + n), slice(x_NT.shape[1] - n, x_NT.shape[1]))


def surprisal(logits_NTV: Tensor, x_NT: Tensor) -> Tensor:
    """Bits of each token given those before it, (N, T); NaN for the first."""
    logp_NTV = logits_NTV[:, :-1].double().log_softmax(-1)
    bits_NT = -logp_NTV.gather(2, x_NT[:, 1:, None])[..., 0] / torch.log(torch.tensor(2.0, dtype=torch.float64))
    return torch.cat([torch.full_like(bits_NT[:, :1], torch.nan), bits_NT], 1)


def repeat_surprisal(first_NL: Tensor, second_NL: Tensor) -> Tensor:
    """Mean surprisal of the second list over that of the first, in percent, (N,)."""
    return 100 * second_NL.mean(1) / first_NL.mean(1).clamp(min=1e-12)


def interval(values_N: Tensor, source: torch.Generator, draws: int = 500) -> tuple[float, float, float]:
    """The median, and the 2.5% and 97.5% quantiles of medians of as many values drawn with replacement."""
    index = torch.randint(len(values_N), (draws, len(values_N)), generator=source)
    medians = values_N.cpu()[index].quantile(0.5, dim=1)
    low, high = medians.quantile(torch.tensor([0.025, 0.975], dtype=medians.dtype)).tolist()
    return float(values_N.quantile(0.5)), low, high


class VerbatimRecall(Probe):
    """Repeat surprisal: verbatim short-term memory of a language model (Armeni et al. 2022, arXiv 2210.13569).

    A list of n different tokens is shown, then filler, then a second list: the same (repeat), the same in another order
    (permute), or new tokens (control); a cue of fixed tokens stands before both. The measure of a trial is the mean
    surprisal of the second list over that of the first, in percent; reported are medians over trials with 95% bootstrap
    intervals, by list size, filler length and condition, and surprisal by position. Repeat well below control:
    identity is remembered. Repeat below permute: order is. The first token of the second list is harder than the
    others, since nothing says yet that a repetition comes: ``after_first`` leaves it out of both lists.

    Tokens of the lists are drawn from those of the test samples (without 0); filler and prefix are pieces of test
    samples (stream), the same with their tokens shuffled (scrambled), or tokens like those of the lists (random), and
    may hold tokens of the list by chance. The paper's lists are nouns in English text, sizes 3, 5, 7, 10 and fillers
    of 26, 47, 99, 194 and 435 tokens (its code); fillers are shorter here by default. Control's lists share no token
    with the first. Of its controls, shuffled attention is not here.

    Args:
        sizes: tokens of a list.
        delays: tokens of filler.
        trials: of each size and delay.
        filler: what is between.
        prefix: tokens before.
        cue: tokens of the cue.
    """

    needs = ("tokens", "steps")

    def __init__(
        self,
        *,
        sizes: tuple[int, ...] = (3, 5, 7, 10),
        delays: tuple[int, ...] = (8, 26, 99),
        trials: int = 50,
        filler: Literal["stream", "scrambled", "random"] = "stream",
        prefix: int = 4,
        cue: int = 1,
    ) -> None:
        problems = []
        if not sizes or min(sizes) < 2:
            problems.append(f"verbatim-recall: sizes={list(sizes)}: lists of two tokens at least are needed")
        if not delays or min(delays) < 0 or prefix < 0:
            problems.append(f"verbatim-recall: delays={list(delays)} and prefix={prefix} must not be negative")
        if trials < 2 or cue < 1:
            problems.append(f"verbatim-recall: trials={trials} must be 2 at least, and cue={cue} 1")
        if problems:
            raise UsageError(*problems)
        self.sizes, self.delays, self.trials = tuple(sizes), tuple(delays), trials
        self.filler, self.prefix, self.cue = filler, prefix, cue

    def unfit(self, learner: Learner, scenario: Scenario) -> str | None:
        problem = not_language(learner, scenario)
        pool, most = len(self._pool(scenario)), 2 * max(self.sizes)
        if problem is None and pool < most:
            problem = f"has sizes={list(self.sizes)}, but the stream has {pool} tokens of the {most} needed"
        return problem

    def measure(self, learner: Learner, scenario: Scenario) -> Result:
        pool = self._pool(scenario)
        text = torch.cat([e.dataset.x.flatten().cpu() for e in scenario.test_stream])
        rows: dict[str, list[list[float]]] = {condition: [] for condition in CONDITIONS}
        trials: dict[str, list[Tensor]] = {condition: [] for condition in CONDITIONS}
        rest: dict[str, list[Tensor]] = {condition: [] for condition in CONDITIONS}
        positions: dict[str, dict[int, Tensor]] = {condition: {} for condition in CONDITIONS}
        for size in self.sizes:
            for delay in self.delays:
                drawn = self._draw(learner, pool, text, size, delay)
                for condition in CONDITIONS:
                    first, second = self._bits(learner, stimuli(condition, *drawn))
                    shares = repeat_surprisal(first, second)
                    source = learner.generator(f"probe/verbatim-recall/bootstrap/{condition}", size, delay)
                    rows[condition].append([size, delay, *interval(shares, source)])
                    trials[condition].append(shares)
                    rest[condition].append(repeat_surprisal(first[:, 1:], second[:, 1:]))
                    positions[condition][size] = positions[condition].get(size, 0) + second.mean(0) / len(self.delays)
        pooled = {condition: float(torch.cat(parts).quantile(0.5)) for condition, parts in trials.items()}
        after = {f"{name}_after_first": float(torch.cat(parts).quantile(0.5)) for name, parts in rest.items()}
        return pooled | after | {"by_condition": rows, "bits_by_position": positions}

    def _pool(self, scenario: Scenario) -> Tensor:
        tokens = torch.cat([e.dataset.x.flatten().cpu().unique() for e in scenario.test_stream]).unique()
        return tokens[tokens > 0]

    def _draw(
        self, learner: Learner, pool: Tensor, text: Tensor, size: int, delay: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Prefix, cue, list, filler and the control's list, a row for each trial."""
        source = learner.generator("probe/verbatim-recall", size, delay)
        words = pool[torch.rand(self.trials, len(pool), generator=source).argsort(1)[:, : 2 * size]]
        length = self.prefix + delay
        if self.filler == "random":
            passage = pool[torch.randint(len(pool), (self.trials, length), generator=source)]
        else:
            start = torch.randint(max(1, len(text) - length), (self.trials, 1), generator=source)
            passage = text[(start + torch.arange(length)) % len(text)]
        if self.filler == "scrambled":
            passage = passage.gather(1, torch.rand(passage.shape, generator=source).argsort(1))
        fixed = learner.generator("probe/verbatim-recall/cue")
        cue = pool[torch.randperm(len(pool), generator=fixed)[: self.cue]].expand(self.trials, -1)
        return passage[:, : self.prefix], cue, words[:, :size], passage[:, self.prefix :], words[:, size:]

    def _bits(self, learner: Learner, given: Stimuli) -> tuple[Tensor, Tensor]:
        """Surprisal of both lists."""
        x = given.x.to(learner.ranks.device)
        data = TensorData(x, x)
        bits_NT = torch.cat([surprisal(learner.answer(x, task), x) for x, _, task in batches(data)])
        return bits_NT[:, given.first], bits_NT[:, given.second]

    def figure(self, result: Result) -> Figure:
        size = max(self.sizes)
        curves = {}
        for condition in CONDITIONS:
            rows = [row for row in result["by_condition"][condition] if row[0] == size]
            curves[condition] = ([row[1] for row in rows], [row[2] for row in rows])
        return plots.lines(f"Repeat surprisal, lists of {size}", "tokens between", "percent of the first time", curves)
