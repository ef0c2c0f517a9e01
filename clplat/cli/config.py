"""``clplat config``: look at a configuration without running it."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from clplat.cli import flags, output
from clplat.errors import RunFailedError, UsageError

app = typer.Typer(help="Print, check or compare configurations.", no_args_is_help=True, rich_markup_mode=None)


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


@app.command("validate", epilog=flags.examples("clplat config validate mine.yaml yours.yaml optimizer.lr=0.01"))
def validate(
    words: flags.FilesAndOverrides = None,
    preset: flags.Preset = None,
    config: flags.Config = None,
    config_dir: flags.ConfigDir = None,
    traceback: flags.Traceback = False,
) -> None:
    """Check files.

    Each file is checked by itself, on top of the preset and the --config files if any are given. All problems are told
    at once, with file and line.
    """
    given = words or []
    overrides = [word for word in given if "=" in word]
    files: list[Path | None] = [Path(word) for word in given if "=" not in word]
    problems: list[str] = []
    for file in files or [None]:
        try:
            flags.compose(overrides, preset, [*(config or []), *([file] if file else [])], config_dir)
        except UsageError as error:
            problems += [_located(message, file) for message in error.messages]
        else:
            print(f"{file or 'configuration'}: ok")
    if problems:
        raise UsageError(*dict.fromkeys(problems))


def _located(message: str, file: Path | None) -> str:
    """A message that begins with a key of a file (``trainer.devices=0: ...``), and the place of that key."""
    from clplat import yamlfile

    key = re.match(r"[\w-]+(\.[\w-]+)*", message)
    if file is None or key is None or message.startswith(str(file)):
        return message
    try:
        _, lines = yamlfile.read(file)
    except UsageError:
        return message
    line = lines.get(tuple(key[0].split(".")))
    return message if line is None else f"{file}:{line}: {message}"


@app.command("diff", epilog=flags.examples("clplat config diff runs/a runs/b", "clplat config diff mine.yaml runs/a"))
def diff(
    first: Annotated[Path, typer.Argument(metavar="A", help="A run directory or a file.")],
    second: Annotated[Path, typer.Argument(metavar="B", help="Another.")],
    config_dir: flags.ConfigDir = None,
    as_json: flags.Json = False,
    traceback: flags.Traceback = False,
) -> None:
    """Show the keys that differ.

    Of a run its configuration as it was recorded; of a file what it comes to with all defaults.
    """
    from clplat import changes
    from clplat.options import shown
    from clplat.report import compare

    both = [_configuration(path, config_dir) for path in (first, second)]
    keys = compare.differing(both)
    a, b = (changes.flatten(one) for one in both)
    if as_json:
        rows = [{"key": k, **{side: one[k] for side, one in (("a", a), ("b", b)) if k in one}} for k in keys]
        print(json.dumps(rows, indent=2, default=str))
    elif keys:
        cells = [[shown(one[key]) if key in one else "-" for one in (a, b)] for key in keys]
        output.table(("key", str(first), str(second)), [(key, *row) for key, row in zip(keys, cells, strict=True)])
    else:
        print("no differences")


def _configuration(path: Path, folders: Sequence[Path] | None) -> dict[str, Any]:
    from clplat import yamlfile

    if path.is_dir():
        return yamlfile.read(path / "config.yaml")[0]
    return flags.compose(None, None, [path], folders)


@app.command("schema", epilog=flags.examples("clplat config schema --output clplat.schema.json"))
def schema(
    target: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="Where it goes; standard output if not given.")
    ] = None,
    config_dir: flags.ConfigDir = None,
    traceback: flags.Traceback = False,
) -> None:
    """Print the JSON Schema of a configuration.

    Editors complete and check YAML files by it. It holds all entries that there are here, also those of one's own.
    """
    from clplat import registry
    from clplat.cli import schema as made

    for folder in config_dir or ():
        registry.add_config_dir(folder)
    text = json.dumps(made.schema(), indent=2, allow_nan=False) + "\n"
    if target is None:
        print(text, end="")
        return
    try:
        target.write_text(text, encoding="utf-8")
    except OSError as error:
        raise RunFailedError(f"{target}: cannot be written: {error.strerror}") from None
