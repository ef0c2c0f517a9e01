"""StackedLinear, each sample by the layer of its own label; and the head that is tied to the embeddings."""

import pytest
import torch
from torch import nn

from clplat.build import build
from clplat.config import compose
from clplat.errors import UsageError
from clplat.heads import StackedLinear
from clplat.loop import Run
from clplat.ranks import Ranks

F64 = torch.float64
TOKENS = [
    "scenario=part-of-speech", "scenario.experiences=2", "scenario.samples=60", "scenario.test_samples=10",
    "scenario.words=10", "backbone=gru", "backbone.hidden=8", "strategy=naive", "trainer.accelerator=cpu",
    "trainer.max_epochs=1",
]  # fmt: skip


@pytest.mark.parametrize(("tasks", "size"), [(1, 6), (4, 6), (9, 3)])  # the three forms of forward
def test_is_a_linear_layer_for_each_sample(tasks, size):
    head = StackedLinear(tasks, size, 5, dtype=F64)
    x = torch.randn(11, size, dtype=F64, requires_grad=True)
    index = torch.randint(tasks, (11,))
    y = head(x, index)
    expected = torch.stack([head.weight[k] @ x_D + head.bias[k] for x_D, k in zip(x, index, strict=True)])
    torch.testing.assert_close(y, expected)
    seed = torch.randn_like(y)
    leaves = (x, *head.parameters())
    for a, b in zip(torch.autograd.grad(y, leaves, seed), torch.autograd.grad(expected, leaves, seed), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("tasks", [1, 3, 20])
def test_empty_batch(tasks):
    head = StackedLinear(tasks, 4, 2)
    y = head(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long))
    assert y.shape == (0, 2)
    y.sum().backward()
    assert all(p.grad is not None and (p.grad == 0).all() for p in head.parameters())


def test_layers_start_as_linear_layers_do():
    torch.manual_seed(3)
    plain = [nn.Linear(7, 4) for _ in range(3)]
    head = StackedLinear(3, 7, 4, generator=torch.Generator().manual_seed(3))
    torch.manual_seed(3)
    default = StackedLinear(3, 7, 4)
    for k, one in enumerate(plain):
        assert torch.equal(default.weight[k], one.weight)
        assert torch.equal(default.bias[k], one.bias)
    bound = 7**-0.5
    assert not torch.equal(head.weight[0], head.weight[1])
    assert head.weight.abs().max() <= bound * (1 + 1e-6)
    assert head.weight.abs().max() > 0.8 * bound


def test_grow_keeps_what_is_there():
    head = StackedLinear(2, 5, 3, dtype=F64, generator=torch.Generator().manual_seed(0))
    weight, bias = head.weight.detach().clone(), head.bias.detach().clone()
    head.grow(2)
    head.grow(4, torch.Generator().manual_seed(1))
    assert head.tasks == 4
    assert head.weight.shape == (4, 3, 5)
    assert head.weight.dtype == F64
    assert torch.equal(head.weight[:2], weight)
    assert torch.equal(head.bias[:2], bias)
    again = StackedLinear(2, 5, 3, dtype=F64, generator=torch.Generator().manual_seed(0))
    again.grow(4, torch.Generator().manual_seed(1))
    assert torch.equal(head.weight, again.weight)
    assert torch.equal(head.bias, again.bias)
    assert all(isinstance(p, nn.Parameter) and p.requires_grad for p in head.parameters())
    with pytest.raises(ValueError, match="shrink"):
        head.grow(1)


def test_growing_by_steps_is_growing_at_once():
    def grown(*sizes):
        generator = torch.Generator().manual_seed(5)
        head = StackedLinear(0, 3, 2, generator=generator)
        for size in sizes:
            head.grow(size, generator)
        return head

    assert torch.equal(grown(1, 2, 5).weight, grown(5).weight)


def test_under_vmap_and_functional_call():
    head = StackedLinear(3, 4, 2, dtype=F64)
    x, index = torch.randn(6, 4, dtype=F64), torch.tensor([0, 1, 2, 2, 1, 0])
    parameters = {name: p.detach() for name, p in head.named_parameters()}

    def loss(parameters, x, k):
        return torch.func.functional_call(head, parameters, (x[None], k[None])).square().sum()

    found = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(parameters, x, index)
    head(x, index).square().sum().backward()
    for name, p in head.named_parameters():
        torch.testing.assert_close(found[name].sum(0), p.grad)


def test_a_tied_head_scores_by_the_embeddings_under_their_one_name():
    one = build(compose([*TOKENS, "learner.head=tied", "learner.embedding=6"]), Ranks())
    learner = one.learner
    assert {name for name in learner.network() if "backbone" not in name} == {
        "encoder.embedding.weight", "head.projection.weight",
    }  # fmt: skip
    features = torch.randn(4, 7, learner.head.projection.in_features)
    table, W = learner.encoder.embedding.weight, learner.head.projection.weight
    expected = torch.einsum("ntf,df,cd->ntc", features, W, table) / 6**0.5
    torch.testing.assert_close(learner.head(features, torch.zeros(4)), expected)
    x, task = one.scenario.test_stream[0].dataset.x[:3], torch.zeros(3, dtype=torch.long)
    doubled = learner.output_with({"encoder.embedding.weight": 2 * table.detach()}, x, task)
    with torch.no_grad():
        table *= 2
    torch.testing.assert_close(doubled.logits, learner(x, task))


def test_a_tied_head_needs_answers_that_are_tokens_of_the_input():
    for scenario in ("split-digits", "icl-iwl-burst"):
        with pytest.raises(UsageError, match=r"learner\.head=tied needs a scenario whose answers are tokens"):
            build(compose(["strategy=naive", f"scenario={scenario}", "learner.head=tied"]), Ranks())


@pytest.mark.parametrize("strategy", ["er", "ewc", "temporary-forgetting"])
def test_a_tied_head_is_trained(strategy):
    one = build(compose([*TOKENS, f"strategy={strategy}", "learner.head=tied"]), Ranks())
    before = one.learner.encoder.embedding.weight.detach().clone()
    results = Run(one.learner, one.scenario, eval_settings=one.eval_settings).execute()
    assert results["status"] == "done"
    moved = (one.learner.encoder.embedding.weight != before).any(1)
    assert moved.all()  # as an answer, each token gets a gradient, also one that no input has
