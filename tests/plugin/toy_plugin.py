"""Entries of a third party, for the tests: no torch, every kind of option."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from toy_types import SIZE, Base, Variant


class Penalty:
    """Pulls weights back (Nobody 2000).

    Longer text that is not part of the summary.

    Args:
        importance: weight of the penalty,
            which may be large.
        fisher (str): which one.
        decay: forgetting rate; null for none.
        layers: indices of layers.
        betas: two decays.
        weights: weight of each name.

    Raises:
        nothing: this is not an option.
    """

    def __init__(
        self,
        *,
        importance: float = 100.0,
        fisher: Variant = "exact",
        online: bool = False,
        decay: float | None = None,
        layers: list[int] = [0, 1],  # noqa: B006
        betas: tuple[float, float] = (0.9, 0.999),
        weights: dict[str, float] = {},  # noqa: B006
        label: str = "plain",
    ) -> None:
        self.given = {key: value for key, value in locals().items() if key != "self"}


class Memory(Base):
    """Keeps samples. Its options are its base's.

    Args:
        size: samples kept here.
    """


class Narrow(Base):
    """Fixes one option of its base and adds one.

    Args:
        extra: added.
    """

    def __init__(self, *, extra: int = 3, **options: object) -> None:
        super().__init__(policy="ring", **options)


class Demanding:
    """Has an option without default."""

    def __init__(self, *, path: str, size: int = SIZE) -> None:
        self.path, self.size = path, size


class Net:
    """A network that is not one."""

    def __init__(self, input_size: int, *, width: int = 8) -> None:
        self.input_size, self.width = input_size, width


def digits(*, experiences: int = 3, setting: Literal["class", "task"] = "class") -> tuple[int, str]:
    """Digits without pixels.

    Args:
        experiences: how many.
    """
    return experiences, setting


@dataclass(frozen=True)
class Record:
    """Fields are options.

    Args:
        rate: a rate.
    """

    kind: ClassVar[str] = "no option"
    rate: float = 0.5
    names: list[str] = field(default_factory=lambda: ["a", "b"])


class Untyped:
    """An option without a type."""

    def __init__(self, *, size=3) -> None:
        self.size = size


class Computed:
    """A default that only running it could tell."""

    def __init__(self, *, size: int = max(1, 2)) -> None:
        self.size = size


class Strange:
    """A type that options cannot have."""

    def __init__(self, *, items: Iterable[int] = ()) -> None:
        self.items = items
