"""The n-back task: is this stimulus the one of n steps ago?"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as nnf
from torch import Tensor

from clplat.errors import UsageError
from clplat.metrics.measures import IGNORED
from clplat.scenario import Scenario, Spec, TensorData
from clplat.scenarios.generated import BLANK, at_least, chosen, streams

NOISES = 8  # different symbols of noise


class NBack(Scenario):
    """n-back: at each step, say whether the stimulus is the one shown n steps before; a larger n in each experience.

    Kirchner 1958, in the form of Gong, Wan and Wang 2024 (Working memory capacity of ChatGPT, AAAI, arXiv 2305.03731)
    and the authors' code (Daniel-Gong/ChatGPT-WM). A block is a cue and ``trials`` stimuli of ``stimuli``, of which
    exactly ``matches`` match the one n before, and no other does. The target is a token at each stimulus from the n-th
    on: 1 for a match, 0 for none; nothing is asked at the cue and at the first n, which cannot match. Saying 0 always
    is right in ``1 - matches / (trials - n)``. A share ``lures`` of the other trials equal the stimulus n - 1 or n + 1
    steps before instead, where these do not match the one n before (a lure that cannot be made is an ordinary trial).

    Variants of the authors:

    - ``noise``: with each letter come noise // 2 to ``noise`` of eight noise symbols, all different, in random order
      with it (6 there), so that a trial is as many tokens, blank behind; the answer is asked at its last position. On a
      grid the noise stands in as many of the other cells (3 there), of which no symbol is kept;
    - ``relation`` of cells of a grid: a match is the same cell; one ``in-line``, in the same row or column, the cell
      itself included; or another one in line (``other-in-line``);
    - ``feedback``: each trial also tells what was right in the one before. (There the word is "correct" or "wrong",
      about an answer of the model's own; with the answer in mind that is the same.)

    :func:`clplat.metrics.detection.sensitivity` is d' of hits and false alarms, and
    :func:`clplat.metrics.detection.capacity` the largest n that is mastered; the run itself records accuracy.

    Experience e (from 0) asks for n = first + e, so forgetting is that of smaller n. Settings: ``domain``: the cue
    tells n; one head. ``task``: the cue is always the same, the task label tells n, and each task has its own head.
    Stimuli are ``letters``: tokens (0 is blank, then the letters, the cues, with feedback no match and match, with
    noise its symbols); or ``grid``: cells of a square grid, a vector of one-hot row, one-hot column and one-hot cue at
    each step, with noise a number for each cell, with feedback one-hot no match and match.

    The authors' files have 24 trials with 8 matches in a block, 50 blocks for each n from 1 to 3, letters or cells of a
    3 x 3 grid. Assumed: matches anywhere among the trials from the n-th on with equal probability, other stimuli drawn
    evenly from those that do not match. Answers step by step in words (chain of thought) are not here.

    Args:
        setting: domain- or task-incremental.
        experiences: how many n.
        first: the smallest n.
        stimuli: letters or cells of a grid.
        alphabet: number of different letters; or cells, a square number.
        trials: stimuli in a block.
        matches: of them, how many match.
        lures: share of the non-matches that match one step too early or too late.
        noise: noise symbols that come with a stimulus at most; 0 for none.
        relation: what matches.
        feedback: tell the answer of each trial with the next one.
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
        noise: int = 0,
        relation: Literal["same", "in-line", "other-in-line"] = "same",
        feedback: bool = False,
        samples: int = 1000,
        test_samples: int = 250,
    ) -> None:
        problems = at_least(1, experiences=experiences, first=first, matches=matches)
        problems += at_least(1, samples=samples, test_samples=test_samples) + at_least(2, alphabet=alphabet)
        problems += at_least(0, noise=noise)
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
        if relation != "same" and (stimuli == "letters" or side < 2):
            problems.append(f"scenario.relation={relation}: rows and columns are those of scenario.stimuli=grid")
        most = NOISES if stimuli == "letters" else alphabet - 1
        if noise > most:
            problems.append(f"scenario.noise={noise}: {most} are there at most")
        if problems:
            raise UsageError(*problems)
        cues = experiences if setting == "domain" else 1
        layout = _Layout(alphabet, side, cues, noise, feedback)

        def make(e: int, name: str, n: int, source: torch.Generator) -> TensorData:
            related = _related(alphabet, side, relation)
            shown_NT, match_NT = _block(n, first + e, related, trials, matches, lures, source)
            told_NT = torch.full((n, trials), IGNORED)
            told_NT[:, first + e :] = match_NT[:, first + e :].long()
            cue = e if setting == "domain" else 0
            put = layout.letters if stimuli == "letters" else layout.cells
            return TensorData(*put(shown_NT, told_NT, cue, source), e if setting == "task" else 0)

        if stimuli == "letters":
            steps, tokens = 1 + trials * layout.width, layout.tokens
            spec = Spec((steps,), 2, setting, encoder="tokens", target="token", vocabulary=tokens)
        else:
            spec = Spec((1 + trials, layout.values), 2, setting, target="token")
        super().__init__(spec, *streams(seed, "n-back", experiences, samples, test_samples, make))


