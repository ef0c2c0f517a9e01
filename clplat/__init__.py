"""clplat: continual learning on sequences.

Importing this costs no torch: names come in when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from clplat import figures
    from clplat.api import fit
    from clplat.backbones.base import Backbone
    from clplat.batch import Batch, Part
    from clplat.learner import Learner, Output
    from clplat.memory import ReservoirMemory
    from clplat.notebook import Runs, load_runs
    from clplat.scenario import Experience, Scenario, Spec, TensorData
    from clplat.settings import EvalSettings, LearnerSettings, TrainerSettings
    from clplat.strategy import Combined, Phase, Strategy

_HOMES = {
    "clplat.api": ("fit",),
    "clplat.backbones.base": ("Backbone",),
    "clplat.batch": ("Batch", "Part"),
    "clplat.learner": ("Learner", "Output"),
    "clplat.memory": ("ReservoirMemory",),
    "clplat.notebook": ("Runs", "load_runs"),
    "clplat.scenario": ("Experience", "Scenario", "Spec", "TensorData"),
    "clplat.settings": ("EvalSettings", "LearnerSettings", "TrainerSettings"),
    "clplat.strategy": ("Combined", "Phase", "Strategy"),
}
_HOME = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "Backbone",
    "Batch",
    "Combined",
    "EvalSettings",
    "Experience",
    "Learner",
    "LearnerSettings",
    "Output",
    "Part",
    "Phase",
    "ReservoirMemory",
    "Runs",
    "Scenario",
    "Spec",
    "Strategy",
    "TensorData",
    "TrainerSettings",
    "__version__",
    "figures",
    "fit",
    "load_runs",
]


def __getattr__(name: str) -> Any:
    if name == "figures":
        return importlib.import_module("clplat.figures")
    if name not in _HOME:
        raise AttributeError(f"module 'clplat' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
