"""Sinks that are known, and those of small networks."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from clplat.backbones.attention.transformer import Transformer
from clplat.errors import UsageError
from clplat.metrics.probes import base
from clplat.metrics.probes.attention_sink import AttentionSink, importance, relative_norm
from clplat.metrics.probes.sampling import draw_tests
from clplat.probing import make
from tests.cases import built
from tests.metrics.probes.streams import language, made, source


def test_uniform_attention_has_the_importance_that_one_computes() -> None:
    T = 9
    uniform = torch.ones(T, T, dtype=torch.float64).tril()
    uniform /= uniform.sum(-1, keepdim=True)
    expected = [sum(1 / i for i in range(k, T + 1)) / (T - k + 1) for k in range(1, T + 1)]
    torch.testing.assert_close(importance(uniform), torch.tensor(expected, dtype=torch.float64))


def test_planted_sinks_are_counted_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    """One head of one layer looks at nothing but the first step, in samples whose first token is 1."""
    tokens = torch.randint(2, 9, (40, 17), generator=source(0))
    tokens[:10, 0] = 1
    scenario = language(tokens, tokens, 9)
    learner = made(scenario, lambda D: Transformer(D, dim=8, layers=2, heads=2))
    layer = learner.backbone.attention_layers[1]
    plain = layer.look

    def planted(x: torch.Tensor, *rest: object, **options: object) -> object:
        seen = plain(x, *rest, **options)
        uniform = torch.ones_like(seen.weights).tril()
        weights = uniform / uniform.sum(-1, keepdim=True)
        sink = torch.zeros_like(weights[:, 0])
        sink[..., 0] = 1
        chosen = firsts[: len(x)]
        del firsts[: len(x)]
        weights[:, 1] = torch.where(torch.tensor(chosen)[:, None, None], sink, weights[:, 1])
        return type(seen)(seen.x, seen.key, seen.value, weights)

    probe = make("attention-sink", samples=40, epsilon=0.5)
    firsts = (draw_tests(learner, scenario, 40, "probe/attention-sink").x[:, 0] == 1).tolist()
    monkeypatch.setattr(layer, "look", planted)
    found = base.take(probe, learner, scenario)
    assert found["heads"][1][1] == pytest.approx(0.25)
    assert found["heads"][1][0] == 0  # uniform over 16 steps: 0.21
    assert found["heads"][0] == [0, 0]
    assert found["sink_rate"] == pytest.approx(0.25 / 4)
    assert found["positions"][1:] == [0] * 9
    assert probe.figure(found)["data"][0]["z"] == found["heads"]


def test_norms_are_relative_to_the_sample() -> None:
    x = torch.tensor([[[3.0, 4.0], [0.0, 5.0], [10.0, 0.0]]])
    torch.testing.assert_close(relative_norm(x), torch.tensor([[5.0, 5.0, 10.0]]) / (20 / 3))


def test_steps_of_tokens_are_cut_and_rows_of_images_are_not() -> None:
    tokens = torch.randint(1, 9, (20, 33), generator=source(1))
    scenario = language(tokens, tokens, 9)
    learner = made(scenario, lambda D: Transformer(D, dim=8, layers=1, heads=2, window=4))
    found = base.take(make("attention-sink", steps=6), learner, scenario)
    assert len(found["positions"]) == 6
    one = built("naive", "backbone=transformer", "scenario=permuted-digits")
    assert len(base.take(make("attention-sink"), one.learner, one.scenario)["positions"]) == 8


@pytest.mark.parametrize("name", ["rmt", "gtrxl", "hcam", "landmark-attention", "hopfield", "rat", "vit", "titans-mag"])
def test_backbones_that_carry_or_share_their_weights_are_read_as_well(name: str) -> None:
    one = built("naive", f"backbone={name}", "scenario=permuted-digits", "scenario.experiences=1")
    found = base.take(make("attention-sink", samples=16), one.learner, one.scenario)
    layers = one.learner.backbone.attention_layers
    assert np.shape(found["heads"]) == (len(layers), layers[0].heads)
    assert 0 < found["alpha"] < 1
    assert len(found["hidden_norms"]) == one.learner.backbone.layer_count


def test_layers_that_come_several_times_are_told_each_time() -> None:
    one = built("naive", "backbone=depth-recurrent-transformer", "scenario=permuted-digits", "scenario.experiences=1")
    found = base.take(make("attention-sink", samples=16), one.learner, one.scenario)
    assert len(found["heads"]) == 4
    assert found["alpha_heads"][0] != found["alpha_heads"][3]


def test_every_query_counts_where_all_see_all() -> None:
    weights = torch.rand(2, 5, 5, generator=source(4), dtype=torch.float64)
    torch.testing.assert_close(importance(weights, causal=False), weights.sum(1) / 5)


def test_what_it_refuses() -> None:
    with pytest.raises(UsageError) as error:
        AttentionSink(epsilon=2.0, samples=0)
    assert len(error.value.messages) == 2
    one = built("naive", "backbone=gru", "scenario=permuted-digits")
    with pytest.raises(UsageError, match=r"needs attention.*--backbone .*gtrxl.*rmt.*transformer"):
        base.take(make("attention-sink"), one.learner, one.scenario)
