"""Blocks of several kinds in one stack."""

from __future__ import annotations

import re
from itertools import cycle, islice
from typing import Any

from clplat import registry
from clplat.backbones.base import require
from clplat.backbones.block import Stack
from clplat.errors import UsageError


class Hybrid(Stack):
    """Mixers of several backbones by layer, e.g. three of linear attention to one of softmax attention.

    (B, T, input_size) -> (B, T, dim). Block n has the mixer of the n-th name of the pattern, which is gone through
    again and again; the state is a list of their states. A few layers of softmax attention give linear-time layers the
    recall that a state of fixed size lacks. The default follows the recommendation of Wang et al. 2025 (arXiv
    2507.06457, abstract): HGRN-2 or gated DeltaNet, and 3 to 6 linear layers to each of softmax attention.

    Args:
        pattern: names of backbones that are stacks of blocks, each with how often it comes in a row if more than once,
            as in "gated-delta-net x3"; their options besides dim, heads and layers are at their defaults.
        dim: width of the residual stream.
        heads: heads of each mixer that has heads.
        layers: number of blocks.
    """

    def __init__(
        self,
        input_size: int,
        *,
        pattern: list[str] = ["gated-delta-net x3", "transformer"],  # noqa: B006 - read only, and read from source
        dim: int = 64,
        heads: int = 4,
        layers: int = 4,
        **block: Any,
    ) -> None:
        names = list(islice(cycle(expand(pattern)), layers))
        stacks = [_stack(name, dim, heads) for name in names]
        super().__init__(input_size, lambda dim, number: stacks[number].mixers[0], dim=dim, layers=layers, **block)
        self.causal = all(stack.causal for stack in stacks)


def expand(pattern: list[str]) -> list[str]:
    """``["a x3", "b"]`` -> ``["a", "a", "a", "b"]``.

    Raises:
        UsageError: nothing in it, or an item is not a name with or without a count.
    """
    names: list[str] = []
    for item in pattern:
        match = re.fullmatch(r"([A-Za-z0-9][\w-]*)(?:\s+x\s?([1-9]\d*))?", item.strip())
        require(match is not None, f"'{item}' in pattern is not of the form NAME or NAME xCOUNT")
        assert match is not None
        names += [match[1]] * int(match[2] or 1)
    require(bool(names), "pattern must name one backbone at least")
    return names


def _stack(name: str, dim: int, heads: int) -> Stack:
    """One block of the backbone of that name."""
    entry = registry.find("backbone", name)
    kind = entry.load()
    if not (isinstance(kind, type) and issubclass(kind, Stack)) or issubclass(kind, Hybrid):
        raise UsageError(f"'{name}' in pattern has no mixer to take: a backbone of alike blocks is needed")
    options = {"dim": dim, "layers": 1, **({"heads": heads} if "heads" in entry.options else {})}
    stack: Stack = entry.build(dim, **options)
    return stack
