"""Configurations: what a run is made of, as one plain nested dict.

Precedence: defaults < ``--preset`` < ``--config FILE`` (repeatable) < flags < ``section.key=value``. A layer that names
a strategy (backbone, ...) gives its options to that name: when a later layer chooses another, they go with the old one.
All mistakes are collected and reported at once, each with where it was made.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clplat import registry, sizing, yamlfile
from clplat.errors import UsageError, suggestion
from clplat.options import Option, Text, convert, nesting, plain, spell
from clplat.registry import Entry

GROUPS = ("strategy", "backbone", "scenario", "optimizer", "trainer", "logger", "cluster")
COMBINABLE = ("strategy", "logger")
SETTINGS = {
    section: Entry(section, section, f"clplat.settings.{section.title()}Settings", {}, {}, None)
    for section in ("learner", "eval", "run")
}
SEED = Option("seed", int, 0, None, "what all randomness of the run is derived from.", required=False)
SECTIONS = (*GROUPS, *SETTINGS, "seed")
_OTHER = ("config_dirs",)  # folders added by --config-dir: part of the config, so that a run can be resumed

_DEFAULTS = Path(__file__).resolve().parent / "conf" / "default.yaml"


@dataclass(frozen=True)
class _Given:
    """A value that somebody set, and how to name the place in a message (``my.yaml:3: ``)."""

    value: Any
    where: str

    def at(self, dotted: str) -> str:
        """The place and the key, the latter once."""
        return self.where if self.where.startswith(f"{dotted}=") else f"{self.where}{dotted}: "


@dataclass
class _Layer:
    """What one source says: names of groups, and options by path."""

    names: dict[str, _Given] = field(default_factory=dict)
    options: list[tuple[tuple[str, ...], _Given]] = field(default_factory=list)


def compose(
    overrides: Sequence[str] = (),
    *,
    preset: str | None = None,
    files: Sequence[Path | str] = (),
    flags: Mapping[str, str | int | None] = {},
    sweep: bool = False,
) -> dict[str, Any]:
    """Put a configuration together and check all of it.

    Args:
        overrides: ``section.key=value``, ``section.part.key=value`` for a combination, or ``section=name``.
        preset: name of a preset.
        files: YAML files, later ones first in precedence.
        flags: ``strategy``, ``seed``, ``devices``, ``stop-after``, or a dotted key -> value; None where a flag was not
            given.
        sweep: this is one run of a sweep: the ``sweep:`` section of a file has been read already.

    Returns:
        A dict of dicts of plain values. Each section that is chosen by name has it under ``name``.

    Raises:
        UsageError: something is wrong; one message for each problem.
    """
    problems: list[str] = []
    layers = [_read_file(_DEFAULTS, problems, sweep)]
    if preset is not None:
        path = registry.find("preset", preset).path
        layers += [_read_file(path, problems, sweep)] if path else []
    layers += [_read_file(Path(path), problems, sweep) for path in files]
    layers += [_read_flags(flags, problems), _read_overrides(overrides, problems)]
    result: dict[str, Any] = {group: _group(group, layers, problems) for group in GROUPS}
    result |= {section: _settings(section, layers, problems) for section in SETTINGS}
    result["seed"] = _seed(layers, problems)
    if registry.config_dirs():
        result["config_dirs"] = [str(path) for path in registry.config_dirs()]
    if not problems:
        problems += _own_checks(result)
    if problems:
        raise UsageError(*dict.fromkeys(problems))
    return result


def _own_checks(config: Mapping[str, Any]) -> list[str]:
    """Settings are cheap to make, so what their classes themselves refuse is told here and not by the engine."""
    problems: list[str] = []
    for key, what in {"devices": "rank", "num_nodes": "node"}.items():
        if config["trainer"].get(key, 1) < 1:
            problems.append(f"trainer.{key}={config['trainer'][key]}: at least one {what} is needed")
    chosen = {group: registry.find(group, config[group]["name"]) for group in ("trainer", "cluster")}
    for section, entry in {**SETTINGS, **chosen}.items():
        if entry.target.startswith(("clplat.settings.", "clplat.cluster.")):
            try:
                entry.build(**{key: value for key, value in config[section].items() if key != "name"})
            except UsageError as error:
                problems += error.messages
    return problems


def load(path: Path | str) -> dict[str, Any]:
    """Read a resolved configuration back and check it like any other.

    Raises:
        UsageError: there is no such file, or something in it is wrong.
    """
    return compose(files=[path])


def dump(config: Mapping[str, Any]) -> str:
    """A configuration as YAML, its sections always in the same order."""
    ordered = {section: config[section] for section in (*SECTIONS, *_OTHER) if section in config}
    return yamlfile.dump(ordered)


def parts(section: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """``[(name, options), ...]`` of a section; several for a combination such as ``ewc+er``."""
    names = section["name"].split("+")
    if len(names) == 1:
        return [(names[0], {key: value for key, value in section.items() if key != "name"})]
    return [(name, dict(section.get(name, {}))) for name in names]


# --- reading the layers ----------------------------------------------------------------------------------------------


def _read_file(path: Path, problems: list[str], sweep: bool = False) -> _Layer:
    layer = _Layer()
    try:
        content, lines = yamlfile.read(path)
    except UsageError as error:
        problems += error.messages
        return layer
    content.pop("_info_", None)
    if content.pop("sweep", None) is not None and not sweep:
        problems.append(f"{path}: it describes a sweep of many runs: use clplat sweep")

    def given(value: Any, *keys: str) -> _Given:
        line = lines.get(keys)
        return _Given(value, f"{path}:{line}: " if line else f"{path}: ")

    for section, value in content.items():
        if section == "config_dirs":
            problems += _add_config_dirs(given(value, section))
        elif section in GROUPS and not isinstance(value, Mapping):
            layer.names[section] = given(value, section)
        elif section == "seed":
            layer.options.append(((section,), given(value, section)))
        elif section not in SECTIONS:
            problems.append(f"{given(value, section).where}{_unknown_section(section)}")
        elif not isinstance(value, Mapping):
            problems.append(f"{given(value, section).where}{section}: expected a mapping of its options")
        else:
            for key, item in value.items():
                if section in GROUPS and key == "name":
                    layer.names[section] = given(item, section, key)
                else:
                    layer.options.append(((section, str(key)), given(item, section, str(key))))
    return layer


def _add_config_dirs(given: _Given) -> list[str]:
    if not isinstance(given.value, list):
        return [f"{given.where}config_dirs: expected a list of folders"]
    problems = []
    for folder in given.value:
        try:
            registry.add_config_dir(str(folder))
        except UsageError as error:
            problems.append(f"{given.where}{error}")
    return problems


def _read_flags(flags: Mapping[str, str | int | None], problems: list[str]) -> _Layer:
    short = {"devices": "trainer.devices", "stop-after": "run.stop_after"}
    texts = [(short.get(key, key), str(value), f"--{key}") for key, value in flags.items() if value is not None]
    return _read_pairs(texts, problems)


def _read_overrides(overrides: Sequence[str], problems: list[str]) -> _Layer:
    pairs = []
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key or any(not part or part != part.strip() for part in key.split(".")):
            hint = "" if equals else _meant(override)
            problems.append(f"'{override}' is not of the form section.key=value.{hint}")
        else:
            pairs.append((key, text, override))
    return _read_pairs(pairs, problems)


def _read_pairs(pairs: Sequence[tuple[str, str, str]], problems: list[str]) -> _Layer:
    layer = _Layer()
    for key, text, label in pairs:
        section, *rest = key.split(".")
        try:
            value = Text(text, yamlfile.parse(text))
        except ValueError as error:
            problems.append(f"{label}: the value is not YAML ({error})")
            continue
        given = _Given(value, f"{label}: ")
        if section not in SECTIONS:
            problems.append(f"{label}: {_unknown_section(section)}")
        elif section in GROUPS and rest in ([], ["name"]):
            layer.names[section] = given
        elif not rest and section != "seed":
            problems.append(f"{label}: '{section}' is a section; set {section}.KEY=VALUE")
        elif rest and section == "seed":
            problems.append(f"{label}: 'seed' is one number; set seed=VALUE")
        else:
            layer.options.append(((section, *rest), given))
    return layer


def _meant(word: str) -> str:
    """A hint for a word that is no override: the name of an entry wants its flag."""
    groups = [group for group in GROUPS if word in registry.names(group)]
    return f" Did you mean --{groups[0]} {word}?" if groups else suggestion(word, SECTIONS)


def _unknown_section(section: str) -> str:
    if section in ("preset", "config"):
        return f"'{section}' cannot be set here; use --{section}"
    return f"unknown section '{section}'.{suggestion(section, SECTIONS)}"


# --- resolving -------------------------------------------------------------------------------------------------------


def _seed(layers: Sequence[_Layer], problems: list[str]) -> int:
    value = SEED.default
    for path, given in _in_section("seed", layers):
        value = _checked(given, path, SEED, problems, value)
    return value


def _in_section(section: str, layers: Sequence[_Layer]) -> Iterator[tuple[tuple[str, ...], _Given]]:
    for layer in layers:
        yield from ((path, given) for path, given in layer.options if path[0] == section)


def _settings(section: str, layers: Sequence[_Layer], problems: list[str]) -> dict[str, Any]:
    values = _Values(SETTINGS[section], problems)
    for path, given in _in_section(section, layers):
        values.set(path, path[1:], given)
    return values.finish(section)


def _group(group: str, layers: Sequence[_Layer], problems: list[str]) -> dict[str, Any]:
    """Resolve a section that is chosen by name."""
    chosen = [layer.names.get(group) for layer in layers]
    final = next(given for given in reversed(chosen) if given is not None)
    names = _names(group, final, problems)
    values = {name: _Values(entry, problems) for name, entry in names.items()}
    for layer, own in zip(layers, chosen, strict=True):
        options = [(path, given) for path, given in layer.options if path[0] == group]
        here = _names(group, own, problems) if options and own not in (None, final) else names
        for path, given in options:
            _set(group, here, values, path, given, problems)
    if len(names) == 1:
        (name,) = names
        return {"name": name, **values[name].finish(group)}
    return {"name": "+".join(names), **{name: values[name].finish(f"{group}.{name}") for name in names}}


def _names(group: str, given: _Given, problems: list[str]) -> dict[str, Entry]:
    """The entries that ``ewc+er`` stands for; empty when a name is unknown."""
    if not isinstance(given.value, str):
        problems.append(f"{given.at(group)}expected a name")
        return {}
    found: dict[str, Entry] = {}
    before = len(problems)
    for name in str(given.value).split("+"):
        try:
            if name in found:
                raise UsageError(f"'{name}' is named twice in '{given.value}'")
            found[name] = registry.find(group, name)
        except UsageError as error:
            problems += [f"{given.where}{message}" for message in error.messages]
    if len(found) > 1 and group not in COMBINABLE:
        problems.append(f"{given.where}one {group} only; '+' combines {' and '.join(COMBINABLE)} entries")
    return found if len(problems) == before else {}


def _set(
    group: str,
    names: Mapping[str, Entry],
    values: dict[str, _Values],
    path: tuple[str, ...],
    given: _Given,
    problems: list[str],
) -> None:
    """Give one option to the part that it is meant for."""
    rest, dotted = ".".join(path[1:]), ".".join(path)
    part = next((name for name in names if rest == name or rest.startswith(f"{name}.")), None)
    if part is None and len(names) > 1:
        options = ", ".join(f"{group}.{name}.{rest}" for name, entry in names.items() if path[1] in _options_of(entry))
        known = ", ".join(f"{group}.{name}.KEY" for name in names)
        hint = f"write {options}" if options else f"write {known}"
        problems.append(f"{given.at(dotted)}'{'+'.join(names)}' has several parts; {hint}")
    elif names:
        name = part or next(iter(names))
        inner = rest.removeprefix(part).removeprefix(".") if part else ""  # a part's name may hold dots itself
        keys = path[1:] if part is None else tuple(inner.split(".")) if inner else ()
        # Options of a name that a later layer replaced are checked all the same, and then go with it.
        target = values[name] if name in values else _Values(names[name], problems)
        if keys:
            target.set(path, keys, given)
        elif isinstance(given.value, Mapping):
            for key, value in given.value.items():
                target.set((*path, str(key)), (str(key),), _Given(value, given.where))
        else:
            problems.append(f"{given.at(dotted)}expected the options of '{name}'")


def _options_of(entry: Entry) -> Mapping[str, Option]:
    try:
        return entry.settable
    except UsageError:
        return {}


class _Values:
    """The options of one entry while they are being set."""

    def __init__(self, entry: Entry, problems: list[str]) -> None:
        self.entry, self.problems = entry, problems
        self.given: dict[str, Any] = {}
        self.failed: set[str] = set()
        self.options: Mapping[str, Option] | None = None
        try:
            self.options = entry.settable
        except UsageError as error:
            problems += error.messages

    def set(self, path: tuple[str, ...], keys: tuple[str, ...], given: _Given) -> None:
        if self.options is None:
            return
        name, *inner = keys
        option = self.options.get(name)
        dotted = ".".join(path)
        if option is None:
            self.problems.append(
                f"{given.at(dotted)}'{self.entry.name}' has no option '{name}'.{suggestion(name, self.options)}"
                if self.options
                else f"{given.at(dotted)}'{self.entry.name}' has no options"
            )
        elif not inner:
            value = _checked(given, path, option, self.problems, _FAILED)
            (self.failed.add(name) if value is _FAILED else self.given.update({name: value}))
        elif len(inner) <= nesting(option.type):
            before = self.given.get(name, plain(option.default) or {})
            value = given.value.value if isinstance(given.value, Text) else given.value
            whole = _Given(_put(before, inner, value), given.where)
            self.given[name] = _checked(whole, path, option, self.problems, before)
        else:
            self.problems.append(f"{given.at(dotted)}'{name}' is one value, not a section")

    def finish(self, section: str) -> dict[str, Any]:
        """All values in the order of the signature."""
        if self.options is None:
            return {}
        values = {}
        for name, option in self.options.items():
            if name in self.given:
                values[name] = self.given[name]
            elif not option.required:
                values[name] = plain(option.default)
            elif name not in self.failed:
                doc = f" ({option.doc.rstrip('.')})" if option.doc else ""
                self.problems.append(f"{section}.{name} must be given{doc}: {section}.{name}={spell(option.type)}")
        if self.entry.group != "backbone":
            return values
        try:
            return sizing.settle(self.entry, values, self.given)
        except UsageError as error:
            self.problems += error.messages
            return values


_FAILED = object()


def _put(section: Mapping[str, Any], keys: Sequence[str], value: Any) -> dict[str, Any]:
    """A copy of nested options with one of them set."""
    first, *rest = keys
    before = section.get(first)
    return {**section, first: _put(before if isinstance(before, Mapping) else {}, rest, value) if rest else value}


def _checked(given: _Given, path: tuple[str, ...], option: Option, problems: list[str], otherwise: Any) -> Any:
    try:
        return plain(convert(given.value, option.type))
    except ValueError as error:
        problems.append(f"{given.at('.'.join(path))}{error}")
        return otherwise
