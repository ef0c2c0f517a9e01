"""Reading and writing YAML quickly and strictly: no key twice, line numbers kept, and ``1e-3`` is a number.

YAML 1.1 reads ``1e-3`` as text, ``on`` as true and ``1:30`` as 90. Here scalars follow YAML 1.2's core schema.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from clplat.errors import UsageError

_Base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_Base):
    """The safe loader with YAML 1.2's idea of a scalar."""

    yaml_implicit_resolvers: dict[str, Any] = {}


_LINE_BREAKS = re.compile("[\x85\u2028\u2029]")


class _Dumper(yaml.SafeDumper):
    """Mappings as blocks, lists in one line, and text in quotes where any reader would take it for something else."""

    def represent_mapping(self, tag: str, mapping: Any, flow_style: bool | None = None) -> yaml.MappingNode:
        return super().represent_mapping(tag, mapping, flow_style=False)

    def represent_scalar(self, tag: str, value: Any, style: str | None = None) -> yaml.ScalarNode:
        if isinstance(value, str) and _LINE_BREAKS.search(value):
            style = '"'  # the only style that escapes them; the others would fold them to spaces
        return super().represent_scalar(tag, value, style)

    def ignore_aliases(self, data: Any) -> bool:
        return True


for tag, pattern, first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?(0|[1-9][0-9]*)", "-+0123456789"),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("merge", r"<<", "<"),
):
    for side in (_Loader, _Dumper):
        side.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(f"^(?:{pattern})$"), list(first))


def _construct_int(loader: Any, node: Any) -> Any:
    try:
        return int(node.value)
    except ValueError:  # an explicit !!int, or more digits than Python converts
        raise yaml.constructor.ConstructorError(None, None, "not a whole number", node.start_mark) from None


def _construct_float(loader: Any, node: Any) -> Any:
    text = node.value.lower()
    try:
        return float(text.replace(".inf", "inf").replace(".nan", "nan"))
    except ValueError:
        raise yaml.constructor.ConstructorError(None, None, "not a number", node.start_mark) from None


_Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)
_Loader.add_constructor("tag:yaml.org,2002:float", _construct_float)


def parse(text: str) -> Any:
    """The value that a piece of YAML stands for.

    Raises:
        ValueError: it is not YAML; the message is one line.
    """
    return _parse(text)[0]


def _parse(text: str) -> tuple[Any, dict[tuple[str, ...], int]]:
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            lines: dict[tuple[str, ...], int] = {}
            _check_size(node, 0, [100_000])
            _collect_lines(node, (), lines)
            return (None if node is None else loader.construct_document(node)), lines
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        where = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise ValueError(f"{where}{error.problem or error.context}") from None
    except (yaml.YAMLError, RecursionError, UnicodeError) as error:
        raise ValueError(str(error).splitlines()[0] if str(error) else type(error).__name__) from None


def _check_size(node: Any, depth: int, left: list[int]) -> None:
    """Refuse what aliases blow up: a value within itself, or one that is repeated without end."""
    left[0] -= 1
    if depth > 50 or left[0] < 0:
        raise ValueError(f"line {node.start_mark.line + 1}: too deep or too large")
    if isinstance(node, yaml.CollectionNode):
        for child in node.value:
            for item in child if isinstance(child, tuple) else (child,):
                _check_size(item, depth + 1, left)


def _collect_lines(node: Any, path: tuple[str, ...], lines: dict[tuple[str, ...], int]) -> None:
    """The line of each key; a mapping that names a key twice is refused."""
    if not isinstance(node, yaml.MappingNode):
        return
    seen = set()
    for key, value in node.value:
        name, line = str(key.value), key.start_mark.line + 1
        if name in seen:
            raise ValueError(f"line {line}: the key '{name}' is there twice")
        seen.add(name)
        lines[*path, name] = line
        _collect_lines(value, (*path, name), lines)


def read(path: Path) -> tuple[dict[str, Any], dict[tuple[str, ...], int]]:
    """A YAML file that holds one mapping, and the line on which each key stands.

    Raises:
        UsageError: it cannot be read, is not YAML or is not a mapping; the message names the file.
    """
    try:
        value, lines = _parse(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise UsageError(f"{path}: {error}") from None
    if value is None:
        return {}, {}
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise UsageError(f"{path}: expected a mapping with names as keys")
    return value, lines


def dump(value: dict[str, Any]) -> str:
    """A dict of plain values as YAML, its keys in their order."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1000, default_flow_style=None)
