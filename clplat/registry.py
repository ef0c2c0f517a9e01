"""The registry: ``conf/strategy/ewc.yaml`` *is* the strategy ``ewc``.

An entry is a YAML file with ``_target_`` (where the class, function or dataclass lives), optionally ``_info_`` (family,
paper, needs, ...) and optionally values that override the defaults of the target's signature. Everything here is read
from YAML and source text: nothing is imported before :meth:`Entry.load`.

Others add entries through the entry point group ``clplat.conf`` (a package whose folder has the shape of ``conf/``),
through :func:`add_config_dir`, or name a class: ``my_pkg.mod:Class``.
"""

from __future__ import annotations

import copy
import importlib
import os
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

from clplat import signature, yamlfile
from clplat.errors import MissingError, UsageError, suggestion
from clplat.options import Option, convert

__all__ = ["GROUPS", "Entry", "Option", "add_config_dir", "config_dirs", "entries", "find", "names", "summary"]

GROUPS = ("strategy", "backbone", "scenario", "trainer", "optimizer", "logger", "cluster", "metric", "probe", "preset")

# What a class of a group must inherit from; checked when it is loaded.
_BASES = {
    "strategy": ("clplat.strategy", "Strategy"),
    "backbone": ("clplat.backbones.base", "Backbone"),
    "scenario": ("clplat.scenario", "Scenario"),
    "cluster": ("clplat.cluster.base", "Cluster"),
    "probe": ("clplat.metrics.probes.base", "Probe"),
}
# What all entries of a group can be told besides their own options.
_COMMON = {"backbone": "clplat.sizing.Sizing", "scenario": "clplat.wrapping.Wrapping"}
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")

_added: list[Path] = []


@dataclass(frozen=True)
class Entry:
    """One thing that can be chosen by name.

    Args:
        group: one of :data:`GROUPS`.
        name: what one writes to choose it.
        target: where it lives, as ``package.module.Name``; empty for a preset.
        info: the ``_info_`` of its file.
        overrides: the values in its file that go before the signature's defaults; for a preset, its whole content.
        path: its file; None for a class that was named directly.
    """

    group: str
    name: str
    target: str
    info: dict[str, Any] = field(hash=False)
    overrides: dict[str, Any] = field(hash=False)
    path: Path | None

    @cached_property
    def options(self) -> dict[str, Option]:
        """What can be set, by name. Raises UsageError when the target's source cannot be read."""
        if not self.target:
            return {}
        try:
            options = dict(signature.read(self.target).options)
        except UsageError as error:
            raise UsageError(*(f"{self._where}: {message}" for message in error.messages)) from None
        problems = []
        for name, value in self.overrides.items():
            if name not in options:
                problems.append(f"{self._where}: {self.target} has no option '{name}'.{suggestion(name, options)}")
                continue
            try:
                options[name] = replace(options[name], default=convert(value, options[name].type), required=False)
            except ValueError as error:
                problems.append(f"{self._where}: {name}: {error}")
        if problems:
            raise UsageError(*problems)
        return options

    @cached_property
    def settable(self) -> dict[str, Option]:
        """Its own options and those that all entries of its group have; of two with the same name, its own."""
        common = signature.read(_COMMON[self.group]).options if self.group in _COMMON else {}
        return {**self.options, **{name: option for name, option in common.items() if name not in self.options}}

    @cached_property
    def defaults(self) -> dict[str, Any]:
        """The values of all options that have one."""
        return {name: option.default for name, option in self.options.items() if not option.required}

    @cached_property
    def summary(self) -> str:
        """One line: ``summary`` of ``_info_``, else the first of the target's docstring or a preset's first comment."""
        if isinstance(self.info.get("summary"), str):
            return self.info["summary"]
        if not self.target:
            first = self.path.read_text(encoding="utf-8").partition("\n")[0] if self.path else ""
            return first.removeprefix("#").strip() if first.startswith("#") else ""
        return signature.read(self.target).summary

    def load(self) -> Any:
        """Import the class or function.

        Raises:
            UsageError: there is no such module or name, or the class is not of the group's kind.
            MissingError: the module needs a package that is not installed.
        """
        module_name, name = signature.split(self.target)
        try:
            loaded = getattr(_import(module_name), name)
        except ModuleNotFoundError as error:
            if error.name and (module_name == error.name or module_name.startswith(f"{error.name}.")):
                raise UsageError(f"{self._where}: there is no module {error.name}") from error
            raise MissingError(
                f"{self.group} '{self.name}' needs the package '{error.name}', which is not installed"
            ) from error
        except AttributeError:
            raise UsageError(f"{self._where}: there is no '{name}' in {module_name}") from None
        if self.group in _BASES and isinstance(loaded, type):
            base = getattr(importlib.import_module(_BASES[self.group][0]), _BASES[self.group][1])
            if not issubclass(loaded, base):
                raise UsageError(f"{self._where}: {self.target} is not a {base.__module__}.{base.__qualname__}")
        return loaded

    def build(self, *args: Any, **options: Any) -> Any:
        """Call the target with the engine's ``args`` and all options, those not given at their defaults.

        Raises:
            UsageError: an option is unknown, of the wrong type, or required and not given.
        """
        problems = []
        values = dict(self.defaults)
        for name, value in options.items():
            if name not in self.options:
                problems.append(f"{self.group} '{self.name}' has no option '{name}'.{suggestion(name, self.options)}")
                continue
            try:
                values[name] = convert(value, self.options[name].type)
            except ValueError as error:
                problems.append(f"{self.group} '{self.name}': {name}: {error}")
        missing = [name for name in self.options if name not in values and name not in options]
        problems += [f"{self.group} '{self.name}': '{name}' must be given" for name in missing]
        if problems:
            raise UsageError(*problems)
        return self.load()(*args, **copy.deepcopy(values))

    @property
    def _where(self) -> str:
        return str(self.path) if self.path else f"{self.group} '{self.name}'"


