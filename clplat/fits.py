"""Which strategies fit a scenario and a backbone, and which of these fit each other, told without building any of them
where possible, and then without torch.

What a strategy needs is read from the source of its class. What a scenario or a backbone gives stands in
``_info_.gives`` (and ``_info_.settings``) of its entry; one that does not say so (a class of one's own) is built
and asked, which takes longer. ``build.pairing`` has the last word when a run is built; a test holds the two together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache

from clplat import registry, signature
from clplat.errors import MissingError
from clplat.registry import Entry

# What a backbone gives; all other words are the scenario's.
BACKBONE_WORDS = ("hidden-layers", "prompts", "prefixes", "attention")


@dataclass(frozen=True)
class Verdict:
    """Whether something fits, and under which condition or why not; None where it cannot be said here."""

    name: str
    fits: bool | None
    remark: str


def verdicts(scenario: str | None, backbone: str | None) -> list[Verdict]:
    """One for each strategy of the registry.

    Args:
        scenario, backbone: by name; None where any will do.
    """
    settings = None if scenario is None else given(registry.find("scenario", scenario))
    network = None if backbone is None else given_by_backbone(registry.find("backbone", backbone))
    return [_verdict(entry, settings, network) for entry in registry.entries("strategy").values()]


def backbones(scenario: str) -> list[Verdict]:
    """One for each backbone of the registry: whether it can read a scenario, and answer it."""
    entry = registry.find("scenario", scenario)
    return [replace(_reads(backbone, entry), name=backbone.name) for backbone in registry.entries("backbone").values()]


def scenarios(backbone: str) -> list[Verdict]:
    """One for each scenario of the registry: whether a backbone can read it, and answer it."""
    entry = registry.find("backbone", backbone)
    return [replace(_reads(entry, scenario), name=scenario.name) for scenario in registry.entries("scenario").values()]


def _reads(backbone: Entry, scenario: Entry) -> Verdict:
    """Any backbone reads a sequence of vectors, but one that takes the shape of a sample reads whole images."""
    words = set().union(*given(scenario).values())
    causal, sequential = (
        signature.class_value(backbone.target, name) is not False for name in ("causal", "sequential")
    )
    if not signature.class_value(backbone.target, "takes_shape"):
        if "steps" in words and not sequential:
            return Verdict("", True, "sees each step by itself, nothing of those before")
        if "steps" in words and not causal:
            return Verdict("", True, "is not causal: it sees later steps, where the answer may stand")
        return Verdict("", True, "")
    if "tokens" in words:
        return Verdict("", False, "reads images, and these are tokens")
    if "steps" in words:
        return Verdict("", False, "answers once for an image, and an answer is asked at each step")
    shape = _shape(scenario)
    if shape is None:
        return Verdict("", None, "reads images; what these samples are shows when their data are there")
    if len(shape) not in (2, 3):
        return Verdict("", False, f"reads images, and samples have shape {shape}")
    return Verdict("", True, "")


@cache
def _shape(scenario: Entry) -> tuple[int, ...] | None:
    """The shape of a sample, for which a scenario must be built; None where that needs options or data."""
    if any(option.required for option in scenario.options.values()):
        return None
    try:
        shape: tuple[int, ...] = scenario.build(0).spec.shape
    except MissingError:
        return None
    return shape


def given(scenario: Entry) -> dict[str, set[str]]:
    """What a scenario gives in each of its settings, the default one first."""
    gives, settings = scenario.info.get("gives"), scenario.info.get("settings")
    if not isinstance(gives, list) or not isinstance(settings, list):
        from clplat.scenario import PER_STEP

        spec = scenario.build(0).spec
        gives = [*(["classes"] if spec.target == "class" else []), *(["tokens"] if spec.vocabulary else [])]
        gives += ["steps"] if spec.target in PER_STEP else []
        gives += ["boundaries"] if spec.boundaries else []
        settings = [spec.setting]
    elif "setting" in scenario.options:
        first = scenario.options["setting"].default
        settings = sorted(settings, key=lambda setting: setting != first)
    return {str(setting): _words(str(setting), set(gives)) for setting in settings}


def _words(setting: str, gives: set[str]) -> set[str]:
    labels = {"task-labels", "task-heads"} if setting == "task" else set()
    return gives | labels | ({"new-classes"} if setting == "class" and "classes" in gives else set())


def given_by_backbone(backbone: Entry) -> set[str]:
    """What a backbone gives: as its entry says, or else as one that is built says."""
    gives = backbone.info.get("gives")
    if not isinstance(gives, list):
        from clplat.build import backbone_maker

        gives = sorted(backbone_maker(backbone)(8, (8, 8)).gives())
    return set(map(str, gives))


def _verdict(entry: Entry, settings: Mapping[str, set[str]] | None, network: set[str] | None) -> Verdict:
    needs = set(signature.class_value(entry.target, "needs") or ())
    hopeless = set(signature.class_value(entry.target, "hopeless") or ())
    missing = set() if network is None else (needs & set(BACKBONE_WORDS)) - network
    if missing:
        return Verdict(entry.name, False, f"needs {', '.join(sorted(missing))}, which the backbone does not give")
    needs -= set(BACKBONE_WORDS)
    if settings is None:
        return Verdict(entry.name, True, f"needs {', '.join(sorted(needs))}" if needs else "")
    possible = [setting for setting, words in settings.items() if needs <= words]
    if not possible:
        missing = min((needs - words for words in settings.values()), key=len)
        return Verdict(entry.name, False, f"needs {', '.join(sorted(missing))}, which the scenario does not give")
    default = next(iter(settings))
    chosen = possible[0]
    remark = "" if chosen == default else f"with scenario.setting={chosen}"
    if chosen in hopeless:
        remark = f"{remark}; known to forget nearly everything here when alone".removeprefix("; ")
    return Verdict(entry.name, True, remark)
