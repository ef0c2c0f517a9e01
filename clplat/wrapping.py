"""What can be done to every scenario: options of all entries, and the wrappers that they apply.

The wrappers themselves are in :mod:`clplat.wrappers`; a scenario made of objects can be wrapped by calling them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

from clplat.errors import UsageError

if TYPE_CHECKING:
    from clplat.registry import Entry
    from clplat.scenario import Scenario


@dataclass(frozen=True, kw_only=True)
class Wrapping:
    """Options of every scenario, applied in this order to its training samples; what is tested stays as it is.

    Args:
        experience_order: of the scenario's experiences; random by the seed.
        validation: share of the training samples of each class that becomes the validation stream.
        share: part of the training samples that is used, of each class alike.
        imbalance: how many times as many training samples the most frequent class has as the rarest; those between
            fall geometrically.
        imbalance_by: classes in an order drawn by the seed, or experiences from the first to the last.
        label_noise: share of the training labels that are replaced by others of the same experience.
        blur: no boundaries: neighbours lets a share of the samples of neighbouring experiences change places; gaussian
            gives each sample a time around its experience.
        blur_amount: the share, or the standard deviation in experiences.
        returns: experiences come back: at each visit one of those seen, with a chance that falls with the visits since
            it was last seen as a power or exponentially, is equal for all, or goes by a rank (zipf); or in cycles.
        visits: how many visits in all; needed with returns.
        introduce: when experiences are seen first: spread evenly over the visits, or all of them first.
        return_exponent: of power and zipf.
        return_offset: visits added to the lag under the power.
        return_decay: visits in which the exponential falls to 1/e.
        return_samples: at each visit all samples of the experience, or each sample at one visit only.
        online: samples in each of the small experiences that experiences are cut into, for a single pass; they have no
            boundaries.
    """

    experience_order: Literal["natural", "random", "reversed"] = "natural"
    validation: float = 0.0
    share: float = 1.0
    imbalance: float = 1.0
    imbalance_by: Literal["class", "experience"] = "class"
    label_noise: float = 0.0
    blur: Literal["none", "neighbours", "gaussian"] = "none"
    blur_amount: float = 0.2
    returns: Literal["none", "power", "exponential", "uniform", "zipf", "cyclic"] = "none"
    visits: int | None = None
    introduce: Literal["spread", "first"] = "spread"
    return_exponent: float = 1.0
    return_offset: float = 0.0
    return_decay: float = 1.0
    return_samples: Literal["all", "split"] = "all"
    online: int | None = None

    def __post_init__(self) -> None:
        problems = [
            f"scenario.{name}={getattr(self, name)}: {needed}"
            for name, good, needed in (
                ("validation", 0 <= self.validation < 1, "a share of at least 0 and less than 1 is needed"),
                ("share", 0 < self.share <= 1, "a share above 0 and up to 1 is needed"),
                ("imbalance", self.imbalance >= 1, "at least 1 is needed, which is balanced"),
                ("label_noise", 0 <= self.label_noise <= 1, "a share between 0 and 1 is needed"),
                ("blur_amount", self.blur_amount >= 0, "must not be negative"),
                ("return_exponent", self.return_exponent >= 0, "must not be negative"),
                ("return_offset", self.return_offset >= 0, "must not be negative"),
                ("return_decay", self.return_decay >= 0.01, "at least 0.01 is needed"),
                ("online", self.online is None or self.online >= 1, "at least one sample is needed"),
            )
            if not good
        ]
        if self.blur == "neighbours" and self.blur_amount > 1:
            problems.append(f"scenario.blur_amount={self.blur_amount}: a share of at most 1 is needed")
        if (self.returns == "none") != (self.visits is None):
            problems.append(f"scenario.returns={self.returns} and scenario.visits={self.visits}: set both or neither")
        if problems:
            raise UsageError(*problems)


def built(entry: Entry, options: Mapping[str, Any], seed: int) -> Scenario:
    """The scenario of an entry with its own options and those of every scenario; what is its own goes to itself."""
    own = {name: value for name, value in options.items() if name in entry.options}
    common = {field.name for field in fields(Wrapping)} - set(own)
    wrapping = Wrapping(**{name: value for name, value in options.items() if name in common})
    rest = {name: value for name, value in options.items() if name not in common}  # may hold unknown names
    return wrap(entry.build(seed, **rest), wrapping, seed)


def wrap(scenario: Scenario, options: Wrapping, seed: int) -> Scenario:
    """The scenario with all that the options ask for; the very same where they ask for nothing."""
    from clplat import recurrence, wrappers

    if options.experience_order != "natural":
        scenario = wrappers.reordered(scenario, seed, options.experience_order)
    if options.validation:
        scenario = wrappers.validated(scenario, seed, options.validation)
    if options.share < 1:
        scenario = wrappers.thinned(scenario, seed, "wrap/share", lambda i, label: options.share)
    if options.imbalance > 1:
        scenario = wrappers.imbalanced(scenario, seed, options.imbalance, options.imbalance_by)
    if options.label_noise:
        scenario = wrappers.mislabelled(scenario, seed, options.label_noise)
    if options.blur != "none":
        scenario = wrappers.blurred(scenario, seed, options.blur, options.blur_amount)
    if options.returns != "none":
        assert options.visits is not None
        order = recurrence.visits(
            len(scenario.train_stream),
            options.visits,
            options.returns,
            seed,
            exponent=options.return_exponent,
            offset=options.return_offset,
            decay=options.return_decay,
            introduce=options.introduce,
        )
        scenario = wrappers.recurring(scenario, seed, order, options.return_samples)
    if options.online is not None:
        scenario = wrappers.online(scenario, seed, options.online)
    return scenario
