"""What is kept, by kind, against what strategies are known to keep."""

from __future__ import annotations

from typing import Any

import pytest

from clplat.memory import by_experience
from clplat.metrics.cost import sizes
from tests import cases

PARAMETERS = 8 * 8 * 12 + 12 + 12 * 12 + 12 + 12 * 10 + 10
IMAGE = 64 * 4 + 3 * 8  # pixels; label, task label and experience


@pytest.mark.parametrize(
    ("strategy", "kinds"),
    [
        ("naive", {}),
        ("er", {"memory": 20 * IMAGE}),
        ("gem", {"memory": None}),
        ("lwf", {"teacher": 4 * PARAMETERS}),
        ("si", {"importances": None}),
        ("ewc+er", {"importances": None, "memory": 20 * IMAGE}),
        ("hypernet", {"parameters": None, "teacher": None}),
    ],
)
def test_bytes_by_kind(strategy: str, kinds: dict[str, int | None]) -> None:
    one = cases.built(strategy)
    results = cases.run(one)
    found: dict[str, Any] = results["stored_bytes_by_kind"]
    assert sum(found.values()) == results["stored_bytes"]
    assert kinds.keys() <= found.keys()
    for kind, size in kinds.items():
        assert found[kind] == size or size is None
    assert all(found.values())
    again = sizes(one.learner, one.learner.state_dict())
    assert again == {key: results[key] for key in again}


def test_what_cannot_learn_is_not_trainable() -> None:
    one = cases.built("naive")
    one.learner.backbone.requires_grad_(False)
    found = sizes(one.learner, one.learner.state_dict())
    assert found["parameters"] == PARAMETERS
    assert found["trainable_parameters"] == 12 * 10 + 10


def test_what_holds_weights_and_what_the_memory_keeps() -> None:
    one = cases.built("si+er")
    results = cases.run(one)
    penalty = one.learner.strategy.parts["si"].penalty
    assert results["importance"] == {name: float(a.double().sum()) for name, a in penalty.importance.items()}
    assert sum(results["importance"].values()) > 0
    kept = by_experience(one.learner.strategy)
    assert sum(kept.values()) == 20
    assert list(kept) == sorted(kept, key=int)
    assert by_experience(cases.built("naive").learner.strategy) == {}
