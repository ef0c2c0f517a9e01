"""The configuration as a JSON Schema (draft 2020-12), for editors and for other programs; no torch."""

from __future__ import annotations

import math
import typing
from collections.abc import Sequence
from typing import Any, Literal

from clplat import config, registry, yamlfile
from clplat.cli import listing
from clplat.options import Option, is_union, plain
from clplat.registry import Entry

Schema = dict[str, Any]

_OWN = r"^[^+]*[.:][^+]*$"  # a class of the user's own: my_pkg.my_module:Class
_COMBINATION = r"^[^+]+(\+[^+]+)+$"
_SCALARS: dict[Any, Schema] = {
    int: {"type": "integer"},
    float: {"type": "number"},
    bool: {"type": "boolean"},
    str: {"type": ["string", "integer"]},  # run.dir=7 is the text 7
    type(None): {"type": "null"},
}


def schema() -> Schema:
    """The schema of a configuration file.

    Raises:
        UsageError: an entry of the registry cannot be read.
    """
    definitions: Schema = {}
    sections: Schema = {group: _group(group, definitions) for group in config.GROUPS}
    for name, entry in config.SETTINGS.items():
        sections[name] = _options(entry)
    sections["seed"] = _option(config.SEED)
    sections["config_dirs"] = {
        "description": "Folders of entries of one's own, shaped like conf/.",
        "type": "array",
        "items": {"type": "string"},
    }
    sections["_info_"] = {"description": "Free remarks on the file; not a part of the configuration."}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "clplat configuration",
        "description": "What `clplat fit --config FILE` takes; sections and options that are left out keep defaults.",
        "type": "object",
        "properties": sections,
        "additionalProperties": False,
        "$defs": definitions,
    }


def _group(group: str, definitions: Schema) -> Schema:
    """A section that is chosen by name: a name alone, or a mapping with the name and options of that entry."""
    entries = registry.entries(group)
    for name, entry in entries.items():
        definitions[f"{group}.{name}"] = _options(entry)
    combines = group in config.COMBINABLE
    names: list[Schema] = [{"enum": list(entries)}, {"pattern": _OWN, "description": "A class of one's own."}]
    if combines:
        names.append({"pattern": _COMBINATION, "description": "Several, in the order written: a+b."})
    choices: list[Schema] = [{"title": f"{group} by name", "type": "string", "anyOf": names}]
    choices += [_chosen(group, entry) for entry in entries.values()]
    choices.append(
        {
            "title": "a class of one's own and its options",
            "type": "object",
            "properties": {"name": {"type": "string", "pattern": _OWN}},
            "required": ["name"],
        }
    )
    if combines:
        choices.append(_combined(group, list(entries)))
    choices.append(
        {
            "title": f"options of the {group} that another file or a flag names",
            "type": "object",
            "properties": {"name": False},
        }
    )
    return {"description": f"Which {group}, and its options; `clplat list {group}`.", "oneOf": choices}


def _chosen(group: str, entry: Entry) -> Schema:
    """An entry's name beside its options."""
    return {
        "title": entry.name,
        "$ref": f"#/$defs/{group}.{entry.name}",
        "type": "object",
        "properties": {"name": {"const": entry.name}},
        "required": ["name"],
        "unevaluatedProperties": False,
    }


def _combined(group: str, names: Sequence[str]) -> Schema:
    """``{name: a+b, a: {...}, b: {...}}``: the options of each part under its name."""
    return {
        "title": f"several {group} entries as one; the options of each stand under its name",
        "type": "object",
        "properties": {
            "name": {"type": "string", "pattern": _COMBINATION},
            **{name: {"$ref": f"#/$defs/{group}.{name}", "unevaluatedProperties": False} for name in names},
        },
        "required": ["name"],
        "additionalProperties": {"type": "object"},
    }


def _options(entry: Entry) -> Schema:
    """The options of an entry. Whether others are allowed is for the place to say that refers here, but for settings,
    which are used as they are."""
    found: Schema = {
        "type": "object",
        "description": listing.summary(entry),
        "properties": {name: _option(option) for name, option in entry.settable.items()},
    }
    if entry.name in config.SETTINGS:
        found["additionalProperties"] = False
    return found


def _option(option: Option) -> Schema:
    found = dict(_type(option.type))
    if option.doc:
        found["description"] = option.doc
    default = plain(option.default)
    # JSON has neither infinity nor NaN.
    if not option.required and not (isinstance(default, float) and not math.isfinite(default)):
        found["default"] = default
    return found


def _type(type_: Any) -> Schema:
    """What :func:`clplat.options.convert` takes for a type."""
    if type_ in _SCALARS:
        return _SCALARS[type_]
    if type_ is None:
        return _SCALARS[type(None)]
    origin, args = typing.get_origin(type_), typing.get_args(type_)
    if is_union(type_):
        return {"anyOf": [_type(part) for part in args]}
    if origin is Literal:
        return {"enum": _enum(args)}
    if origin is dict:
        return {"type": "object", "additionalProperties": _type(args[1])}
    if origin is tuple and args[-1] is not ...:
        parts = [_type(part) for part in args]
        return {"type": "array", "prefixItems": parts, "items": False, "minItems": len(parts)}
    return {"type": "array", "items": _type(args[0])}


def _enum(values: Sequence[Any]) -> list[Any]:
    """The values, and what YAML makes of a text that looks like a number: 32 is as good as "32"."""
    read = [yamlfile.parse(value) for value in values if isinstance(value, str)]
    return [*values, *(value for value in read if not isinstance(value, str))]
