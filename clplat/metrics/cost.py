"""What a run costs: numbers of parameters, bytes that are kept, memory, time and operations."""

from __future__ import annotations

import resource
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from clplat.quadratic import Quadratic
from clplat.state import Remembering, stored_bytes

if TYPE_CHECKING:
    from clplat.learner import Learner

TRAINED = "parameters"  # kind of a strategy's own parameters: prompts, hypernetworks, generators
OTHER = "other"


def sizes(learner: Learner, state: Mapping[str, Any]) -> dict[str, Any]:
    """What a learner consists of at its end, for ``results.json``.

    Args:
        state: its whole state dict.
    """
    kept = {name: value for name, value in state.items() if name.startswith("strategy.")}
    return {
        "parameters": sum(p.numel() for p in learner.parameters()),
        "trainable_parameters": sum(p.numel() for p in _trainable(learner)),
        "stored_bytes": stored_bytes(kept),
        "stored_bytes_by_kind": by_kind(learner.strategy, kept),
        **_of_backbone(learner),
        **({"importance": importance} if (importance := by_parameter(learner.strategy, kept)) else {}),
    }


def _of_backbone(learner: Learner) -> dict[str, int]:
    """The numbers in one sample's state at the end of a sequence, where the backbone can say."""
    T, _ = learner.encoder.shape
    try:
        return {"state_size": learner.backbone.state_size(T)}
    except TypeError:  # it does not define one
        return {}


def by_parameter(strategy: nn.Module, kept: Mapping[str, Any]) -> dict[str, float]:
    """The sum of the importances by which each parameter is held, over all pulls of a strategy; empty without any.

    Args:
        kept: as for :func:`by_kind`.
    """
    found: dict[str, float] = {}
    for place, module in strategy.named_modules(prefix="strategy"):
        start = f"{place}.importance:"
        for name, value in kept.items():
            if isinstance(module, Quadratic) and name.startswith(start):
                parameter = name[len(start) :].replace("/", ".")
                found[parameter] = found.get(parameter, 0.0) + float(value.double().sum())
    return found


def _trainable(learner: Learner) -> Iterator[nn.Parameter]:
    """What the optimiser of the last experience's main phase could move."""
    chosen = learner.strategy.trainable(learner)
    kept = None if chosen is None else {id(p) for p in chosen}
    return (p for p in learner.parameters() if p.requires_grad and (kept is None or id(p) in kept))


def by_kind(strategy: nn.Module, kept: Mapping[str, Any]) -> dict[str, int]:
    """Bytes of what a strategy keeps, by kind: as the modules that remember it declare (``Remembering.kinds``).

    Args:
        kept: its part of the state dict, names beginning with ``strategy.``.
    """
    modules = dict(strategy.named_modules(prefix="strategy"))
    parameters = {name for name, _ in strategy.named_parameters(prefix="strategy")}
    found: dict[str, int] = {}
    for name, value in kept.items():
        owner, _, own_name = name.rpartition(".")
        module = modules.get(owner)
        kind = module.kind_of(own_name) if isinstance(module, Remembering) else None
        kind = TRAINED if name in parameters else kind or OTHER
        if size := stored_bytes(value):
            found[kind] = found.get(kind, 0) + size
    return dict(sorted(found.items()))


def peak_bytes(device: torch.device) -> int:
    """The most memory that this process has held: on its GPU, or at all."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
