"""The flags that several commands share, and what they mean together."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from clplat import config, registry
from clplat.errors import UsageError

Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="SECTION.KEY=VALUE", help="Any key of the configuration; goes before all else."),
]
FilesAndOverrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="FILE|SECTION.KEY=VALUE", help="Files to check; keys that go before what is in them."),
]
Strategy = Annotated[
    str | None, typer.Option("--strategy", metavar="NAME", help="How to learn without forgetting; a+b combines.")
]
Backbone = Annotated[str | None, typer.Option("--backbone", metavar="NAME", help="The sequence model.")]
Scenario = Annotated[str | None, typer.Option("--scenario", metavar="NAME", help="The stream of experiences.")]
Optimizer = Annotated[str | None, typer.Option("--optimizer", metavar="NAME", help="The optimiser.")]
Trainer = Annotated[str | None, typer.Option("--trainer", metavar="NAME", help="How and where to train.")]
Logger = Annotated[str | None, typer.Option("--logger", metavar="NAME", help="A mirror of the record; a+b combines.")]
Cluster = Annotated[str | None, typer.Option("--cluster", metavar="NAME", help="Where jobs are submitted to.")]
Preset = Annotated[str | None, typer.Option("--preset", metavar="NAME", help="Start from a preset.")]
Config = Annotated[
    list[Path] | None, typer.Option("--config", metavar="FILE", help="A YAML file; repeatable, later ones win.")
]
ConfigDir = Annotated[
    list[Path] | None,
    typer.Option("--config-dir", metavar="DIR", help="A folder of entries of your own, shaped like conf/; repeatable."),
]
Seed = Annotated[str | None, typer.Option("--seed", metavar="N", help="What all randomness is derived from.")]
Devices = Annotated[str | None, typer.Option("--devices", metavar="N", help="Ranks; short for trainer.devices=N.")]
StopAfter = Annotated[
    str | None, typer.Option("--stop-after", metavar="K", help="Stop when K experiences are learned; resume goes on.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Tell nothing but errors; short for trainer.progress=quiet.")]
JsonAtEnd = Annotated[
    bool, typer.Option("--json", help="Print one JSON object with the results; short for trainer.progress=json.")
]
Where = Annotated[
    list[str] | None,
    typer.Option("--where", metavar="KEY=VALUE", help="Only these; also !=, <, <=, >, >=, ~; repeatable."),
]
Traceback = Annotated[bool, typer.Option("--traceback", help="Show where an error came from.")]  # read by app.run


def shown(overrides: Sequence[str] | None, quiet: bool, as_json: bool) -> list[str]:
    """The overrides, with what ``--quiet`` and ``--json`` stand for.

    Raises:
        UsageError: both are given.
    """
    if quiet and as_json:
        raise UsageError("only one of --quiet and --json can be given")
    asked = "quiet" if quiet else "json" if as_json else None
    return [*(overrides or ()), *([] if asked is None else [f"trainer.progress={asked}"])]


def examples(*commands: str) -> str:
    r"""The end of a help text; ``\b`` keeps click from joining the lines."""
    return "\b\nExamples:\n" + "\n".join(f"  {command}" for command in commands)


def compose(
    overrides: Sequence[str] | None,
    preset: str | None,
    files: Sequence[Path] | None,
    folders: Sequence[Path] | None,
    **named: str | None,
) -> dict[str, Any]:
    """The configuration that a command line asks for."""
    for folder in folders or ():
        registry.add_config_dir(folder)
    return config.compose(overrides or (), preset=preset, files=files or (), flags=named)
