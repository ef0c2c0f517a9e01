"""How large a backbone is: a size by name, or a number of parameters that its width is found for.

Networks are compared fairly at equal depth and number of parameters, not at equal width. So a size is a number of
blocks and of parameters, and the width is found by building the network. Resolving a configuration needs no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

from clplat.errors import UsageError

if TYPE_CHECKING:
    from clplat.backbones.base import Backbone
    from clplat.registry import Entry

SIZES = {"tiny": (2, 50_000), "small": (4, 500_000), "base": (8, 5_000_000)}  # blocks, parameters
WIDTHS = ("dim", "hidden", "width")  # the option that is a network's width: the first that it has


@dataclass(frozen=True, kw_only=True)
class Sizing:
    """Options of every backbone.

    Args:
        size: 2 blocks and 50,000 parameters (tiny), 4 and 500,000 (small), 8 and 5,000,000 (base), or as near below as
            the width allows; null: as the other options say.
        match_params: the width is the largest with which the backbone has no more parameters than this.
    """

    size: Literal["tiny", "small", "base"] | None = None
    match_params: int | None = None


def width_of(entry: Entry) -> str:
    """The option of a backbone that is its width.

    Raises:
        UsageError: it has none.
    """
    for name in WIDTHS:
        if name in entry.options:
            return name
    raise UsageError(f"backbone '{entry.name}' has no width that could be chosen: leave size and match_params out")


def settle(entry: Entry, values: dict[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a resolved configuration without the width, where it is to be found, and with a size's depth.

    Args:
        values: of all options.
        given: those that somebody set.

    Raises:
        UsageError: a width is given beside a size, or the backbone has none.
    """
    if values.get("size") is None and values.get("match_params") is None:
        return values
    width = width_of(entry)
    if given.get(width) is not None:
        which = "size" if values.get("match_params") is None else "match_params"
        raise UsageError(f"backbone.{width} and backbone.{which} exclude each other: {which} finds the {width}")
    if values["match_params"] is not None and values["match_params"] < 1:
        raise UsageError(f"backbone.match_params={values['match_params']}: at least 1 is needed")
    if values["size"] is not None and "layers" in values and given.get("layers") is None:
        values["layers"] = SIZES[values["size"]][0]
    return {name: value for name, value in values.items() if name != width}


def sized(entry: Entry, options: Mapping[str, Any], build: Callable[[Mapping[str, Any]], Backbone]) -> Backbone:
    """A backbone of the size that its options ask for.

    Args:
        options: of the entry, with ``size`` or ``match_params`` or neither.
        build: makes it from the entry's own options.

    Raises:
        UsageError: even the narrowest has more parameters.
    """
    common = {field.name for field in fields(Sizing)}
    own = {name: value for name, value in options.items() if name not in common}
    wanted = options.get("match_params") or (SIZES[options["size"]][1] if options.get("size") else None)
    if wanted is None:
        return build(own)
    import torch

    name = width_of(entry)
    step = 2 * int(own.get("heads", entry.defaults.get("heads", 0))) or int(entry.info.get("width_step", 1))

    def count(width: int) -> int:
        with torch.random.fork_rng(devices=[]):
            return sum(parameter.numel() for parameter in build({**own, name: width}).parameters())

    low, high = step, 2 * step
    if (least := count(low)) > wanted:
        raise UsageError(
            f"backbone '{entry.name}' has {least} parameters at its least {name} {low}: more than {wanted}"
        )
    while count(high) <= wanted:
        low, high = high, 2 * high
    while high - low > step:
        middle = (low + high) // (2 * step) * step
        low, high = (middle, high) if count(middle) <= wanted else (low, middle)
    return build({**own, name: low})
