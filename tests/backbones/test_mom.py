"""Mixture of memories: lanes, routing, and the single memory that it is made of."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from clplat.backbones.base import reference_form
from clplat.backbones.linear.gated_delta_net import GatedDeltaRule
from clplat.backbones.linear.memory import Memory, Rule
from clplat.backbones.linear.mom import RULES, Mixture, MoM
from clplat.backbones.ops.routing import lanes
from clplat.errors import UsageError

from .helpers import assert_close, assert_states_close, inputs

B, T, D = 2, 13, 8


def rule(name: str = "gated-delta") -> Rule:
    return RULES[name](2, 4, 4, 4)


def mixture(name: str = "gated-delta", **options: object) -> Mixture:
    torch.manual_seed(0)
    chosen = {"memories": 4, "top": 2, "shared": True, "conv": 0, **options}
    return Mixture(D, rule(name), **chosen).double()


def test_lanes_by_hand() -> None:
    # steps 0, 2, 3 go to the first memory and 1, 2 to the second; sequences begin at steps 2 and 4
    goes_BTE = torch.tensor([[[1, 0], [0, 1], [1, 1], [1, 0], [0, 0]]]).bool()
    found = lanes(goes_BTE, None)
    assert found.step.tolist() == [[[0, 2, 3], [1, 2, 0]]]
    assert found.used.int().tolist() == [[[1, 1, 1], [1, 1, 0]]]
    assert found.slot[0, [0, 2, 3], 0].tolist() == [0, 1, 2]
    assert found.slot[0, [1, 2], 1].tolist() == [0, 1]
    reset_BT = torch.tensor([[0, 0, 1, 0, 1]]).bool()
    found = lanes(goes_BTE, reset_BT)
    assert found.used.int().tolist() == [[[1, 1, 1, 0], [1, 1, 0, 0]]]
    assert found.reset.int().tolist() == [[[0, 1, 0, 1], [0, 1, 1, 0]]]  # the last two for what begins at step 4
    x = inputs(1, 5, 3)
    memory_BTk = torch.tensor([[[0], [1], [1], [0], [0]]])
    assert torch.equal(found.back(found.gather(x), memory_BTk)[0, :4, 0], x[0, :4])


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("conv", [0, 3])
def test_lanes_equal_the_loop_over_all_steps(name: str, conv: int) -> None:
    mixer, x = mixture(name, conv=conv), inputs(B, T, D)
    reset_BT, mask_BT = (
        torch.rand(B, T, generator=torch.Generator().manual_seed(n)) < p for n, p in ((1, 0.2), (2, 0.8))
    )
    _, state = mixer(inputs(B, 5, D, seed=3))
    for flags in ({}, {"reset_BT": reset_BT}, {"reset_BT": reset_BT, "mask_BT": mask_BT}):
        y, after = mixer(x, state, **flags)
        with reference_form():
            y_loop, after_loop = mixer(x, state, **flags)
        live = mask_BT if "mask_BT" in flags else torch.ones_like(mask_BT)
        assert_close(y[live], y_loop[live], 1e-10)
        assert_states_close(after, after_loop, 1e-10)


def test_one_memory_for_all_steps_is_the_plain_layer() -> None:
    mixer, x = mixture(memories=1, top=1, shared=False, conv=4), inputs(B, T, D)
    plain = Memory(D, GatedDeltaRule(2, 4, 4, 4), conv=4).double()
    plain.heads, plain.output, plain.gates = mixer.heads, mixer.output, mixer.writers[0].gates
    with torch.no_grad():
        plain.qkv.weight.copy_(torch.cat([mixer.query.weight, mixer.writers[0].kv.weight]))
        plain.qkv.bias.copy_(torch.cat([mixer.query.bias, mixer.writers[0].kv.bias]))
    assert_close(mixer(x)[0], plain(x)[0], 1e-12)


def test_memories_that_a_step_does_not_go_to_stay_bit_for_bit() -> None:
    mixer, x = mixture(conv=3), inputs(B, T, D)
    state = mixer(x)[1]
    for t in range(5):
        step = inputs(B, 1, D, seed=10 + t)
        _, memory_BTk = mixer.route(step)
        _, after = mixer(step, state)
        for b in range(B):
            for e in range(4):
                same = torch.equal(after["memories"]["S"][b, e], state["memories"]["S"][b, e])
                assert same == (e not in memory_BTk[b, 0])
        state = after


def test_the_output_is_the_sum_of_what_the_chosen_memories_and_the_shared_one_give() -> None:
    """Each memory by itself, as a plain rule on the steps that come to it."""
    mixer, x = mixture("sum"), inputs(1, T, D)
    share, memory = mixer.route(x)
    assert_close(share.sum(-1), torch.ones(1, T).double(), 1e-12)
    q = mixer.query(x)[0].unflatten(-1, (2, 4))

    def read(t: int, steps: list[int], writer: torch.nn.Module) -> Tensor:
        k, v = (part.unflatten(-1, (2, 4)) for part in writer(x)[0][0].chunk(2, -1))
        return torch.einsum("hk,jhk,jhv->hv", q[t], k[steps], v[steps])

    expected = torch.zeros(1, 2, T, 4).double()
    for t in range(T):
        expected[0, :, t] = read(t, list(range(t + 1)), mixer.shared)
        for g, e in zip(share[0, t], memory[0, t].tolist(), strict=True):
            came = [j for j in range(t + 1) if e in memory[0, j]]
            expected[0, :, t] += g * read(t, came, mixer.writers[e])
    assert_close(mixer(x)[0], mixer.output(x, expected), 1e-10)


@pytest.mark.slow
def test_recall_with_several_memories_beats_one_of_the_same_size() -> None:
    """Pairs of a key and a value, then each key again: what was its value? One small memory mixes the pairs up."""
    pairs = 16

    def batch(seed: int) -> tuple[Tensor, Tensor]:
        source = torch.Generator().manual_seed(seed)
        keys = torch.stack([torch.randperm(32, generator=source)[:pairs] for _ in range(32)])
        values = torch.randint(2, (32, pairs), generator=source)
        order = torch.stack([torch.randperm(pairs, generator=source) for _ in range(32)])
        asked = keys.gather(1, order)
        x = torch.zeros(32, 2 * pairs, 34)
        x[:, :pairs].scatter_(2, keys[..., None], 1.0)
        x[:, :pairs, 32] = values * 2.0 - 1
        x[:, pairs:].scatter_(2, asked[..., None], 1.0)
        x[:, pairs:, 33] = 1
        return x, values.gather(1, order).float()

    def accuracy(memories: int, top: int) -> float:
        torch.manual_seed(0)
        options = {"dim": 16, "heads": 1, "layers": 1, "mlp": "none", "conv": 0, "shared": False, "update": "sum"}
        network = MoM(34, memories=memories, top=top, chunk=32, **options)
        head = torch.nn.Linear(16, 1)
        optimiser = torch.optim.Adam([*network.parameters(), *head.parameters()], lr=2e-2)
        for step in range(200):
            x, target = batch(step)
            logit = head(network(x)[0][:, pairs:])[..., 0]
            optimiser.zero_grad()
            torch.nn.functional.binary_cross_entropy_with_logits(logit, target).backward()
            optimiser.step()
        x, target = batch(10**6)
        with torch.no_grad():
            right = (head(network(x)[0][:, pairs:])[..., 0] > 0) == target.bool()
        return right.float().mean().item()

    assert accuracy(4, 2) > accuracy(1, 1) + 0.05


def test_options_are_checked() -> None:
    for top in (0, 5):
        with pytest.raises(UsageError, match="top must be from 1 to memories 4"):
            MoM(5, top=top)
