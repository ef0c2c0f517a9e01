"""Which scenarios the suites here build: those of conf/ that need nothing but a seed."""

from __future__ import annotations

from clplat import registry
from clplat.scenario import Scenario

# Entries that need more than a seed: a family, written family:NAME, and what reads the user's own files.
NAMES = [
    name
    for name in registry.names("scenario")
    if "argument" not in registry.find("scenario", name).info
    and not any(option.required for option in registry.find("scenario", name).options.values())
]


def build(name: str, seed: int = 0, **options: object) -> Scenario:
    return registry.find("scenario", name).build(seed, **options)


def in_settings() -> list[tuple[str, str | None]]:
    """Every entry in every setting that its file says it has; None for one that has no choice."""
    found: list[tuple[str, str | None]] = []
    for name in NAMES:
        entry = registry.find("scenario", name)
        choice = entry.options.get("setting")
        found += [(name, setting) for setting in entry.info["settings"]] if choice else [(name, None)]
    return found
