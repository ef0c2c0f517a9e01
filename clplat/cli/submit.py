"""``clplat submit``: give runs to a scheduler."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from clplat.cli import flags
from clplat.errors import UsageError

EPILOG = flags.examples(
    "clplat submit --cluster slurm --strategy ewc cluster.time=4:00:00 cluster.partition=gpu",
    "clplat submit --cluster slurm --strategy naive,ewc,er --seed 0,1,2 cluster.max_parallel=3",
    "clplat submit --cluster slurm --strategy ewc --dry-run",
)
_LISTED = ("strategy", "backbone", "scenario", "seed")  # flags that take a,b,c


def submit(
    ctx: typer.Context,
    overrides: flags.Overrides = None,
    cluster: flags.Cluster = None,
    strategy: flags.Strategy = None,
    backbone: flags.Backbone = None,
    scenario: flags.Scenario = None,
    optimizer: flags.Optimizer = None,
    trainer: flags.Trainer = None,
    logger: flags.Logger = None,
    preset: flags.Preset = None,
    config: flags.Config = None,
    config_dir: flags.ConfigDir = None,
    seed: flags.Seed = None,
    devices: flags.Devices = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Start again in an existing run.dir.")] = False,
    print_config: Annotated[bool, typer.Option("--print-config", help="Print the configurations and stop.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the script that would be submitted; write nothing.")
    ] = False,
    traceback: flags.Traceback = False,
) -> None:
    """Submit runs to a scheduler.

    Takes what `clplat fit` takes. Of --strategy, --backbone, --scenario and --seed several can be given as a,b,c: one
    run for each combination, all in one job array. A run that is preempted or runs out of time is requeued and goes on.
    """
    from clplat import config as configuration

    named = {
        "cluster": cluster,
        "strategy": strategy,
        "backbone": backbone,
        "scenario": scenario,
        "optimizer": optimizer,
        "trainer": trainer,
        "logger": logger,
        "seed": seed,
        "devices": devices,
    }
    configs = _configurations(overrides, preset, config, config_dir, named)
    if print_config:
        print("---\n".join(map(configuration.dump, configs)), end="")
        return
    from clplat.cluster import submission

    place = submission.place_of(configs[0])
    if len(configs) > 1 and configs[0]["run"]["dir"]:
        raise UsageError(f"run.dir names one directory, and these are {len(configs)} runs: set run.root instead")
    planned = submission.batch_of(configs, submission.planned(configs))
    text = place.text(planned)
    if dry_run:
        print(text, end="")
        return
    place.ready()
    if overwrite:
        submission.refuse_active(planned.runs)
    batch, job = submission.submit(place, configs, ctx.obj, overwrite)
    print(submission.announcement(batch, job))


def _configurations(
    overrides: Sequence[str] | None,
    preset: str | None,
    files: Sequence[Path] | None,
    folders: Sequence[Path] | None,
    named: Mapping[str, str | None],
) -> list[dict[str, Any]]:
    """The configuration of each run, all mistakes told at once."""
    choices: list[list[str | None]] = []
    for flag in _LISTED:
        value = named[flag]
        words: list[str | None] = [None] if value is None else [word.strip() for word in value.split(",")]
        twice = {word for word in words if words.count(word) > 1}
        if twice:
            raise UsageError(f"--{flag} {value}: {', '.join(sorted(map(str, twice)))} is there twice")
        choices.append(words)
    configs: list[dict[str, Any]] = []
    problems: list[str] = []
    for chosen in itertools.product(*choices):
        try:
            one = {**named, **dict(zip(_LISTED, chosen, strict=True))}
            configs.append(flags.compose(overrides, preset, files, folders, **one))
        except UsageError as error:
            problems += error.messages
    if problems:
        raise UsageError(*dict.fromkeys(problems))
    return configs