def _import(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError:
        # A console script does not look into the current folder, where a user's own module usually is.
        if os.getcwd() in sys.path or signature.locate(module) is None:
            raise
        sys.path.append(os.getcwd())
        importlib.invalidate_caches()
        return importlib.import_module(module)


def add_config_dir(path: str | Path) -> None:
    """Add a folder of the shape of ``conf/`` (``strategy/mine.yaml``, ...) to the registry.

    Raises:
        UsageError: it is not a folder, or has no sub-folder named after a group.
    """
    folder = Path(path).expanduser().resolve()
    if not folder.is_dir():
        raise UsageError(f"--config-dir {path}: not a folder")
    if not any((folder / group).is_dir() for group in GROUPS):
        raise UsageError(f"--config-dir {path}: no folder in it is named after a group ({', '.join(GROUPS)})")
    if folder not in _added:
        _added.append(folder)


def config_dirs() -> list[Path]:
    """The folders added by :func:`add_config_dir`."""
    return list(_added)


@cache
def _installed() -> tuple[Path, ...]:
    """The built-in folder and those of installed packages."""
    folders = [Path(__file__).resolve().parent / "conf"]
    for point in sorted(metadata.entry_points(group="clplat.conf"), key=lambda point: point.name):
        found = signature.folders(point.module)
        if not found:
            raise UsageError(f"the entry point '{point.name}' of clplat.conf names {point.module}, which has no folder")
        folders += found
    return tuple(folders)


def _files(group: str) -> dict[str, Path]:
    """Name -> file of each entry of a group."""
    if group not in GROUPS:
        raise UsageError(f"there is no group '{group}'.{suggestion(group, GROUPS)}")
    known = _built_in(group)
    return dict(sorted(_listed(group, _added, known).items())) if _added else known


@cache
def _built_in(group: str) -> dict[str, Path]:
    """Of the folders that stay as they are while a process lives, sorted by name."""
    return dict(sorted(_listed(group, _installed(), {}).items()))


def _listed(group: str, folders: Iterable[Path], known: Mapping[str, Path]) -> dict[str, Path]:
    found, problems = dict(known), []
    for folder in folders:
        for path in sorted((folder / group).glob("*.yaml")):
            name = path.stem
            if not _NAME.fullmatch(name):
                problems.append(f"{path}: a name is made of letters, digits, - and _")
            elif name in found:
                problems.append(f"{path}: the {group} '{name}' is there already, in {found[name]}")
            found[name] = path
    if problems:
        raise UsageError(*problems)
    return found


@cache
def _entry(group: str, path: Path) -> Entry:
    content, lines = yamlfile.read(path)
    info = content.pop("_info_", {})
    if not isinstance(info, dict):
        raise UsageError(f"{path}:{lines[('_info_',)]}: _info_ should be a mapping")
    if group == "preset":
        return Entry(group, path.stem, "", info, content, path)
    target = content.pop("_target_", None)
    if not isinstance(target, str):
        raise UsageError(f"{path}: '_target_: package.module.Name' is missing")
    try:
        signature.split(target)
    except UsageError as error:
        raise UsageError(f"{path}:{lines[('_target_',)]}: _target_: {error}") from None
    return Entry(group, path.stem, target, info, content, path)


def entries(group: str) -> dict[str, Entry]:
    """All entries of a group, sorted by name.

    Raises:
        UsageError: no such group, a malformed file, or a name that two folders claim; the message names the files.
    """
    found: dict[str, Entry] = {}
    problems: list[str] = []
    for name, path in _files(group).items():
        try:
            found[name] = _entry(group, path)
        except UsageError as error:
            problems += error.messages
    if problems:
        raise UsageError(*problems)
    return found


def find(group: str, name: str) -> Entry:
    """The entry called ``name``; a name with a dot or colon is a class of the user's own (``my_pkg.mod:Class``).

    An entry whose ``_info_`` names one of its options as ``argument`` can be written with that option's value:
    ``avalanche:SplitMNIST`` is the entry ``avalanche`` with ``benchmark: SplitMNIST``.

    Raises:
        UsageError: there is none; the message suggests what may have been meant.
    """
    files = _files(group)
    if name in files:
        return _entry(group, files[name])
    family, colon, value = name.partition(":")
    if colon and family in files:
        entry = _entry(group, files[family])
        if isinstance(entry.info.get("argument"), str):
            return _with_argument(entry, value)
    if group != "preset" and (":" in name or "." in name):
        signature.split(name)
        return _named(group, name)
    raise UsageError(f"unknown {group} '{name}'.{suggestion(name, files)}")


def _with_argument(entry: Entry, value: str) -> Entry:
    argument = entry.info["argument"]
    choices = entry.options[argument].choices
    if choices is not None and value not in choices:
        whole = f"{entry.name}:{value}"
        hint = suggestion(whole, (f"{entry.name}:{choice}" for choice in choices))
        raise UsageError(f"unknown {entry.group} '{whole}'.{hint}")
    return replace(entry, name=f"{entry.name}:{value}", overrides={**entry.overrides, argument: value})


@cache
def _named(group: str, name: str) -> Entry:
    return Entry(group, name, name, {}, {}, None)


def names(group: str) -> list[str]:
    """The names of a group, sorted, without reading any file."""
    return list(_files(group))


def summary(entry: Entry) -> str:
    """One line on an entry; where its source cannot be read it says so instead of spoiling a list."""
    try:
        return entry.summary
    except UsageError as error:
        return f"({error})"
