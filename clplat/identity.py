"""What a run is made of, for its checkpoints: whether a run may go on from one depends on it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from clplat.changes import altering, flatten, of_stream
from clplat.scenario import Experience, Scenario, digest


class Identity:
    """The configuration and the data of a run.

    Digests of the data say whether a longer stream, a changed option or changed files leave the past as it was. Each
    experience is looked at once, when it is reached.

    Args:
        config: the resolved configuration; empty for a run made of objects, of which only the data can be compared.
        scenario: the streams.
    """

    def __init__(self, config: Mapping[str, Any], scenario: Scenario) -> None:
        self.config, self.scenario = config, scenario
        self._digests: dict[tuple[str, int], str] = {}

    def about(self, experiences: int) -> dict[str, Any]:
        """For a manifest: the configuration, and the digests of the first experiences and of all test data."""
        learned, tested = self.scenario.train_stream, self.scenario.test_stream
        return {
            "config": dict(self.config),
            "data": {
                "spec": self._spec(),
                "train": [self._digest(learned, "train", e) for e in range(min(experiences, len(learned)))],
                "test": [self._digest(tested, "test", e) for e in range(len(tested))],
            },
        }

    def misfit(self, manifest: Mapping[str, Any]) -> str | None:
        """Why this run cannot go on from a checkpoint with such a manifest; None when it can."""
        before, data = manifest.get("config", {}), manifest.get("data", {})
        if before and self.config:
            known = flatten(before)  # an option that came with a later version has its default here
            changed = [change for change in altering(before, self.config) if change.key in known]
            if changed:
                made = ", ".join(f"{c.key}={c.before} (here {c.now})" for c in changed)
                return f"it was made with {made}"
        what = self._other(data)
        if what is None:
            return None
        changed = of_stream(before, self.config)
        why = "; ".join(map(str, changed)) if changed else "the data itself changed"
        return f"{what}: {why}"

    def _other(self, data: Mapping[str, Any]) -> str | None:
        if data.get("spec", self._spec()) != self._spec():
            return "samples or targets are of another kind than those it learned from"
        for name, stream in (("train", self.scenario.train_stream), ("test", self.scenario.test_stream)):
            known: Sequence[str] = data.get(name, ())
            for number, expected in enumerate(known):
                if number >= len(stream):
                    return f"experience {number} of the {name} stream is there no more"
                if self._digest(stream, name, number) != expected:
                    return f"experience {number} of the {name} stream has other data than it knew"
        return None

    def _spec(self) -> str:
        return str(dataclasses.asdict(self.scenario.spec))

    def _digest(self, stream: Sequence[Experience], name: str, number: int) -> str:
        if (name, number) not in self._digests:
            self._digests[name, number] = digest(stream[number].dataset)
        return self._digests[name, number]
