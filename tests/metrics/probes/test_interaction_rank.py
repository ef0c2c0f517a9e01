"""Interaction ranks of mixers whose ranks are known."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from clplat.backbones.base import Backbone
from clplat.errors import UsageError
from clplat.metrics import interaction
from clplat.metrics.probes import base
from clplat.metrics.probes.interaction_rank import InteractionRank
from clplat.probing import make
from tests.cases import built
from tests.metrics.probes.streams import language, made, source


class Poles(Backbone):
    """``W_ij = C diag(a)^(i - j) B`` with as many different poles as given: a state space model written out."""

    def __init__(self, input_size: int, poles: list[float]) -> None:
        super().__init__()
        self.input_size, self.output_size = input_size, 5
        k = len(poles)
        self.a = nn.Parameter(torch.tensor(poles))
        self.B = nn.Parameter(torch.randn(k, input_size, generator=source(0)))
        self.C = nn.Parameter(torch.randn(5, k, generator=source(1)))

    def forward(self, x_BTD: Tensor, state: Any = None, **flags: Any) -> tuple[Tensor, Any]:
        h, outputs = x_BTD.new_zeros(len(x_BTD), len(self.a)), []
        for x in x_BTD.unbind(1):
            h = self.a * h + x @ self.B.T
            outputs.append(h @ self.C.T)
        return torch.stack(outputs, 1), {}


def stream() -> Any:
    tokens = torch.randint(1, 9, (8, 17), generator=source(2))
    return language(tokens, tokens, 9)


@pytest.mark.parametrize("k", [1, 3])
def test_a_state_space_model_has_as_many_as_it_has_poles(k: int) -> None:
    scenario = stream()
    learner = made(scenario, lambda D: Poles(D, [0.9, 0.5, -0.4][:k]), embedding=6)
    probe = make("interaction-rank")
    found = base.take(probe, learner, scenario)
    assert found["rank"] == k
    assert 1 <= found["effective_rank"] <= k + 1e-6
    assert found["most"] == 30
    if k == 1:  # |J| = 0.9^(i - j) |C B|
        assert found["slope"] == pytest.approx(math.log(0.9), abs=1e-6)
    assert probe.figure(found)["data"][0]["y"] == found["norms"]
    assert next(learner.backbone.parameters()).dtype == torch.float32


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_attention_with_fixed_weights_has_as_many_as_heads(heads: int) -> None:
    weights = torch.rand(heads, 8, 8, generator=source(3), dtype=torch.float64).tril()
    values = torch.randn(heads, 5, 6, generator=source(4), dtype=torch.float64)
    x = torch.randn(8, 6, generator=source(5), dtype=torch.float64)
    J = interaction.jacobian(lambda x: torch.einsum("hij,hed,jd->ie", weights, values, x), x)
    torch.testing.assert_close(J, torch.einsum("hij,hed->ijed", weights, values))
    assert interaction.rank(interaction.operators(J)) == heads


def test_as_many_heads_fit_a_state_space_model_and_one_less_does_not() -> None:
    """The best approximation by H heads is that of rank H of the stacked operators (Eckart and Young 1936)."""
    learner = made(stream(), lambda D: Poles(D, [0.9, 0.5, -0.4]), embedding=6)
    network = learner.backbone.double()
    rows = interaction.operators(interaction.jacobian(lambda x: network(x[None])[0][0], torch.randn(8, 6).double()))
    values = torch.linalg.svdvals(rows)
    error = [float(values[H:].norm() / values.norm()) for H in range(4)]
    assert error[3] < 1e-10
    assert error[2] > 1e-3


def test_what_it_refuses() -> None:
    with pytest.raises(UsageError) as error:
        InteractionRank(samples=0, tolerance=1.0)
    assert len(error.value.messages) == 2
    one = built("naive", "backbone=mlp", "scenario=permuted-digits")
    with pytest.raises(UsageError, match="reads a sequence"):
        base.take(make("interaction-rank"), one.learner, one.scenario)
