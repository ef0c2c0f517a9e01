"""The n-back task: is this stimulus the one of n steps ago?"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as nnf
from torch import Tensor

from clplat.errors import UsageError
from clplat.metrics.measures import IGNORED
from clplat.scenario import Scenario, Spec, TensorData
from clplat.scenarios.generated import at_least, chosen, streams


class NBack(Scenario):
    """n-back: at each step, say whether the stimulus is the one shown n steps before; a larger n in each experience.

    Kirchner 1958, in the form of Gong, Wan and Wang 2024 (Working memory capacity of ChatGPT, AAAI, arXiv 2305.03731).
    A block is a cue and ``trials`` stimuli of ``stimuli``, of which exactly ``matches`` equal the one n before, and no
    other does. The target is a token at each stimulus from the n-th on: 1 for a match, 0 for none; nothing is asked at
    the cue and at the first n, which cannot match. Saying 0 always is right in ``1 - matches / (trials - n)``. A share
    ``lures`` of the other trials equal the stimulus n - 1 or n + 1 steps before instead, where these differ from the
    one n before (a lure that cannot be made is an ordinary trial).

    :func:`clplat.metrics.detection.sensitivity` is d' of hits and false alarms, and
    :func:`clplat.metrics.detection.capacity` the largest n that is mastered; the run itself records accuracy.

    Experience e (from 0) asks for n = first + e, so forgetting is that of smaller n. Settings: ``domain``: the cue
    tells n; one head. ``task``: the cue is always the same, the task label tells n, and each task has its own head.
    Stimuli are ``letters``: tokens (0 is not used, then the letters, then the cues); or ``grid``: cells of a square
    grid, a vector of one-hot row, one-hot column and one-hot cue at each step.

    The authors' files have 24 trials with 8 matches in a block, 50 blocks for each n from 1 to 3, letters or cells of a
    3 x 3 grid. Assumed: matches anywhere among the trials from the n-th on with equal probability, other stimuli drawn
    evenly from those that do not match. Their variants with words of feedback or noise symbols, and matches by row or
    column alone, are not here.

    Args:
        setting: domain- or task-incremental.
        experiences: how many n.
        first: the smallest n.
        stimuli: letters or cells of a grid.
        alphabet: number of different letters; or cells, a square number.
        trials: stimuli in a block.
        matches: of them, how many match.
        lures: share of the non-matches that match one step too early or too late.
        samples: training blocks in an experience.
        test_samples: test blocks in an experience.
    """

    settings = ("domain", "task")

    def __init__(
        self,
        seed: int,
        *,
        setting: Literal["domain", "task"] = "domain",
        experiences: int = 3,
        first: int = 1,
        stimuli: Literal["letters", "grid"] = "letters",
        alphabet: int = 9,
        trials: int = 24,
        matches: int = 8,
        lures: float = 0.0,
        samples: int = 1000,
        test_samples: int = 250,
    ) -> None:
        problems = at_least(1, experiences=experiences, first=first, matches=matches)
        problems += at_least(1, samples=samples, test_samples=test_samples) + at_least(2, alphabet=alphabet)
        if trials < first + experiences - 1 + matches:
            problems.append(
                f"scenario.trials={trials}: {matches} matches of {first + experiences - 1} steps ago need "
                f"{first + experiences - 1 + matches}"
            )
        if not 0 <= lures <= 1:
            problems.append(f"scenario.lures={lures}: a share from 0 to 1 is needed")
        side = round(max(alphabet, 0) ** 0.5)
        if stimuli == "grid" and side * side != alphabet:
            problems.append(f"scenario.alphabet={alphabet}: a grid has a square number of cells")
        if problems:
            raise UsageError(*problems)
        cues = experiences if setting == "domain" else 1

        def make(e: int, name: str, n: int, source: torch.Generator) -> TensorData:
            shown_NT, match_NT = _block(n, first + e, alphabet, trials, matches, lures, source)
            y_NT = torch.full((n, 1 + trials), IGNORED)
            y_NT[:, 1 + first + e :] = match_NT[:, first + e :].long()
            cue = e if setting == "domain" else 0
            if stimuli == "letters":
                x = nnf.pad(1 + shown_NT, (1, 0), value=1 + alphabet + cue)
            else:
                x = torch.zeros(n, 1 + trials, 2 * side + cues)
                x[:, 1:, :side] = nnf.one_hot(shown_NT // side, side).to(x.dtype)
                x[:, 1:, side : 2 * side] = nnf.one_hot(shown_NT % side, side).to(x.dtype)
                x[:, 0, 2 * side + cue] = 1
            return TensorData(x, y_NT, e if setting == "task" else 0)

        if stimuli == "letters":
            tokens = 1 + alphabet + cues
            spec = Spec((1 + trials,), 2, setting, encoder="tokens", target="token", vocabulary=tokens)
        else:
            spec = Spec((1 + trials, 2 * side + cues), 2, setting, target="token")
        super().__init__(spec, *streams(seed, "n-back", experiences, samples, test_samples, make))


def _block(
    rows: int, n: int, alphabet: int, trials: int, matches: int, lures: float, source: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Stimuli from 0 on and whether they match, (rows, trials)."""
    match_NT = torch.zeros(rows, trials, dtype=torch.bool)
    match_NT.scatter_(1, n + chosen(rows, trials - n, matches, source), True)
    lure_NT = torch.rand((rows, trials), generator=source) < lures
    early_NT = torch.rand((rows, trials), generator=source) < 0.5
    shown_NT = torch.randint(alphabet, (rows, trials), generator=source)
    other_NT = torch.randint(1, alphabet, (rows, trials), generator=source)
    for t in range(n, trials):
        asked_N = shown_NT[:, t - n]
        plain_N = (asked_N + other_NT[:, t]) % alphabet
        # At n = 1 there is nothing between; at t = n nothing earlier.
        early_N = shown_NT[:, t - n - 1] if t > n else asked_N
        late_N = shown_NT[:, t - n + 1] if n > 1 else asked_N
        first_N, second_N = torch.where(early_NT[:, t], torch.stack([early_N, late_N]), torch.stack([late_N, early_N]))
        tempting_N = torch.where(first_N != asked_N, first_N, second_N)
        fits_N = lure_NT[:, t] & (tempting_N != asked_N)
        shown_NT[:, t] = torch.where(match_NT[:, t], asked_N, torch.where(fits_N, tempting_N, plain_N))
    return shown_NT, match_NT
