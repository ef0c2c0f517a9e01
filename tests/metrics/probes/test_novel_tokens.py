"""Tokens never seen: networks whose answers are known for any embedding."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from clplat.backbones.base import Backbone
from clplat.build import Built, build
from clplat.config import compose
from clplat.errors import UsageError
from clplat.metrics.probes import base
from clplat.probing import make
from clplat.ranks import Ranks

DIM = 12


class Reader(Backbone):
    """The rule itself: the adjective by its place, then the query, as the vectors that came in."""

    def __init__(self, input_size: int, copula: Tensor) -> None:
        super().__init__()
        self.output_size = input_size
        self.register_buffer("copula", copula.clone())

    def forward(self, x_BTD: Tensor, state: Any = None, **_: Any) -> tuple[Tensor, Any]:
        copula_first = (x_BTD[:, 0] - self.copula).abs().amax(-1, keepdim=True) < 1e-6
        adjective = torch.where(copula_first, x_BTD[:, 1], x_BTD[:, 2])
        y = torch.zeros_like(x_BTD)
        y[:, 4], y[:, 5], y[:, 6] = adjective, x_BTD[:, 3], x_BTD[:, 3]
        return y, state


def reading(*more: str) -> Built:
    """A learner that follows the rule, whatever the embeddings are."""
    one = build(
        compose(
            [
                "scenario=part-of-speech", "scenario.samples=500", "scenario.test_samples=40", "scenario.words=20",
                "backbone=gru", f"backbone.hidden={DIM}", f"learner.embedding={DIM}", "learner.head=tied",
                "trainer.accelerator=cpu", "strategy=naive", *more,
            ]
        ),
        Ranks(),
    )  # fmt: skip
    table = one.learner.encoder.embedding.weight
    with torch.no_grad():
        table.copy_(nn.functional.normalize(torch.randn(table.shape, generator=one.learner.generator("table"))))
        one.learner.head.projection.weight.copy_(50 * torch.eye(DIM))
    one.learner.backbone = Reader(DIM, table[0].detach())
    return one


def test_a_rule_works_for_any_embedding_and_the_table_stays() -> None:
    one = reading()
    table = one.learner.encoder.embedding.weight
    before = table.clone()
    found = base.take(make("novel-tokens", draws=3), one.learner, one.scenario)
    assert found["tokens"] == 20
    assert found["kept"] == 1
    assert found["novel"] > 0.9  # a draw from N(0, 1) may be nearer to a longer one than to itself
    assert len(found["by_experience"]) == 3
    assert torch.equal(table, before)
    assert make("novel-tokens").figure(found)["data"][0]["y"] == found["by_experience"]


def test_what_is_known_of_single_words_is_gone_with_their_embeddings() -> None:
    """A backbone that hands on the answer only for the embeddings that it knows."""
    one = reading()
    known = one.learner.encoder.embedding.weight.detach().clone()
    rule = one.learner.backbone.forward

    def forward(x_BTD: Tensor, state: Any = None, **more: Any) -> tuple[Tensor, Any]:
        y, state = rule(x_BTD, state, **more)
        return y * ((y[..., None, :] - known).abs().amax(-1) < 1e-6).any(-1)[..., None], state

    one.learner.backbone.forward = forward  # type: ignore[method-assign]
    found = base.take(make("novel-tokens"), one.learner, one.scenario)
    assert found["kept"] == 1
    assert found["novel"] == 0


def test_what_cannot_be_asked() -> None:
    one = reading()
    with pytest.raises(UsageError, match=r"finds no slice 'helt-out'\. Did you mean 'held-out'\? Valid: held-out, "):
        base.take(make("novel-tokens", slice="helt-out"), one.learner, one.scenario)
    with pytest.raises(UsageError, match="the slice rare has none"):
        base.take(make("novel-tokens", slice="rare"), one.learner, one.scenario)
    with pytest.raises(UsageError, match="must be positive"):
        make("novel-tokens", draws=0)
