"""Sweeps in a file: a preset, or a file of the same shape, whose ``sweep:`` section holds lists of values.

    sweep:
      strategy: [naive, ewc, er]
      seed: [0, 1, 2]
      strategy.ewc.importance: [10, 100, 1000]

What the command line gives goes before it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from clplat import registry, yamlfile
from clplat.errors import UsageError
from clplat.sweep.grid import LISTED


def apply(
    preset: str | None, files: Sequence[Path], named: Mapping[str, str | None], overrides: Sequence[str]
) -> tuple[dict[str, str | None], list[str]]:
    """Flags and overrides with those of the ``sweep:`` sections added, of the preset and of files, later ones first.

    Raises:
        UsageError: there is no such preset or file, or its section is no mapping of lists.
    """
    paths = [registry.find("preset", preset).path, *files] if preset is not None else list(files)
    lists: dict[str, str] = {}
    for path in filter(None, paths):
        content = yamlfile.read(path)[0].get("sweep", {})
        if not isinstance(content, Mapping):
            raise UsageError(f"{path}: sweep: expected a mapping of keys to lists of values")
        for key, values in content.items():
            lists[str(key)] = ",".join(map(_spelled, values if isinstance(values, list) else [values]))
    given = {word.partition("=")[0] for word in overrides}
    flags = {**named, **{key: text for key, text in lists.items() if key in LISTED and not named.get(key)}}
    words = [f"{key}={text}" for key, text in lists.items() if key not in LISTED and key not in given]
    return flags, [*words, *overrides]


def _spelled(value: object) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)
