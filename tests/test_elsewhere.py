"""What runs on the CPU runs on another device, to the same end: nothing is left behind, nothing is made elsewhere."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from clplat.backbones.base import state_tensors
from clplat.build import build
from clplat.config import compose
from clplat.loop import Run
from clplat.ranks import Ranks
from tests import cases
from tests.backbones.helpers import assert_close, each_entry, flags, inputs
from tests.backbones.helpers import build as network_of
from tests.elsewhere import DEVICE, Elsewhere, elsewhere, moved


def results(overrides: list[str], ranks: Ranks) -> dict[str, Any]:
    one = build(compose([*overrides, "trainer.accelerator=cpu"]), ranks)
    return Run(one.learner, one.scenario, eval_settings=one.eval_settings).execute()


def assert_same_there(overrides: list[str]) -> None:
    here = results(overrides, Ranks())
    with elsewhere():
        there = results(overrides, Ranks(device=DEVICE))
    assert torch.allclose(torch.tensor(there["matrix"]), torch.tensor(here["matrix"]), atol=1e-6)
    assert there["summary"] == pytest.approx(here["summary"], abs=1e-6)


def test_that_device_finds_what_is_left_behind() -> None:
    class Forgetful(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = torch.ones(3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.scale

    with elsewhere():
        x = torch.arange(3.0, device=DEVICE)
        assert isinstance(x, Elsewhere)
        assert torch.tensor([1.0, 2.0], device=DEVICE).tolist() == [1, 2]
        with pytest.raises(RuntimeError, match=r"on the CPU"):
            Forgetful().to(DEVICE)(x)
        with pytest.raises(RuntimeError, match="generator of the CPU"):
            torch.randn(3, generator=torch.Generator(), device=DEVICE)
        x[[0, 2]] = 7.0
        assert x.cpu().tolist() == [7, 1, 7]


@pytest.mark.parametrize("entry", each_entry())
@pytest.mark.parametrize("kind", ["plain", "reset+mask"])
def test_a_backbone_is_the_same_there(entry: Any, kind: str) -> None:
    found = []
    for place in (torch.clone, moved):
        network = network_of(entry)
        with elsewhere():
            network.to(place(torch.ones(1)).device)
            x, arguments = place(inputs()).requires_grad_(), {name: place(t) for name, t in flags(kind).items()}
            _, state = network(x, None, **arguments)
            y, after = network(x, state, **arguments)
            (gradient,) = torch.autograd.grad(y.sum(), [x])
            tensors = [y, gradient, *state_tensors(after)]
            assert {tensor.device for tensor in tensors} == {x.device}
            found.append([tensor.detach().cpu() for tensor in tensors])
    for here, there in zip(*found, strict=True):
        assert_close(there, here, 1e-8)


@pytest.mark.parametrize("strategy", cases.each_strategy())
def test_a_strategy_is_the_same_there(strategy: str) -> None:
    if "hyperinterval" in strategy:
        pytest.skip("intervals are tensors of a kind of their own, as those of that device are")
    assert_same_there([*cases.small(strategy), "trainer.precision=64"])
