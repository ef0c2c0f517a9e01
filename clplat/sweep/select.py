"""Choosing options without a look at the future: candidates learn the first k experiences of a stream and are judged on
validation samples of these alone; what is best then runs on the whole stream, with every seed.

After the continual hyper-parameter selection of De Lange et al. 2021 (IEEE TPAMI, "A continual learning survey:
defying forgetting in classification tasks", section 5) and of FACIL, in the simple form in which the first experiences
stand for those to come (Chaudhry et al. 2019, "Efficient lifelong learning with A-GEM", section 3): a search over the
whole stream would use data that a continual learner does not have yet.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clplat.errors import RunFailedError, UsageError
from clplat.report.runs import load
from clplat.sweep.grid import LISTED, Planned


@dataclass(frozen=True)
class Choice:
    """What was chosen for one combination of the flags.

    Args:
        flags: the combination, without the seed.
        values: the options that were best.
        scores: ACC on validation samples of the first experiences, by the candidate's label.
    """

    flags: dict[str, str]
    values: dict[str, str]
    scores: dict[str, float]


def first(text: str) -> int:
    """k of ``first-k``.

    Raises:
        UsageError: it is not of that form.
    """
    match = re.fullmatch(r"first-([1-9]\d*)", text)
    if match is None:
        raise UsageError(f"--select {text}: expected first-K, the number of experiences to choose by, such as first-2")
    return int(match[1])


def searching(k: int) -> list[str]:
    """The overrides of a candidate's run."""
    return [f"run.stop_after={k}", "eval.stream=valid", f"eval.experiences=last-{k}"]


def choose(candidates: Sequence[Planned]) -> list[Choice]:
    """The best candidate of each combination of the flags; of equals the one that was written first.

    Raises:
        RunFailedError: no candidate of a combination has a result.
    """
    names = [key for key in LISTED if key != "seed"]
    groups: dict[tuple[str, ...], list[Planned]] = {}
    for run in candidates:
        groups.setdefault(tuple(str(run.config[name]["name"]) for name in names), []).append(run)
    found = []
    for values, runs in groups.items():
        scores: dict[str, float] = {}
        best: tuple[float, Planned] | None = None
        for run in runs:
            data = load(run.path)
            acc = data.summary.get("ACC")
            if acc is None:
                continue
            scores[run.label] = acc
            sign = 1 if data.direction == "max" else -1
            if best is None or sign * acc > best[0]:
                best = (sign * acc, run)
        if best is None:
            raise RunFailedError(f"{' '.join(values)}: no candidate came to its end")
        options = {key: value for key, value in best[1].chosen.items() if key not in LISTED}
        found.append(Choice(dict(zip(names, values, strict=True)), options, scores))
    return found


def plain(choices: Sequence[Choice]) -> list[Mapping[str, Any]]:
    """As JSON."""
    return [{"flags": c.flags, "chosen": c.values, "scores": c.scores} for c in choices]


def record(folder: Path) -> Path:
    """Where what was chosen is written down."""
    return folder / "selected.json"
