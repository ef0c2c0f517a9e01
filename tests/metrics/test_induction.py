"""Associative memories, an induction head that is planted in a small transformer, and one that grows there."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as nnf
from torch import Tensor

from clplat.metrics import in_context
from clplat.metrics.induction import InductionTransformer, outer_products, recall
from clplat.scenarios.bigrams import BigramTrigger

TRIGGERS = torch.arange(2)  # the most frequent tokens, in the first experience


def source() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def judge(network: InductionTransformer, scenario: BigramTrigger, name: str) -> tuple[float, float]:
    """Loss and accuracy on a slice."""
    data = scenario.slices[name][0].dataset
    with torch.no_grad():
        logits = network(data.x - 1)  # the blank never occurs
    loss = nnf.cross_entropy(logits.flatten(0, 1), data.y.flatten()).item()
    return loss, in_context.accuracy(logits, data.y)


def log_bigram(scenario: BigramTrigger) -> Tensor:
    return scenario.languages[0][1].log()


def test_a_memory_gives_back_what_was_put_in() -> None:
    key, out = (torch.linalg.qr(torch.randn(6, 6, generator=source())).Q for _ in range(2))
    memory = outer_products(out[:4], key[:4])
    assert torch.allclose(memory @ key[2], out[2], atol=1e-6)
    assert recall(memory, key[:4], out, torch.arange(4)) == 1
    assert recall(memory, key[:4], out, torch.tensor([0, 1, 3, 2])) == 0.5
    assert recall(-memory, key[:4], out, torch.arange(4)) == 0


def test_layers_are_the_sums_that_the_equations_say() -> None:
    network = InductionTransformer(5, 6, 8, source()).double()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(generator=source())
    z = torch.tensor([3, 1, 1, 4, 0, 2])
    e, u, p = network.embeddings, network.outputs, network.places
    x = [e[token] + p[t] for t, token in enumerate(z)]
    for key, value in ((network.key_1, network.value_1), (network.key_2, network.out_2 @ network.value_2)):
        weights = [torch.stack([x[t] @ key @ x[s] for s in range(t + 1)]).softmax(0) for t in range(6)]
        x = [x[t] + value @ sum(weights[t][s] * x[s] for s in range(t + 1)) for t in range(6)]
    wanted = torch.stack([u @ (x[t] + network.bigrams @ e[z[t]]) for t in range(6)])
    assert torch.allclose(network(z[None])[0], wanted)


def test_a_planted_induction_head_recalls_all_and_knows_the_outputs() -> None:
    """The seed's check. Measured: all memories 1.00; right behind known triggers 0.99, also with outputs that training
    never has. Bigrams are 0.34 nats off, by what 32 vectors of 512 numbers have in common."""
    scenario = BigramTrigger(0, experiences=1, samples=8, test_samples=64)
    network = InductionTransformer(32, 64, 512, source())
    untouched = network.recalls(TRIGGERS, log_bigram(scenario))
    assert max(untouched["key_1"], untouched["out_2"]) < 0.1
    network.plant(TRIGGERS, log_bigram(scenario))
    found = network.recalls(TRIGGERS, log_bigram(scenario))
    assert [found[name] for name in ("key_1", "key_2", "out_2")] == [1, 1, 1]
    assert found["bigrams"] < 0.5 < untouched["bigrams"]
    for name in ("in-context", "novel"):
        assert judge(network, scenario, name)[1] > 0.95


@pytest.mark.slow
def test_bigrams_are_learnt_before_outputs_and_memories_rise_with_these() -> None:
    """The seed's check for 16 tokens and 32 steps, with Adam. Measured after 25, 50 and 100 steps: loss of bigrams
    1.23, 1.16, 1.14; behind known triggers 1.20, 0.78, 0.23 (accuracy 0.65, 0.79, 0.96); K_1 recalls 0.16, 0.58, 0.84
    and O_2 0.44, 0.56, 0.69 where 12 tokens of 16 are ever outputs."""
    scenario = BigramTrigger(0, experiences=1, tokens=16, length=32, samples=4096, test_samples=256)
    network = InductionTransformer(16, 32, 64, source())
    optimizer = torch.optim.Adam(network.parameters(), lr=0.03)
    data = scenario.train_stream[0].dataset
    usual, own, held = [], [], []
    for step in range(101):
        if step in (0, 25, 100):
            usual.append(judge(network, scenario, "global")[0])
            own.append(judge(network, scenario, "in-context"))
            held.append(network.recalls(TRIGGERS, log_bigram(scenario)))
        rows = torch.arange(step * 128, (step + 1) * 128) % len(data)
        loss = nnf.cross_entropy(network(data.x[rows] - 1).flatten(0, 1), data.y[rows].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert usual[0] - usual[1] > 5 * (usual[1] - usual[2])  # bigrams are known when outputs are not
    assert own[1][0] - own[2][0] > 0.5
    assert own[1][1] < 0.8 < 0.9 < own[2][1]
    for name in ("key_1", "out_2"):
        assert held[0][name] < held[1][name] < held[2][name] - 0.1
    assert held[2]["key_2"] == 1
