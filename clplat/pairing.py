"""What a strategy or a probe needs, what scenario, head and backbone give, and what to choose where it is missing."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from clplat import registry
from clplat.backbones.base import Backbone
from clplat.fits import BACKBONE_WORDS, given_by_backbone
from clplat.heads.head import PerTaskHead
from clplat.scenario import PER_STEP, Spec

_REMEDIES = {
    "task-labels": "choose a task-incremental stream, e.g. --scenario split-digits scenario.setting=task",
    "boundaries": "choose a stream with experience boundaries",
    "classes": "choose a classification scenario",
    "new-classes": "choose a class-incremental stream, e.g. --scenario split-digits scenario.setting=class",
    "prompts": "choose a backbone that reads a sequence, e.g. --backbone transformer",
    "prefixes": "choose a backbone of attention layers, e.g. --backbone transformer",
    "task-heads": "leave learner.head=auto, or set learner.head=per-task, on a task-incremental stream",
    "tokens": "choose a stream of tokens, e.g. --scenario mqar-memorize",
    "steps": "choose a stream with an answer at each step, e.g. --scenario permuted-copy",
    "hidden-layers": "choose a backbone with feed-forward layers, e.g. --backbone mlp or transformer",
}


def given(spec: Spec, *, head: nn.Module | None = None, backbone: Backbone | None = None) -> set[str]:
    """The words that hold.

    Args:
        head: the learner's; None takes the one that suits the scenario.
        backbone: the learner's; None takes one that gives everything.
    """
    found = {
        "task-labels": spec.setting == "task",
        "boundaries": spec.boundaries,
        "classes": spec.target == "class",
        "new-classes": spec.new_classes,
        "task-heads": isinstance(head, PerTaskHead) if head is not None else spec.setting == "task",
        "tokens": spec.vocabulary is not None,
        "steps": spec.target in PER_STEP,
    }
    return {word for word, holds in found.items() if holds} | (
        set(BACKBONE_WORDS) if backbone is None else backbone.gives()
    )


def missing(name: str, needs: Iterable[str], gives: set[str]) -> list[str]:
    """One line for each need that is not met, with what would meet it."""
    problems = []
    for need in needs:
        if need not in gives:
            giver = "backbone" if need in BACKBONE_WORDS else "head" if need == "task-heads" else "scenario"
            remedy = _attending() if need == "attention" else _REMEDIES.get(need, "")
            problems.append(f"{name} needs {need}, which this {giver} does not give: {remedy}")
    return problems


def _attending() -> str:
    """The backbones that tell how they weigh steps, by name."""
    entries = registry.entries("backbone").items()
    return f"choose --backbone {', '.join(name for name, e in entries if 'attention' in given_by_backbone(e))}"
