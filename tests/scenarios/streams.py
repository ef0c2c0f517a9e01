"""Which scenarios the suites here build: those of conf/ that need nothing but a seed."""

from __future__ import annotations

from functools import cache
from typing import Any

import clplat
from clplat import dryrun, registry
from clplat.backbones.rnn.gru import GRU
from clplat.scenario import Scenario
from clplat.settings import LearnerSettings, TrainerSettings

# Entries that need more than a seed: a family, written family:NAME, and what reads the user's own files.
NAMES = [
    name
    for name in registry.names("scenario")
    if "argument" not in registry.find("scenario", name).info
    and not any(option.required for option in registry.find("scenario", name).options.values())
]


def build(name: str, seed: int = 0, **options: object) -> Scenario:
    return registry.find("scenario", name).build(seed, **options)


@cache
def made(name: str, setting: str | None = None, seed: int = 0) -> Scenario:
    """Built once, for tests that only look at it."""
    return build(name, seed, **({"setting": setting} if setting else {}))


def in_settings() -> list[tuple[str, str | None]]:
    """Every entry in every setting that its file says it has; None for one that has no choice."""
    found: list[tuple[str, str | None]] = []
    for name in NAMES:
        entry = registry.find("scenario", name)
        choice = entry.options.get("setting")
        found += [(name, setting) for setting in entry.info["settings"]] if choice else [(name, None)]
    return found


def two_steps(scenario: Scenario, encoder: str = "auto") -> dict[str, Any]:
    """The results of a run with a small network and about two steps in each experience."""
    return clplat.fit(
        "naive", dryrun.cut(scenario, 16, 8), lambda D: GRU(D, hidden=8),
        learner=LearnerSettings(encoder=encoder, embedding=8),  # type: ignore[arg-type]
        trainer=TrainerSettings(max_epochs=1, batch_size=8, progress="none", accelerator="cpu"),
    )  # fmt: skip
