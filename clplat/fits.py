"""Which strategies fit a scenario and a backbone, told without building any of them, and where possible without torch.

What a strategy needs is read from the source of its class. What a scenario or a backbone gives stands in
``_info_.gives`` (and ``_info_.settings``) of its entry; one that does not say so (a class of one's own) is built
and asked, which takes longer. ``build.pairing`` has the last word when a run is built; a test holds the two together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from clplat import registry, signature
from clplat.registry import Entry

# What a backbone gives; all other words are the scenario's.
BACKBONE_WORDS = ("hidden-layers", "prompts", "prefixes", "attention")


@dataclass(frozen=True)
class Verdict:
    """Whether a strategy fits, and under which condition or why not."""

    name: str
    fits: bool
    remark: str


def verdicts(scenario: str | None, backbone: str | None) -> list[Verdict]:
    """One for each strategy of the registry.

    Args:
        scenario, backbone: by name; None where any will do.
    """
    settings = None if scenario is None else given(registry.find("scenario", scenario))
    network = None if backbone is None else given_by_backbone(registry.find("backbone", backbone))
    return [_verdict(entry, settings, network) for entry in registry.entries("strategy").values()]


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
