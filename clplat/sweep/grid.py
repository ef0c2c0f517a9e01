"""Which runs a sweep consists of: every combination of the values that were given with commas, or some drawn at random.

``--strategy naive,ewc --seed 0,1 strategy.ewc.importance=10,100`` is naive with two seeds, and ewc with two seeds and
two importances: an option of one entry (``GROUP.NAME.KEY``) varies only in the runs that have this entry.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clplat import changes
from clplat.config import GROUPS, compose
from clplat.errors import UsageError
from clplat.tracking.directory import run_name

LISTED = ("strategy", "backbone", "scenario", "optimizer", "seed")  # flags that take a,b,c
COMPUTING = ("run.stop_after",)  # of what may change when a run goes on, that which makes two runs of a sweep
_DRAWN = re.compile(r"(uniform|log|int)\(([^,()]+),([^,()]+)\)\Z")


@dataclass(frozen=True)
class Planned:
    """One run of a sweep.

    Args:
        config: its resolved configuration; ``run.dir`` is where it lies.
        chosen: what of it the sweep varies, as ``key -> value`` in the words that were given.
    """

    config: dict[str, Any]
    chosen: dict[str, str]

    @property
    def path(self) -> Path:
        """The run directory."""
        return Path(self.config["run"]["dir"])

    @property
    def label(self) -> str:
        """What tells it from the others."""
        return " ".join(value if key in GROUPS else f"{key}={value}" for key, value in self.chosen.items()) or "the run"


def split(text: str) -> list[str]:
    """The values between commas, where a comma inside brackets or quotes separates nothing."""
    values, depth, quote, start = [], 0, "", 0
    for i, character in enumerate(text):
        if quote:
            quote = "" if character == quote else quote
        elif character in "\"'":
            quote = character
        elif character in "([{":
            depth += 1
        elif character in ")]}":
            depth -= 1
        elif character == "," and not depth:
            values.append(text[start:i].strip())
            start = i + 1
    return [*values, text[start:].strip()]


def expand(
    named: Mapping[str, str | None],
    overrides: Sequence[str],
    *,
    name: str = "sweep",
    preset: str | None = None,
    files: Sequence[Path] = (),
    draws: int | None = None,
    draw_seed: int = 0,
) -> list[Planned]:
    """The runs of a sweep, each once, in the order in which they were written.

    Args:
        named: flags; those in ``LISTED`` may hold several values.
        overrides: ``section.key=value`` with one value, or several with commas; with ``draws`` also ``uniform(a,b)``,
            ``log(a,b)`` or ``int(a,b)``.
        name: of the folder under each run's ``run.root`` that holds its directory.
        preset, files: as in :func:`clplat.config.compose`.
        draws: None takes every combination; a number draws so many of the values of the overrides for each combination
            of the flags, never one twice.
        draw_seed: of the draws.

    Raises:
        UsageError: a value twice, a range without ``draws``, ``run.dir``, several values of what decides only where and
            how runs are computed, or a configuration that is wrong; all mistakes at once.
    """
    fixed = {key: value for key, value in named.items() if value is not None and key not in LISTED}
    flags, axes, plain = _read(named, overrides)
    _check(flags | axes, draws)
    _check_places(axes, plain)
    found: dict[str, Planned] = {}
    problems: list[str] = []
    used: set[str] = set()
    for number, chosen_flags in enumerate(_points(flags, None, "")):
        own = {key: values for key, values in axes.items() if applies(key, chosen_flags, flags)}
        own_plain = [o for o in plain if applies(o.partition("=")[0], chosen_flags, flags)]
        used |= {*own, *own_plain}
        for chosen in _points(own, draws, f"{draw_seed}/{number}" if not _only_seed(flags) else str(draw_seed)):
            words = [f"{key}={value}" for key, value in chosen.items()]
            try:
                named_here = {**fixed, **chosen_flags}
                config = compose([*own_plain, *words], preset=preset, files=files, flags=named_here, sweep=True)
            except UsageError as error:
                problems += error.messages
                continue
            key = digest(config)
            config["run"]["dir"] = str(
                Path(config["run"]["root"]).expanduser() / name / f"{run_name(config)[:100]}-{key}"
            )
            varied = {k: v for k, v in chosen_flags.items() if len(flags[k]) > 1} | chosen
            found.setdefault(key, Planned(config, varied))
    problems += [f"{key}: no run of this sweep has it" for key in (*axes, *plain) if key not in used]
    if problems:
        raise UsageError(*dict.fromkeys(problems))
    return list(found.values())


def spaces(
    named: Mapping[str, str | None], overrides: Sequence[str]
) -> list[tuple[dict[str, str], dict[str, list[str]]]]:
    """Each combination of the flags, with the options that vary in it: their values, or the ranges to draw from.

    Raises:
        UsageError: a value twice, or a wrong range; all mistakes at once.
    """
    flags, axes, _ = _read(named, overrides)
    _check(flags | axes, 1)
    return [
        (chosen, {key: values for key, values in axes.items() if applies(key, chosen, flags)})
        for chosen in _points(flags, None, "")
    ]


def drawn(value: str) -> tuple[str, float, float] | None:
    """``("log", 1.0, 100.0)`` of ``log(1,100)``; None of a plain value."""
    match = _DRAWN.match(value)
    return None if match is None else (match[1], float(match[2]), float(match[3]))


def digest(config: Mapping[str, Any]) -> str:
    """Eight characters that are the same for configurations that compute the same."""
    computing = {key: value for key, value in changes.flatten(config).items() if not changes.is_free(key)}
    text = json.dumps({**computing, "stop_after": config["run"]["stop_after"]}, sort_keys=True, default=repr)
    return hashlib.blake2b(text.encode(), digest_size=4).hexdigest()


def _read(
    named: Mapping[str, str | None], overrides: Sequence[str]
) -> tuple[dict[str, list[str]], dict[str, list[str]], list[str]]:
    """The flags with their values, the options that vary with theirs, and the overrides that hold one value."""
    flags = {key: split(value) for key, value in named.items() if value is not None and key in LISTED}
    axes: dict[str, list[str]] = {}
    plain: list[str] = []
    for override in overrides:
        key, equals, text = override.partition("=")
        values = split(text) if equals else []
        if len(values) > 1 or any(_DRAWN.match(value) for value in values):
            axes[key] = values
        else:
            plain.append(override)
    return flags, axes, plain


def _check(axes: Mapping[str, Sequence[str]], draws: int | None) -> None:
    problems = []
    for key, values in axes.items():
        twice = sorted({value for value in values if values.count(value) > 1})
        if twice:
            problems.append(f"{key}: {', '.join(twice)} is there twice")
        if "" in values:
            problems.append(f"{key}={','.join(values)}: a value is missing")
        if draws is None and any(_DRAWN.match(value) for value in values):
            problems.append(f"{key}={','.join(values)}: a range needs --random N, the number of draws")
        for value in values:
            problems += [f"{key}={value}: {why}" for why in _bad_range(value)]
    if draws is not None and draws < 1:
        problems.append(f"--random {draws}: at least 1 is needed")
    if problems:
        raise UsageError(*problems)


def _check_places(axes: Mapping[str, Sequence[str]], plain: Sequence[str]) -> None:
    problems = []
    if any(o.startswith("run.dir=") for o in plain):
        problems.append("run.dir names one directory, and a sweep has many: set run.root and --name")
    problems += [
        f"{key}={','.join(values)}: that says where and how a run is computed, which is one for a whole sweep"
        for key, values in axes.items()
        if changes.is_free(key) and key not in COMPUTING
    ]
    if problems:
        raise UsageError(*problems)


def _bad_range(value: str) -> Iterator[str]:
    match = _DRAWN.match(value)
    if match is None:
        return
    try:
        low, high = float(match[2]), float(match[3])
    except ValueError:
        yield "the ends of a range are numbers"
        return
    if not low < high:
        yield "the first end of a range is the smaller one"
    elif match[1] == "log" and low <= 0:
        yield "a range by logarithm begins above 0"


def applies(key: str, chosen: Mapping[str, str], flags: Mapping[str, Sequence[str]]) -> bool:
    """Whether a run has the entry that an option ``group.NAME.key`` is for; any other option is for every run."""
    group, _, rest = key.partition(".")
    if group not in flags:
        return True
    every = {name for combination in flags[group] for name in combination.split("+")}
    meant = [name for name in every if rest.startswith(f"{name}.")]
    return not meant or any(name in chosen[group].split("+") for name in meant)


def _only_seed(flags: Mapping[str, Sequence[str]]) -> bool:
    return not any(len(values) > 1 for key, values in flags.items() if key != "seed")


def _points(axes: Mapping[str, Sequence[str]], draws: int | None, source: str) -> list[dict[str, str]]:
    """Combinations of values: all, or so many that are drawn."""
    if draws is None or not axes:
        return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    drawing = random.Random(f"clplat sweep/{source}")
    found: list[dict[str, str]] = []
    for _ in range(100 * draws):  # of few values there may be fewer combinations than draws
        point = {key: _drawn(drawing.choice(list(values)), drawing) for key, values in axes.items()}
        if point not in found:
            found.append(point)
        if len(found) == draws:
            break
    return found


def _drawn(value: str, drawing: random.Random) -> str:
    found = drawn(value)
    if found is None:
        return value
    kind, low, high = found
    if kind == "int":
        return str(drawing.randint(math.ceil(low), math.floor(high)))
    if kind == "log":
        return f"{math.exp(drawing.uniform(math.log(low), math.log(high))):.4g}"
    return f"{drawing.uniform(low, high):.4g}"
