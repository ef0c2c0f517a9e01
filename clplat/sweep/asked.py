"""What the command line says of the runs of a sweep."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from clplat.sweep.grid import LISTED, Planned, applies, expand, split


@dataclass(frozen=True)
class Asked:
    """What the command line says of the runs."""

    named: Mapping[str, str | None]
    overrides: list[str]
    preset: str | None
    files: list[Path]
    draws: int | None
    draw_seed: int
    name: str

    def runs(self, *more: str, **named: str) -> list[Planned]:
        """The runs, with further overrides or other flags."""
        return expand(
            {**self.named, **named}, [*self.overrides, *more], name=self.name, preset=self.preset, files=self.files,
            draws=self.draws, draw_seed=self.draw_seed,
        )  # fmt: skip

    def chosen(self, values: Mapping[str, str], flags: Mapping[str, str], *more: str) -> list[Planned]:
        """The runs of one combination of flags with options that were chosen, with every seed, and more overrides."""
        every = {key: split(value) for key, value in self.named.items() if value is not None and key in LISTED}
        keys = {o: o.partition("=")[0] for o in self.overrides}
        kept = [o for o, key in keys.items() if key not in values and applies(key, flags, every)]
        picked = [f"{key}={value}" for key, value in values.items()]
        return replace(self, overrides=[*kept, *picked], draws=None).runs(*more, **flags)
