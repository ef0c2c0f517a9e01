"""``clplat show``: what one entry is and what can be set."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from clplat import config, registry, signature
from clplat.cli import flags, listing, output, probe
from clplat.errors import UsageError, suggestion
from clplat.options import plain, shown, spell
from clplat.registry import Entry

EPILOG = flags.examples(
    "clplat show ewc",
    "clplat show default --group trainer",
    "clplat show run",
    "clplat show adam --json",
    "clplat show lorenz96 --plot",
    "clplat show mqar --plot pairs.svg",
)


def show(
    name: Annotated[str, typer.Argument(metavar="NAME", help="An entry, a section such as run, or a class of yours.")],
    group: Annotated[
        str | None, typer.Option("--group", metavar="G", help="Its group, where a name is ambiguous.")
    ] = None,
    plot: Annotated[
        bool,
        typer.Option("--plot", help="Scenarios only: draw a few samples as NAME.svg, or as the file named after it."),
    ] = False,
    file: Annotated[Path | None, typer.Argument(metavar="[FILE.svg]", help="With --plot: where to draw.")] = None,
    as_json: flags.Json = False,
    config_dir: flags.ConfigDir = None,
) -> None:
    """Show an entry and its options.

    Each option with its type, default and meaning, and an example of how to use the entry.
    """
    for folder in config_dir or ():
        registry.add_config_dir(folder)
    entry = _find(name, group)
    if plot or file is not None:
        _plot(entry, plot, file)
        return
    if as_json:
        print(json.dumps(_as_dict(entry), indent=2))
        return
    print(f"{entry.group} {entry.name}" if entry.group != entry.name else f"section {entry.name}")
    if line := listing.summary(entry):
        print(f"  {line}")
    for key, value in entry.info.items():
        print(f"  {key}: {shown(value)}")
    for name in ("causal", "sequential") if entry.group == "backbone" else ():
        if signature.class_value(entry.target, name) is False:
            print(f"  {name}: false")
    if entry.target:
        print(f"  from {entry.target}")
    print()
    if entry.group == "preset":
        print(entry.path.read_text(encoding="utf-8") if entry.path else "")
    elif entry.settable:
        output.table(
            ("option", "type", "default", ""),
            [
                (o.name, spell(o.type), "(required)" if o.required else shown(o.default), o.doc)
                for o in entry.settable.values()
            ],
        )
    else:
        print("no options")
    print(f"\nExample: {_example(entry)}")


def _plot(entry: Entry, wanted: bool, file: Path | None) -> None:
    if not wanted:
        raise UsageError(f"{file}: a file is written with --plot only")
    if entry.group != "scenario":
        raise UsageError(f"--plot draws samples of a scenario, and {entry.name} is a {entry.group}")
    file = file or Path(f"{entry.name.replace(':', '-')}.svg")
    if file.suffix != ".svg":
        raise UsageError(f"{file}: pictures are written as .svg")
    from clplat import picture

    text = picture.svg(entry.build(0), entry.name)
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{file}: {error.strerror}") from error
    print(f"drawn: {file}")


def _find(name: str, group: str | None) -> Entry:
    if group is not None:
        if group in config.SETTINGS and group == name:
            return config.SETTINGS[name]
        return registry.find(group, name)
    argument_of = [g for g in registry.GROUPS if name.partition(":")[0] in registry.names(g)]
    if ":" in name and len(argument_of) == 1:  # avalanche:SplitMNIST
        return registry.find(argument_of[0], name)
    if ":" in name:
        raise UsageError(f"'{name}' may be anything; say which with --group ({', '.join(registry.GROUPS)})")
    found = {g: registry.names(g) for g in registry.GROUPS}
    holders = [g for g, names in found.items() if name in names]
    if len(holders) > 1:
        raise UsageError(f"'{name}' is the name of a {' and of a '.join(holders)}; say which with --group")
    if holders:
        return registry.find(holders[0], name)
    if name in config.SETTINGS:
        return config.SETTINGS[name]
    every = {*config.SETTINGS, *(n for names in found.values() for n in names)}
    raise UsageError(f"there is nothing called '{name}'.{suggestion(name, every)}")


def _as_dict(entry: Entry) -> dict[str, Any]:
    return {
        "group": entry.group,
        "name": entry.name,
        "summary": listing.summary(entry),
        "target": entry.target,
        "info": entry.info,
        "options": [
            {
                "name": option.name,
                "type": spell(option.type),
                "default": plain(option.default),
                "choices": plain(option.choices),
                "required": option.required,
                "doc": option.doc,
            }
            for option in entry.settable.values()
        ],
        **({"config": entry.overrides} if entry.group == "preset" else {}),
    }


def _example(entry: Entry) -> str:
    """A command that uses the entry and sets its first option, of those that must be given where there are any."""
    if entry.group == "metric":
        return f"clplat metrics RUN --add {shlex.quote(entry.name)}"
    if entry.group == "probe":
        return probe.example(entry)
    command = "submit" if entry.group == "cluster" else "fit"
    flag = "" if entry.name in config.SETTINGS else f" --{entry.group} {shlex.quote(entry.name)}"
    option = next(iter(sorted(entry.settable.values(), key=lambda option: not option.required)), None)
    if option is None:
        return f"clplat {command}{flag}"
    value = spell(option.type) if option.required else shown(option.default)
    return f"clplat {command}{flag} {shlex.quote(f'{entry.group}.{option.name}={value}')}"
