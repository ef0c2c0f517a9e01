"""What can be said of data of one's own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from clplat.data import text


@dataclass(kw_only=True, eq=False, repr=False)
class Options:
    """The options that all scenarios of one's own data have.

    Args:
        kind: what is to be done: tell classes, predict numbers, predict what follows in time, or predict the next
            token of a text. auto is language for texts, and classification for everything else.
        inputs: columns that are read; null takes all but target, task and time.
        target: column, or columns, to be predicted; null takes the one called label, target, class or y. For
            forecasting null takes all inputs.
        task: column that says which experience a row belongs to; experiences come in the natural order of its values.
        time: column that rows are ordered by, a number or a date. The test share is then what comes last.
        classes: names of all classes, in the order of their numbers; null finds them and sorts them.
        setting: class-, task- or domain-incremental; data deals a pool out at random (see experiences). auto is domain
            where all experiences have the same classes, else class.
        experiences: cut all samples into so many experiences: into periods where time is given, else by classes, or
            at random with setting=data. null takes the experiences that the data has.
        order: of the classes that a pool is cut by: as they are numbered, or shuffled by the seed.
        test: share of each experience that is kept for testing where there is no test part: of each class alike, or
            what comes last in time.
        validation: share that is kept for the validation stream where there is no valid part.
        standardise: scale numbers to mean 0 and variance 1, by the training samples of the first experience alone.
        window: steps that a forecast sees.
        horizon: steps that are forecast.
        stride: steps from one window to the next.
        length: tokens in a window of text.
        level: what a token is.
        vocabulary: number of different tokens, for words.
        size: height and width that images are scaled to; null leaves them, and they must have the same.
        channels: 3 for colours, 1 for grey.
        max_bytes: images that need no more memory are held; larger collections are loaded at use.
    """

    kind: Literal["auto", "classification", "regression", "forecasting", "language"] = "auto"
    inputs: list[str] | None = None
    target: list[str] | str | None = None
    task: str | None = None
    time: str | None = None
    classes: list[str] | None = None
    setting: Literal["auto", "class", "task", "domain", "data"] = "auto"
    experiences: int | None = None
    order: Literal["natural", "random"] = "natural"
    test: float = 0.2
    validation: float = 0.0
    standardise: bool = True
    window: int = 24
    horizon: int = 1
    stride: int = 1
    length: int = 64
    level: Literal["byte", "word"] = "byte"
    vocabulary: int = 10000
    size: list[int] | None = None
    channels: Literal[1, 3] = 3
    max_bytes: int = 1073741824

    @property
    def targets(self) -> list[str] | None:
        """The columns to be predicted, where any are named."""
        return [self.target] if isinstance(self.target, str) else self.target

    def problems(self, kind: str) -> list[str]:
        """What is wrong with the options for a kind of data."""
        found = text.check(length=self.length, vocabulary=self.vocabulary, test=self.test, validation=self.validation)
        least = {"window": self.window, "horizon": self.horizon, "stride": self.stride}
        found += [f"scenario.{name}={value}: at least 1 is needed" for name, value in least.items() if value < 1]
        if self.experiences is not None and self.experiences < 1:
            found.append(f"scenario.experiences={self.experiences}: at least 1 is needed")
        if self.experiences is not None and self.task is not None:
            found.append("scenario.experiences and scenario.task: either cut the data anew, or by a column")
        if self.size is not None and (len(self.size) != 2 or min(self.size) < 1):
            found.append("scenario.size: a height and a width are needed, e.g. [32,32]")
        if kind == "language" and self.setting not in ("auto", "domain"):
            found.append(f"scenario.setting={self.setting}: language is domain-incremental")
        if kind in ("regression", "forecasting") and self.setting == "class":
            found.append(f"scenario.setting=class: {kind} has no classes; choose domain or task")
        if self.setting == "data" and (kind == "forecasting" or self.time is not None):
            found.append("scenario.setting=data deals rows out at random, which have an order in time here")
        for name in ("inputs", "target", "classes"):
            given = getattr(self, name)
            if isinstance(given, list) and len(set(given)) < len(given):
                found.append(f"scenario.{name}: something is there twice")
            if given == []:
                found.append(f"scenario.{name}: at least one is needed, or null")
        return found