class _Layout:
    """Where cue, stimuli, noise and feedback stand: as tokens, or as values at each step.

    Attributes:
        width: tokens of a trial.
        tokens: in all.
        values: at each step.
    """

    def __init__(self, alphabet: int, side: int, cues: int, noise: int, feedback: bool) -> None:
        self.alphabet, self.side, self.cues, self.noise, self.feedback = alphabet, side, cues, noise, feedback
        self.told = 1 + alphabet + cues  # the token of "no match"
        self.symbols = self.told + 2 * feedback  # the first symbol of noise
        self.width = 1 + noise + feedback
        self.tokens = self.symbols + NOISES * (noise > 0)
        self.values = 2 * side + cues + alphabet * (noise > 0) + 2 * feedback

    def letters(self, shown_NT: Tensor, told_NT: Tensor, cue: int, source: torch.Generator) -> tuple[Tensor, Tensor]:
        """x and y (n, 1 + trials * width) of stimuli and what is asked about them."""
        n, trials = shown_NT.shape
        x_NTW = 1 + shown_NT[..., None]
        if self.noise:
            symbol_NTM = self.symbols + chosen(n * trials, NOISES, self.noise, source).view(n, trials, -1)
            many_NT1 = self._many(n, trials, source)
            rank_NTW = torch.rand((n, trials, 1 + self.noise), generator=source)
            blank_NTW = torch.arange(1 + self.noise) > many_NT1  # the stimulus itself is in place 0
            x_NTW = torch.cat([x_NTW, symbol_NTM], -1).masked_fill(blank_NTW, BLANK)
            x_NTW = x_NTW.gather(-1, (rank_NTW + blank_NTW).argsort(-1))
        if self.feedback:
            before_NT = nnf.pad(told_NT[:, :-1], (1, 0), value=IGNORED)
            x_NTW = torch.cat([torch.where(before_NT < 0, BLANK, self.told + before_NT)[..., None], x_NTW], -1)
        y_NTW = torch.full_like(x_NTW, IGNORED)
        y_NTW[..., -1] = told_NT
        x_NT = nnf.pad(x_NTW.flatten(1), (1, 0), value=1 + self.alphabet + cue)
        return x_NT, nnf.pad(y_NTW.flatten(1), (1, 0), value=IGNORED)

    def cells(self, shown_NT: Tensor, told_NT: Tensor, cue: int, source: torch.Generator) -> tuple[Tensor, Tensor]:
        """x (n, 1 + trials, values) and y (n, 1 + trials)."""
        n, trials = shown_NT.shape
        x = torch.zeros(n, 1 + trials, self.values)
        x[:, 1:, : self.side] = nnf.one_hot(shown_NT // self.side, self.side).to(x.dtype)
        x[:, 1:, self.side : 2 * self.side] = nnf.one_hot(shown_NT % self.side, self.side).to(x.dtype)
        x[:, 0, 2 * self.side + cue] = 1
        if self.noise:
            draw_NTA = torch.rand((n, trials, self.alphabet), generator=source).scatter(-1, shown_NT[..., None], 2.0)
            first = 2 * self.side + self.cues
            noisy_NTA = draw_NTA.argsort(-1).argsort(-1) < self._many(n, trials, source)
            x[:, 1:, first : first + self.alphabet] = noisy_NTA.to(x.dtype)
        if self.feedback:
            for answer in (0, 1):
                x[:, 2:, self.values - 2 + answer] = (told_NT[:, :-1] == answer).to(x.dtype)
        return x, nnf.pad(told_NT, (1, 0), value=IGNORED)

    def _many(self, n: int, trials: int, source: torch.Generator) -> Tensor:
        """How much noise comes with each stimulus, (n, trials, 1)."""
        return torch.randint(max(1, self.noise // 2), 1 + self.noise, (n, trials, 1), generator=source)


def _related(alphabet: int, side: int, relation: str) -> Tensor:
    """Which stimuli match which, (alphabet, alphabet)."""
    cell_A = torch.arange(alphabet)
    same_AA = torch.eye(alphabet, dtype=torch.bool)
    if relation == "same":
        return same_AA
    line_AA = (cell_A[:, None] // side == cell_A // side) | (cell_A[:, None] % side == cell_A % side)
    return line_AA if relation == "in-line" else line_AA & ~same_AA


def _block(
    rows: int, n: int, related_AA: Tensor, trials: int, matches: int, lures: float, source: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Stimuli from 0 on and whether they match, (rows, trials).

    Args:
        related_AA: which stimuli match which; each matches as many.
    """
    alphabet = len(related_AA)
    # Of each stimulus those that match it and those that do not, beginning with the one after it.
    turned_AA = (torch.arange(alphabet)[:, None] + torch.arange(1, alphabet + 1)) % alphabet
    alike_AA = related_AA.gather(1, turned_AA)
    like_AK, unlike_AK = turned_AA[alike_AA].view(alphabet, -1), turned_AA[~alike_AA].view(alphabet, -1)
    match_NT = torch.zeros(rows, trials, dtype=torch.bool)
    match_NT.scatter_(1, n + chosen(rows, trials - n, matches, source), True)
    lure_NT = torch.rand((rows, trials), generator=source) < lures
    early_NT = torch.rand((rows, trials), generator=source) < 0.5
    shown_NT = torch.randint(alphabet, (rows, trials), generator=source)
    other_NT = torch.randint(unlike_AK.shape[1], (rows, trials), generator=source)
    which_NT = torch.randint(like_AK.shape[1], (rows, trials), generator=source)
    for t in range(n, trials):
        asked_N = shown_NT[:, t - n]
        plain_N = unlike_AK[asked_N, other_NT[:, t]]
        # At n = 1 there is nothing between; at t = n nothing earlier: a match in its place is no lure.
        early_N = shown_NT[:, t - n - 1] if t > n else like_AK[asked_N, 0]
        late_N = shown_NT[:, t - n + 1] if n > 1 else like_AK[asked_N, 0]
        first_N, second_N = torch.where(early_NT[:, t], torch.stack([early_N, late_N]), torch.stack([late_N, early_N]))
        tempting_N = torch.where(related_AA[asked_N, first_N], second_N, first_N)
        fits_N = lure_NT[:, t] & ~related_AA[asked_N, tempting_N]
        matching_N = like_AK[asked_N, which_NT[:, t]]
        shown_NT[:, t] = torch.where(match_NT[:, t], matching_N, torch.where(fits_N, tempting_N, plain_N))
    return shown_NT, match_NT
