"""What may change when a run goes on: everything that leaves what was already computed as it is.

No torch here: commands ask before they start anything, and checkpoints carry what they were made with.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# Sections and keys that decide where and how a run is computed and shown, not what it computes.
FREE = (
    "run",
    "logger",
    "cluster",
    "config_dirs",
    "eval.probes",
    "eval.metrics",
    "eval.options",
    "trainer.name",
    "trainer.accelerator",
    "trainer.devices",
    "trainer.num_nodes",
    "trainer.threads",
    "trainer.checkpoint_every",
    "trainer.keep_last",
    "trainer.keep_boundaries",
    "trainer.log_every",
    "trainer.dispatch",
    "trainer.progress",
    "eval.store",
)
# Keys that change the stream; whether they change its past is asked of the data itself (checkpoints hold digests).
STREAM = "scenario"


@dataclass(frozen=True)
class Change:
    """One key with its value before and now."""

    key: str
    before: Any
    now: Any

    def __str__(self) -> str:
        return f"{self.key} was {self.before!r} and would be {self.now!r}"


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested configuration as ``section.key -> value``."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Change]:
    """All keys whose values differ. A key that only one of them has is one, too (None stands for nothing)."""
    old, new = flatten(before), flatten(now)
    return [Change(key, old.get(key), new.get(key)) for key in {**old, **new} if old.get(key) != new.get(key)]


def altering(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Change]:
    """The changes that alter what a run has computed already, as far as the keys alone can tell."""
    return [change for change in changes(before, now) if not is_free(change.key) and not _of_stream(change.key)]


def of_stream(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Change]:
    """The changes of which only the stream's own data can tell."""
    return [change for change in changes(before, now) if _of_stream(change.key)]


def is_free(key: str) -> bool:
    """Whether a key decides where and how a run is computed and shown, not what it computes."""
    return any(key == free or key.startswith(f"{free}.") for free in FREE)


def _of_stream(key: str) -> bool:
    return key.startswith(f"{STREAM}.") and key != f"{STREAM}.name"
