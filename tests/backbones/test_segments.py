"""Networks that carry a memory: what a memory changes, what it leaves alone, and that it can be learned to be used."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as nnf
from torch import Tensor

from clplat.backbones.attention.armt import ARMT
from clplat.backbones.attention.gtrxl import GTrXL
from clplat.backbones.attention.hcam import HCAM, ChunkMemory
from clplat.backbones.attention.landmark import LandmarkLayer, LandmarkTransformer
from clplat.backbones.attention.memformer import Memformer, SlotAttention
from clplat.backbones.attention.memoria import Memoria
from clplat.backbones.attention.rmt import RMT
from clplat.backbones.attention.segments import causal, turn
from clplat.backbones.attention.ttm import TTM
from clplat.backbones.base import Backbone, map_state
from clplat.backbones.block import split_heads

from .helpers import assert_close, floats, inputs

SMALL: dict[str, Any] = {"dim": 8, "heads": 2}
D, L, T = 5, 3, 9


def noisy(network: Backbone) -> Backbone:
    """In double precision, with no parameter 0 or 1 by construction."""
    network = network.double()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return network


def without_memory(network: Backbone, x: Tensor) -> Tensor:
    """The outputs for each segment by itself."""
    return torch.cat([network(part)[0] for part in x.split(L, 1)], 1)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


# A cue among four at the first step, noise, and the question which it was at the end of each segment: 0.25 is chance.

CUES, STEPS, LENGTH = 4, 6, 2
ASKED = slice(LENGTH - 1, None, LENGTH)


def cued(batch: int, source: torch.Generator) -> tuple[Tensor, Tensor]:
    cue = torch.randint(CUES, (batch,), generator=source)
    x = 0.5 * torch.randn(batch, STEPS, CUES + 2, generator=source)
    x[:, :, CUES:] = 0
    x[:, 0, :CUES], x[:, 0, CUES], x[:, ASKED, CUES + 1] = nnf.one_hot(cue, CUES).float(), 1, 1
    return x, cue


def recalled(network: Backbone, rounds: int = 200) -> float:
    """Accuracy at the last step of new sequences, after training until it is well known there (or for all rounds)."""
    head, source = torch.nn.Linear(network.output_size, CUES), torch.Generator().manual_seed(1)
    optimiser = torch.optim.Adam([*network.parameters(), *head.parameters()], lr=1e-2)
    for _ in range(rounds):
        x, cue = cued(32, source)
        scores_BNC = head(network(x)[0][:, ASKED])
        losses_BN = nnf.cross_entropy(scores_BNC.mT, cue[:, None].expand(scores_BNC.shape[:2]), reduction="none")
        optimiser.zero_grad()
        losses_BN.mean().backward()
        optimiser.step()
        if losses_BN[:, -1].mean() < 0.05:
            break
    with torch.no_grad():
        x, cue = cued(512, source)
        return float((head(network(x)[0][:, -1]).argmax(-1) == cue).float().mean())


LEARNERS: dict[str, tuple[type[Backbone], dict[str, Any]]] = {
    "rmt": (RMT, {"segment": LENGTH}),
    "armt": (ARMT, {"segment": LENGTH}),
    "memformer": (Memformer, {"segment": LENGTH}),
    "gtrxl": (GTrXL, {"segment": LENGTH, "memory": STEPS}),
    "landmark-attention": (LandmarkTransformer, {"segment": LENGTH, "retrieve": 2}),
    "hcam": (HCAM, {"segment": LENGTH, "retrieve": 2}),
    "memoria": (Memoria, {"segment": LENGTH}),
    "ttm": (TTM, {}),
}
TINY: dict[str, Any] = {"dim": 16, "heads": 2, "layers": 1}


@pytest.mark.parametrize("name", LEARNERS)
def test_a_cue_of_two_segments_ago_is_recalled(name: str) -> None:
    kind, options = LEARNERS[name]
    assert recalled(kind(CUES + 2, **TINY, **options)) > 0.9


@pytest.mark.parametrize("name", ["rmt", "ttm"])
def test_without_slots_the_cue_is_lost(name: str) -> None:
    kind, options = LEARNERS[name]
    assert recalled(kind(CUES + 2, **TINY, slots=0, **options), rounds=50) < 0.4


# what a memory changes


def test_rmt_passes_on_its_tokens_alone() -> None:
    network, x = noisy(RMT(D, **SMALL, segment=L, slots=2)), inputs(2, 2 * L, D)
    changed = torch.cat([inputs(2, L, D, seed=8), x[:, L:]], 1)
    y, _ = network(x)
    assert not torch.allclose(network(changed)[0][:, L:], y[:, L:])
    _, after = network(x[:, :L])
    _, other = network(changed[:, :L])
    other["memory"]["tokens"] = after["memory"]["tokens"]
    assert_close(network(x[:, L:], other)[0], y[:, L:], 1e-12)
    alone = noisy(RMT(D, **SMALL, segment=L, slots=0))
    assert_close(alone(x)[0], without_memory(alone, x), 1e-12)


def test_gradients_pass_through_the_memory_until_a_state_is_detached() -> None:
    network, x = noisy(RMT(D, **SMALL, segment=L)), inputs(2, T, D).requires_grad_()
    (gradient,) = torch.autograd.grad(network(x)[0][:, -1].sum(), x)
    assert gradient.count_nonzero() == 2 * T * D
    _, state = network(x[:, :L])
    y, _ = network(x[:, L:], map_state(Tensor.detach, state))
    assert_close(y, network(x)[0][:, L:], 1e-12)
    (gradient,) = torch.autograd.grad(y[:, -1].sum(), x)
    assert gradient[:, :L].count_nonzero() == 0


def test_armt_begins_without_memory() -> None:
    network, x = ARMT(D, **SMALL, segment=L).double(), inputs(2, T, D)
    assert_close(network(x)[0], without_memory(network, x), 1e-12)
    with torch.no_grad():
        for layer in network.layers:
            layer.value.weight.normal_()  # type: ignore[union-attr]
    assert not torch.allclose(network(x)[0][:, L:], without_memory(network, x)[:, L:])


def test_memformer_slots_have_length_one_and_do_not_mix() -> None:
    network = noisy(Memformer(D, **SMALL, segment=L, slots=4))
    for T_now in (0, T, 4 * T):
        state = network(inputs(2, T_now, D))[1] if T_now else network.init_state(2)
        assert_close(state["memory"]["slots"].norm(dim=-1), torch.ones(2, 4, dtype=torch.float64), 1e-5)
    write = SlotAttention(8, 2, 4, 0.25).double()
    memory, x, live = inputs(2, 4, 8), inputs(2, L, 8, seed=2), torch.ones(2, L, dtype=torch.bool)
    changed = memory.clone()
    changed[:, 1] += 1
    same = (write(changed, x, live) == write(memory, x, live)).all(-1).all(0)
    assert same.tolist() == [True, False, True, True]


def test_a_cold_slot_keeps_or_takes() -> None:
    memory, x, live = inputs(2, 4, 8), inputs(2, L, 8, seed=2), torch.ones(2, L, dtype=torch.bool)
    write = SlotAttention(8, 1, 4, 1e-4).double()
    with torch.no_grad():
        write.bias.zero_()
    found = write(memory, x, live)
    choices = torch.cat([memory[:, :, None], x[:, None].expand(-1, 4, -1, -1)], 2)  # each slot, and all steps
    values = write.out(write.qkv(choices).chunk(3, -1)[2])
    values = values / values.norm(dim=-1, keepdim=True)
    assert ((found[:, :, None] - values).norm(dim=-1).amin(-1) < 1e-5).all()


def test_gtrxl_with_enough_memory_does_not_see_its_segments() -> None:
    x, outputs = inputs(2, T, D), []
    for segment in (1, L, T, 20):
        torch.manual_seed(0)
        network = noisy(GTrXL(D, **SMALL, segment=segment, memory=T, stop_gradient=False))
        outputs.append(network(x)[0])
        assert_close(outputs[-1], outputs[0], 1e-10)
    short = GTrXL(D, **SMALL, segment=L, memory=0).double()
    assert_close(short(x)[0], without_memory(short, x), 1e-12)


@torch.no_grad()
def test_gtrxl_begins_near_the_identity() -> None:
    x, moved = inputs(2, T, D), {}
    for bias in (0.0, 2.0, 20.0):
        torch.manual_seed(0)
        network = GTrXL(D, dim=32, segment=L, gate_bias=bias).double()
        h_BLD = network.embed(x)
        for layer in network.layers:
            h_BLD = layer(h_BLD, h_BLD[:, :0], causal(torch.ones(2, T, dtype=torch.bool)))
        moved[bias] = float((h_BLD - network.embed(x)).norm() / network.embed(x).norm())
    assert moved[2.0] < 0.6 * moved[0.0]
    assert moved[20.0] < 1e-6


def test_gtrxl_stops_gradients_at_its_memory() -> None:
    for stop in (True, False):
        network, x = noisy(GTrXL(D, **SMALL, segment=L, stop_gradient=stop)), inputs(2, T, D).requires_grad_()
        (gradient,) = torch.autograd.grad(network(x)[0][:, -1].sum(), x)
        assert (gradient[:, : T - L].count_nonzero() == 0) == stop
        assert gradient[:, -L:].count_nonzero() == 2 * L * D


# landmarks


def test_all_landmarks_are_the_grouped_softmax_over_everything() -> None:
    """One block, its attention written out over the whole sequence as the paper has it."""
    N, C = 3, L
    torch.manual_seed(0)
    layer = LandmarkLayer(8, 2, ratio=2.0, dropout=0.0, take=N).double()
    h = inputs(2, (N + 1) * (C + 1), 8)  # blocks of C steps and a landmark
    q, k, v = (split_heads(part, 2) for part in layer.qkv(layer.attention_norm(h)).chunk(3, -1))
    scores = (turn(q) @ turn(k).mT) / 2.0
    weights = torch.zeros_like(scores)
    for t in range(N * (C + 1), (N + 1) * (C + 1)):
        block = t // (C + 1)
        own = [j for j in range(t + 1) if j // (C + 1) == block and j % (C + 1) < C]
        marks = [n * (C + 1) + C for n in range(block)]
        shares = scores[:, :, t, own + marks].softmax(-1)
        weights[:, :, t, own] = shares[..., : len(own)]
        for n in range(block):
            steps = [n * (C + 1) + j for j in range(C)]
            weights[:, :, t, steps] = shares[..., len(own) + n, None] * scores[:, :, t, steps].softmax(-1)
    last = h[:, -(C + 1) :]
    assert_close(weights[:, :, -(C + 1) :].sum(-1), torch.ones(2, 2, C + 1, dtype=torch.float64), 1e-12)
    expected = last + layer.out((weights @ v).transpose(1, 2).flatten(2)[:, -(C + 1) :])
    expected = expected + layer.mlp(layer.mlp_norm(expected))

    live = torch.ones(2, C, dtype=torch.bool)
    _, keys, values = layer.qkv(layer.attention_norm(h[:, : N * (C + 1)])).unflatten(1, (N, C + 1)).chunk(3, -1)
    visible = torch.cat([causal(live), live[:, None]], 1)
    found, _, _ = layer(last, visible, keys, values, torch.ones(2, N, dtype=torch.bool))
    assert_close(found, expected, 1e-10)


def test_weights_by_landmarks_sum_to_one() -> None:
    """Values that are all alike come out as they are, whatever blocks are taken."""
    for take in (1, 2, 9):
        layer = LandmarkLayer(8, 2, ratio=2.0, dropout=0.0, take=take).double()
        with torch.no_grad():
            layer.qkv.weight[16:], layer.qkv.bias[16:] = 0, 1
            layer.mlp[2].weight.zero_()  # type: ignore[index]
            layer.mlp[2].bias.zero_()  # type: ignore[index]
        live, ones = torch.ones(2, L, dtype=torch.bool), torch.ones(2, 4, L + 1, 8, dtype=torch.float64)
        visible, h = torch.cat([causal(live), live[:, None]], 1), inputs(2, L + 1, 8)
        y, _, _ = layer(
            h, visible, inputs(2, 4, L + 1, 8, seed=2), ones, torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]]).bool()
        )
        assert_close(y - h, layer.out(ones[:, 0]), 1e-12)


# chunks


def test_all_chunks_are_two_levels_of_soft_attention() -> None:
    memory, x, chunks = ChunkMemory(8, 1, 4).double(), inputs(2, 5, 8), inputs(2, 4, L, 8, seed=2)
    found = memory(x, chunks, torch.ones(2, 4, dtype=torch.bool))
    outer = (memory.query(x) @ memory.key(chunks.mean(2)).mT / 8**0.5).softmax(-1)
    back = torch.arange(4 * L, dtype=torch.float64).flip(0)
    angle = back[:, None] * 10000.0 ** (-torch.arange(4).double() / 4)
    placed = chunks + torch.cat([angle.sin(), angle.cos()], -1).unflatten(0, (4, L))
    k, v = memory.attention.key_value(placed).chunk(2, -1)
    inner = torch.einsum("btd,bncd->btnc", memory.attention.query(x), k) / 8**0.5
    expected = torch.einsum("btn,btnc,bncd->btd", outer, inner.softmax(-1), v)
    assert_close(found, memory.attention.out(expected), 1e-12)


@pytest.mark.parametrize("kind", [HCAM, Memoria])
def test_no_gradient_flows_into_what_is_stored(kind: type[Backbone]) -> None:
    network, x = noisy(kind(D, **SMALL, segment=L)), inputs(2, T, D).requires_grad_()
    (gradient,) = torch.autograd.grad(network(x)[0][:, L:].sum(), x)
    assert gradient[:, :L].count_nonzero() == 0
    assert gradient[:, L:].count_nonzero() > 0
    assert not torch.allclose(network(x)[0][:, L:], without_memory(network, x)[:, L:])  # but it is read


# training over long rows


@pytest.mark.parametrize("kind", [RMT, ARMT, Memformer, LandmarkTransformer])
def test_replayed_segments_have_the_gradient_of_the_whole(kind: type[Backbone]) -> None:
    """Memory replay (Wu et al. 2020): forward without a graph, then segment by segment backwards from stored states."""
    network, parts = noisy(kind(D, **SMALL, segment=L)), inputs(2, 6 * L, D).split(L, 1)
    y, _ = network(torch.cat(parts, 1))
    y.square().sum().backward()
    whole = [parameter.grad.clone() for parameter in network.parameters()]
    network.zero_grad()

    states: list[Any] = [network.init_state(2)]
    with torch.no_grad():
        for part in parts:
            states.append(network(part, states[-1])[1])
    above: list[Tensor] = [torch.zeros_like(leaf) for leaf in floats(states[-1])]
    for part, before in zip(reversed(parts), reversed(states[:-1]), strict=True):
        given = map_state(lambda s: s.detach().requires_grad_(s.is_floating_point()), before)
        y, after = network(part, given)
        pull = sum((leaf * gradient).sum() for leaf, gradient in zip(floats(after), above, strict=True))
        (y.square().sum() + pull).backward()
        above = [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in floats(given)]
    first = network.init_state(2)
    rest = sum((leaf * gradient).sum() for leaf, gradient in zip(floats(first), above, strict=True))
    if rest.requires_grad:  # where the first memory is learned
        rest.backward()
    for parameter, expected in zip(network.parameters(), whole, strict=True):
        assert_close(parameter.grad, expected, 1e-9)


# token Turing machines


def test_ttm_has_a_memory_of_fixed_size_and_none_without_slots() -> None:
    network, x = noisy(TTM(D, **SMALL, slots=6)), inputs(2, T, D)
    assert network(x)[1]["memory"].shape == network(x.repeat(1, 5, 1))[1]["memory"].shape == (2, 6, 8)
    alone = noisy(TTM(D, **SMALL, slots=0))
    each = torch.cat([alone(part)[0] for part in x.split(1, 1)], 1)
    assert_close(alone(x)[0], each, 1e-12)
    assert not torch.allclose(network(x)[0][:, 1:], torch.cat([network(p)[0] for p in x.split(1, 1)], 1)[:, 1:])
