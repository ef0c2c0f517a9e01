"""The small tools round states, and options that cannot be."""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch import Tensor

from clplat import registry
from clplat.backbones.base import in_reference_form, map_state, reference_form, select_rows, state_tensors
from clplat.errors import UsageError


def test_states_are_mapped_and_listed() -> None:
    a, b = torch.ones(2, 3), torch.zeros(2)
    state = [{"a": a, "b": (b,)}, {}]
    doubled = map_state(lambda tensor: tensor + 1, state)
    assert isinstance(doubled[0]["b"], tuple)
    assert doubled[1] == {}
    assert [tensor.tolist() for tensor in state_tensors(doubled)] == [(a + 1).tolist(), (b + 1).tolist()]
    assert state_tensors(None) == []
    assert map_state(Tensor.detach, None) is None
    assert torch.equal(map_state(torch.add, {"a": a}, {"a": a})["a"], 2 * a)


def test_rows_are_selected() -> None:
    chosen = select_rows(torch.tensor([True, False]), {"x": torch.ones(2, 3)}, {"x": torch.zeros(2, 3)})
    assert chosen["x"].tolist() == [[1, 1, 1], [0, 0, 0]]


def test_reference_form_ends_with_its_block() -> None:
    assert not in_reference_form()
    with contextlib.suppress(KeyError), reference_form():
        assert in_reference_form()
        raise KeyError
    assert not in_reference_form()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("mlp", {"layers": 0}, "at least one layer"),
        ("mlp", {"dropout": 1.0}, "below 1"),
        ("transformer", {"dim": 10, "heads": 4}, "multiple of heads"),
        ("transformer", {"dim": 12, "heads": 4}, "even multiple"),
        ("transformer", {"layers": 0}, "at least one layer"),
        ("transformer", {"ratio": 0.0}, "no width"),
        ("linear-transformer", {"heads": 0}, "multiple of heads"),
        ("linear-transformer", {"chunk": 0}, "chunk"),
        ("delta-net", {"dim": 10, "heads": 4}, "multiple of heads"),
        ("delta-net", {"chunk": 0}, "chunk"),
        ("gru", {"layers": 0}, "at least one layer"),
        ("lstm", {"hidden": 0}, "at least 1"),
        ("resnet18", {"width": 0}, "at least 1"),
        ("resnet18", {"norm": "layer"}, "norm"),
    ],
)
def test_impossible_options_are_refused(name: str, options: dict[str, float], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        registry.find("backbone", name).build(5, **options)
