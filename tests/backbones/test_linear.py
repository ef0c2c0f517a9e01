"""Rules of linear attention layers against formulas written in another way, and where one becomes another."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from clplat.backbones.base import State
from clplat.backbones.linear.delta_net import DeltaNet, DeltaRule
from clplat.backbones.linear.gated_delta_net import GatedDeltaNet, GatedDeltaRule
from clplat.backbones.linear.gla import ChannelDecay
from clplat.backbones.linear.memory import Normed, Output, Rule
from clplat.backbones.linear.retnet import Retention
from clplat.backbones.ops.delta_rule import unit
from clplat.errors import UsageError

from .helpers import assert_close, inputs

B, H, T, K, V = 2, 2, 11, 4, 3


def read(rule: Rule, q: Tensor, k: Tensor, v: Tensor, gates: Tensor | None = None) -> tuple[Tensor, State]:
    """What a rule reads from an empty memory."""
    gates = inputs(B, T, 0) if gates is None else gates
    state = rule.init_state(B, device=q.device, dtype=torch.float64)
    found: tuple[Tensor, State] = rule.double()(q, k, v, gates, state, None, None)
    return found


def qkv() -> tuple[Tensor, Tensor, Tensor]:
    return inputs(B, H, T, K, seed=1), inputs(B, H, T, K, seed=2), inputs(B, H, T, V, seed=3)


def test_retention_is_the_papers_complex_form() -> None:
    """Eq. 5-6: pairs of channels are complex numbers that turn with the position, and heads decay at their own pace."""
    q, k, v = qkv()
    y, _ = read(Retention(H, K, V, chunk=4), q, k, v)
    angle = 10000.0 ** (-torch.arange(K // 2).double() / (K // 2))
    age = torch.arange(T)[:, None] - torch.arange(T)
    as_complex = [torch.complex(*x.chunk(2, -1)) for x in (q, k)]
    turn = torch.polar(torch.ones(T, T, K // 2).double(), age[..., None] * angle)
    scores = torch.einsum("bhtk,bhjk,tjk->bhtj", as_complex[0], as_complex[1].conj(), turn).real / math.sqrt(K)
    for h, kept in enumerate((1 - 1 / 32, 1 - 1 / 64)):
        decay = (kept ** age.clamp(min=0).double()).tril()
        assert_close(y[:, h], (scores[:, h] * decay) @ v[:, h], 1e-10)


def test_gated_linear_attention_with_equal_gates_is_retention_without_positions() -> None:
    q, k, v = qkv()
    kept = 1 - 1 / 32
    logit = torch.tensor(kept**16).logit().item()  # of a gate that is kept after its 16th root
    y, _ = read(ChannelDecay(H, K, V, chunk=4), q, k, v, torch.full((B, T, H * K), logit, dtype=torch.float64))
    age = torch.arange(T)[:, None] - torch.arange(T)
    expected = ((q @ k.mT) * (kept ** age.clamp(min=0).double()).tril()) @ v
    assert_close(y, expected, 1e-6)


def test_gated_delta_rule_without_decay_is_the_delta_rule() -> None:
    q, k, v = qkv()
    b = inputs(B, T, H, seed=4)
    rule = GatedDeltaRule(H, K, V, chunk=4)
    y, _ = read(rule, q, k, v, torch.cat([b, torch.full_like(b, -1e3)], -1))
    expected, _ = read(DeltaRule(H, K, V, chunk=4), q, k, v, b)
    assert_close(y, expected, 1e-12)
    # and with a strong one only the present step is left
    rule = GatedDeltaRule(H, K, V, chunk=4)
    y, _ = read(rule, q, k, v, torch.cat([b, torch.full_like(b, 1e6)], -1))
    alone = (unit(q) * unit(k)).sum(-1, keepdim=True) * b.sigmoid().mT[..., None] * v
    assert_close(y, alone, 1e-12)


def test_gated_delta_rule_starts_with_the_rates_of_mamba_2() -> None:
    rule = GatedDeltaRule(1000, 1, 1)
    rate, step = rule.rate.exp(), torch.nn.functional.softplus(rule.offset)
    assert 1 <= rate.min() < 1.2
    assert 15.8 < rate.max() <= 16
    assert 0.00099 < step.min() < 0.0012
    assert 0.085 < step.max() < 0.101
    assert 0.0085 < step.log().mean().exp() < 0.0118  # log-uniform: the middle is 0.01


def test_negative_eigenvalues_count_parity() -> None:
    """With b = 2 a step reflects what its key holds, so that the sign of what is read is the parity of the steps."""
    rule = GatedDeltaRule(1, 2, 1, negative=True, chunk=4).double()
    steps = torch.randint(2, (64, T), generator=torch.Generator().manual_seed(1))
    key = torch.tensor([1.0, 0.0]).double().expand(64, 1, T, 2)
    state = {"S": torch.tensor([[1.0], [0.0]]).double().expand(64, 1, 2, 1)}
    gates = torch.stack([torch.where(steps == 1, 50.0, -50.0), torch.full(steps.shape, -1e3)], -1).double()
    y, _ = rule(key, key, torch.zeros(64, 1, T, 1).double(), gates, state, None, None)
    parity = 1 - 2 * (steps.cumsum(1) % 2)
    assert_close(y[:, 0, :, 0], parity.double(), 1e-4)


@pytest.mark.parametrize("normed", ["each", "all", "none"])
def test_output_is_normalised_and_gated(normed: Normed) -> None:
    torch.manual_seed(0)
    output = Output(8, Retention(H, 4, 6), normed=normed).double()
    x, read = inputs(B, T, 8), inputs(B, H, T, 6)
    y = read.transpose(1, 2)
    over = {"each": (-1,), "all": (-2, -1), "none": ()}[normed]
    scale = (y.square().mean(over, keepdim=True) + 1e-5).sqrt() if over else 1
    gate = x @ output.gate.weight.T + output.gate.bias
    expected = output.out((y / scale).flatten(2) * gate * gate.sigmoid())
    assert_close(output(x, read), expected, 1e-12)
    if over:
        assert_close(output(x, 100 * read), expected, 1e-4)


def test_convolution_reaches_back_over_its_width_only() -> None:
    torch.manual_seed(0)
    plain, convolved = DeltaNet(5, dim=8, heads=2), DeltaNet(5, dim=8, heads=2, conv=3)
    assert "convolution" not in plain.init_state(1)[0]
    assert convolved.init_state(1)[0]["convolution"]["inputs"].shape == (1, 2, 24)
    memory = convolved.blocks[0].mixer
    x = inputs(1, 9, 8, dtype=torch.float32)
    _, state = memory(x)
    changed = x.clone()
    changed[:, -3] += 1
    _, state_changed = memory(changed)
    assert torch.equal(state_changed["convolution"]["inputs"], state["convolution"]["inputs"])
    changed[:, -2] += 1
    _, state_changed = memory(changed)
    assert not torch.equal(state_changed["convolution"]["inputs"], state["convolution"]["inputs"])


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UsageError, match="multiple of heads"):
        DeltaNet(5, dim=10, heads=4)
    with pytest.raises(UsageError, match=r"1\.3 \* dim 8"):
        GatedDeltaNet(5, dim=8, heads=4, expand=1.3)
    with pytest.raises(UsageError, match="conv must be"):
        DeltaNet(5, conv=-1)
    with pytest.raises(UsageError, match="chunk must be"):
        DeltaNet(5, chunk=0)
