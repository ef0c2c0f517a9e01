"""Options: named, typed values that a user may set, and the conversion of what was written into what was meant."""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Union


@dataclass(frozen=True)
class Option:
    """One keyword-only parameter of a registered class or function.

    Args:
        name: the parameter's name.
        type: a typing object: ``int``, ``float | None``, ``Literal["a", "b"]``, ``list[int]``, ...
        default: its value when nobody sets it; None for a required option.
        choices: the values of a ``Literal`` type, else None.
        doc: one line from the ``Args:`` section of the docstring.
        required: there is no default.
    """

    name: str
    type: Any
    default: Any
    choices: tuple[Any, ...] | None
    doc: str
    required: bool


class Text(str):
    """A value as it was typed on the command line: what YAML makes of it, kept together with the text itself.

    An option of type str takes the text (``trainer.precision=32``, ``run.dir=007``), all others take ``value``.
    """

    value: Any

    def __new__(cls, text: str, value: Any) -> Text:
        self = super().__new__(cls, value if isinstance(value, str) else text)
        self.value = value
        return self


def choices(type_: Any) -> tuple[Any, ...] | None:
    """The values of a ``Literal`` (or of ``Literal | None``), else None."""
    for part in (type_, *typing.get_args(type_)) if is_union(type_) else (type_,):
        if typing.get_origin(part) is Literal:
            return typing.get_args(part)
    return None


def is_union(type_: Any) -> bool:
    """Whether a typing object is ``X | Y`` or ``Optional[X]``."""
    return typing.get_origin(type_) in (Union, types.UnionType)


def spell(type_: Any) -> str:
    """A type as one writes it: ``float | null``, ``list[int]``, ``a | b | c``."""
    if type_ is type(None):
        return "null"
    if is_union(type_):
        return " | ".join(spell(part) for part in typing.get_args(type_))
    origin, args = typing.get_origin(type_), typing.get_args(type_)
    if origin is Literal:
        return " | ".join(str(value) for value in args)
    if origin is None:
        return getattr(type_, "__name__", str(type_))
    return f"{origin.__name__}[{', '.join('...' if a is ... else spell(a) for a in args)}]"


def nesting(type_: Any) -> int:
    """How many keys lead into a value of a type, of several its first: 0 for a plain value, 1 for ``dict[str, int]``,
    2 for a dict of these."""
    args = typing.get_args(type_)
    if is_union(type_):
        return nesting(args[0])
    return 1 + nesting(args[1]) if typing.get_origin(type_) is dict else 0


def shown(value: Any) -> str:
    """A value as one would write it in YAML or on the command line."""
    value = value.value if isinstance(value, Text) else value
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(shown(v) for v in value)}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{k}: {shown(v)}' for k, v in value.items())}}}"
    text = str(value)
    return text if len(text) <= 80 else text[:77] + "..."


def convert(value: Any, type_: Any) -> Any:
    """``value`` as an instance of ``type_``.

    Whole numbers become floats and integral floats (``1e3``) become ints where that is asked; lists become tuples. Text
    is never read as a number, nor a number as a truth value.

    Raises:
        ValueError: it cannot be one; the message says what was expected.
    """
    if is_union(type_):
        return _convert_union(value, typing.get_args(type_))
    origin, args = typing.get_origin(type_), typing.get_args(type_)
    if origin is Literal:
        return _convert_literal(value, args)
    if type_ is str and isinstance(value, Text) and value.value is not None:
        return str.__str__(value)
    plain = value.value if isinstance(value, Text) else value
    if origin in (list, tuple) and isinstance(plain, (list, tuple)):
        return _convert_sequence(plain, origin, args)
    if origin is dict and isinstance(plain, Mapping):
        return {str(key): convert(item, args[1]) for key, item in plain.items()}
    if type_ is type(None) and plain is None:
        return None
    if type_ is bool and isinstance(plain, bool):
        return plain
    if type_ is str and isinstance(plain, (str, int)) and not isinstance(plain, bool):
        return str(plain)
    if type_ in (int, float) and isinstance(plain, (int, float)) and not isinstance(plain, bool):
        number = _convert_number(plain, type_)
        if number is not None:
            return number
    raise ValueError(f"expected {_EXPECTED.get(type_, spell(type_))}, got {shown(value)!r}")


_EXPECTED = {int: "a whole number", float: "a number", bool: "true or false", str: "text (in quotes)"}


def _convert_number(value: int | float, type_: type) -> int | float | None:
    if math.isnan(value):
        return None
    if type_ is int:
        return int(value) if math.isfinite(value) and value == int(value) else None
    try:
        return float(value)
    except OverflowError:
        return None


def _convert_union(value: Any, members: tuple[Any, ...]) -> Any:
    plain = value.value if isinstance(value, Text) else value
    if type(None) in members and plain is None:
        return None
    # The member that is exactly the value's type goes first, so that int | float leaves 3 an int.
    for member in sorted(members, key=lambda member: member is not type(plain)):
        try:
            return convert(value, member)
        except ValueError:
            continue
    raise ValueError(f"expected {' | '.join(_EXPECTED.get(m, spell(m)) for m in members)}, got {shown(value)!r}")


def _convert_literal(value: Any, members: tuple[Any, ...]) -> Any:
    plain = value.value if isinstance(value, Text) else value
    for member in members:
        if type(member) is type(plain) and member == plain:
            return member
    for member in members:  # 32 for "32", and true for "true"
        if isinstance(member, str) and member in (str(value), shown(value)):
            return member
    from clplat.errors import suggestion

    raise ValueError(f"'{shown(value)}' is not possible.{suggestion(shown(value), map(shown, members))}")


def _convert_sequence(values: list[Any] | tuple[Any, ...], origin: type, args: tuple[Any, ...]) -> Any:
    if origin is list:
        return [convert(value, args[0]) for value in values]
    if args[-1] is ...:
        return tuple(convert(value, args[0]) for value in values)
    if len(values) != len(args):
        raise ValueError(f"expected {len(args)} values, got {len(values)}: {shown(values)}")
    return tuple(convert(value, arg) for value, arg in zip(values, args, strict=True))


def plain(value: Any) -> Any:
    """``value`` with tuples made lists: only what YAML and JSON know."""
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    return value
