"""Runs side by side by one key of their configuration, such as the strategy: what ``clplat compare`` prints."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from clplat.changes import flatten, is_free
from clplat.errors import UsageError, suggestion
from clplat.report.runs import RunData, text
from clplat.report.statistics import Estimate, estimate, holm, mean_ranks, sign_flip

SMALLER_IS_BETTER = ("forgetting", "seconds")  # summary metrics for which less is better whatever the primary metric is


@dataclass
class Side:
    """All runs with one value of the key.

    Args:
        name: the value.
        values: by metric, the value of each run that has it.
        difference: by metric, mean paired difference to the baseline.
        p: by metric, its p-value (sign-flip permutation test), and the same adjusted for all comparisons (Holm).
        rank: by metric, the mean rank over seeds and whatever else differs.
    """

    name: str
    values: dict[str, list[float]] = field(default_factory=dict)
    difference: dict[str, Estimate] = field(default_factory=dict)
    p: dict[str, tuple[float, float]] = field(default_factory=dict)
    rank: dict[str, float] = field(default_factory=dict)

    def estimate(self, metric: str) -> Estimate | None:
        """Mean and 95% confidence interval."""
        values = self.values.get(metric)
        return estimate(values) if values else None


@dataclass
class Comparison:
    """Sides of a comparison, the best first.

    Args:
        by: the key.
        baseline: the side that differences are taken to; None for none.
        metrics: what is compared; the sides are ordered by the first.
        sides: the values of the key.
        varying: other keys in which runs of one side differ besides the seed: means go over these as well.
        left_out: why runs were left out, one line each.
    """

    by: str
    baseline: str | None
    metrics: list[str]
    sides: list[Side]
    varying: list[str]
    left_out: list[str]


def value_of(run: RunData, key: str) -> str | None:
    """What a run's configuration says under a key; a section stands for its name."""
    found: Any = run.config
    for part in key.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    if isinstance(found, Mapping):
        found = found.get("name")
    return None if found is None else text(found if isinstance(found, str) else json.dumps(found))


def compare(
    runs: Sequence[RunData], by: str = "strategy", metrics: Sequence[str] = ("ACC",), baseline: str | None = None
) -> Comparison:
    """Compare runs that are done.

    Pairs are runs that differ in nothing but the key (and the options of what it names): the same seed, scenario,
    backbone, ... A difference is the mean over pairs.

    Args:
        by: a dotted key of the configuration.
        metrics: names of summary metrics, or ``seconds``.
        baseline: a value of the key; None takes ``naive`` if there is such a side.

    Raises:
        UsageError: there is no run to compare, or no such key, metric or baseline.
    """
    left_out = [f"{run.label}: {run.state}" for run in runs if run.status != "done"]
    done = [run for run in runs if run.status == "done"]
    if not done:
        raise UsageError("no run is done yet", *left_out)
    unknown = [run.label for run in done if value_of(run, by) is None]
    if len(unknown) == len(done):
        keys = {key for run in done for key in (*flatten(run.config), *run.config)}
        raise UsageError(f"--by {by}: no run has such a key.{suggestion(by, keys)}")
    left_out += [f"{label}: has no {by}" for label in unknown]
    known = [run for run in done if value_of(run, by) is not None]
    _check_metrics(known, metrics)
    sides: dict[str, Side] = {}
    blocks: dict[str, dict[str, dict[str, list[float]]]] = {metric: {} for metric in metrics}
    for run in known:
        name = str(value_of(run, by))
        side = sides.setdefault(name, Side(name))
        for metric in metrics:
            value = _metric(run, metric)
            if value is None:
                left_out.append(f"{run.label}: {metric} is not known: {run.reasons.get(metric, 'no reason given')}")
                continue
            side.values.setdefault(metric, []).append(value)
            blocks[metric].setdefault(_block(run, by), {}).setdefault(name, []).append(value)
    if baseline is None and "naive" in sides and len(sides) > 1:
        baseline = "naive"
    if baseline is not None and baseline not in sides:
        raise UsageError(f"--baseline {baseline}: no run has {by}={baseline}.{suggestion(baseline, sides)}")
    direction = {run.direction for run in known}
    if len(direction) > 1:
        raise UsageError("some of these runs are better when larger and some when smaller: compare them apart")
    larger = direction == {"max"}
    for metric in metrics:
        means = [{name: sum(v) / len(v) for name, v in block.items()} for block in blocks[metric].values()]
        _differences(sides, means, metric, baseline)
        for name, rank in mean_ranks(means, _larger(metric, larger)).items():
            sides[name].rank[metric] = rank
    first = metrics[0]
    order = sorted(sides.values(), key=lambda side: _key(side, first, _larger(first, larger)))
    return Comparison(by, baseline, list(metrics), order, _varying(known, by), left_out)


def _check_metrics(runs: Sequence[RunData], metrics: Sequence[str]) -> None:
    names = {name for run in runs for name in run.summary} | {"seconds"}
    problems = [f"--metric {name}: no run has it.{suggestion(name, names)}" for name in metrics if name not in names]
    if problems:
        raise UsageError(*problems)


def _metric(run: RunData, metric: str) -> float | None:
    return run.seconds if metric == "seconds" else run.summary.get(metric)


def _larger(metric: str, primary: bool) -> bool:
    if metric in SMALLER_IS_BETTER:
        return False
    return True if metric in ("BWT", "FWT") else primary  # transfer has its sign turned already


def _key(side: Side, metric: str, larger: bool) -> tuple[bool, float, str]:
    found = side.estimate(metric)
    return found is None, 0.0 if found is None else (-found.mean if larger else found.mean), side.name


def _own(key: str, by: str) -> bool:
    """Whether a key belongs to what is compared: the section of a name goes with it."""
    return key == by or key.startswith(f"{by}.") or (by.endswith(".name") and key.startswith(by[:-4]))


def _block(run: RunData, by: str) -> str:
    """The same text for runs that make a pair."""
    rest = {k: v for k, v in flatten(run.config).items() if not _own(k, by) and not is_free(k)}
    return json.dumps(rest, sort_keys=True, default=repr)


def _varying(runs: Sequence[RunData], by: str) -> list[str]:
    found: set[str] = set()
    for name in {value_of(run, by) for run in runs}:
        flats = [flatten(run.config) for run in runs if value_of(run, by) == name]
        for key in {key for one in flats for key in one}:
            values = {json.dumps(one.get(key), sort_keys=True, default=repr) for one in flats}
            if len(values) > 1 and key != by and not is_free(key) and key != "seed":
                found.add(key)
    return sorted(map(text, found))


def _differences(
    sides: Mapping[str, Side], blocks: Sequence[Mapping[str, float]], metric: str, base: str | None
) -> None:
    if base is None:
        return
    tested: list[tuple[Side, float]] = []
    for side in sides.values():
        pairs = [block[side.name] - block[base] for block in blocks if side.name in block and base in block]
        if side.name == base or not pairs:
            continue
        side.difference[metric] = estimate(pairs)
        tested.append((side, sign_flip(pairs)))
    adjusted = holm([p for _, p in tested])
    for (side, p), both in zip(tested, adjusted, strict=True):
        side.p[metric] = (p, both)
