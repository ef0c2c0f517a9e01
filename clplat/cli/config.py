"""``clplat config``: look at a configuration without running it."""

from __future__ import annotations

import typer

from clplat.cli import flags

app = typer.Typer(help="Print or check a configuration.", no_args_is_help=True, rich_markup_mode=None)


@app.command("print", epilog=flags.examples("clplat config print --strategy ewc --config mine.yaml > resolved.yaml"))
def print_(
    overrides: flags.Overrides = None,
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
    traceback: flags.Traceback = False,
) -> None:
    """Print a configuration.

    It is the whole of what `clplat fit` would run with the same arguments.
    """
    from clplat import config as configuration

    named = {
        "strategy": strategy,
        "backbone": backbone,
        "scenario": scenario,
        "optimizer": optimizer,
        "trainer": trainer,
        "logger": logger,
        "seed": seed,
        "devices": devices,
    }
    print(configuration.dump(flags.compose(overrides, preset, config, config_dir, **named)), end="")


@app.command("validate", epilog=flags.examples("clplat config validate mine.yaml optimizer.lr=0.01"))
def validate(
    words: flags.FilesAndOverrides = None,
    preset: flags.Preset = None,
    config: flags.Config = None,
    config_dir: flags.ConfigDir = None,
    traceback: flags.Traceback = False,
) -> None:
    """Check files and overrides.

    All problems are told at once.
    """
    from pathlib import Path

    given = words or []
    files = [Path(word) for word in given if "=" not in word]
    flags.compose([word for word in given if "=" in word], preset, [*(config or []), *files], config_dir)
    print("the configuration is valid")
