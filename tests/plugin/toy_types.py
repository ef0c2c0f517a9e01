"""Imported by the toy plugin: an alias, a constant and a base class."""

from __future__ import annotations

from typing import Literal

Variant = Literal["exact", "sampled", "empirical"]
SIZE = 200


class Base:
    """A memory.

    Args:
        size: samples kept.
        policy: which go.
    """

    def __init__(self, *, size: int = SIZE, policy: Literal["reservoir", "ring"] = "reservoir") -> None:
        self.size, self.policy = size, policy
