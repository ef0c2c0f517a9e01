"""State spaces: what the layers compute against their equations, what they reduce to, and what they are good for."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clplat.backbones.base import reference_form
from clplat.backbones.block import Stack
from clplat.backbones.ops.hippo import bilinear, legs
from clplat.backbones.ops.linear_system import complexes, respond, response, system_loop
from clplat.backbones.ops.scalar_decay import scalar_decay_loop
from clplat.backbones.ops.selective_scan import selective_scan_loop
from clplat.backbones.ssm.longhorn import Longhorn, OnlineRegression, step_size
from clplat.backbones.ssm.lssl import DenseSystems
from clplat.backbones.ssm.mamba import Mamba, SelectiveStateSpace, inverse_softplus
from clplat.backbones.ssm.s4d import DiagonalSystems
from clplat.backbones.ssm.s5 import SharedSystem
from clplat.backbones.ssm.spacetime import CompanionSystems

from .helpers import assert_close, inputs

# LSSL


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-8), (torch.float32, 1e-4)])
def test_lssl_convolution_is_its_recurrence_over_long_sequences(dtype: torch.dtype, tolerance: float) -> None:
    T, N = 512, 32
    A, B = legs(N)
    systems = bilinear(A.to(dtype), B.to(dtype), torch.tensor([1e-3, 1e-2, 1e-1], dtype=dtype))
    read, u = inputs(3, 1, N, dtype=dtype), inputs(2, T, 3, dtype=dtype)
    y, last = respond(u, None, response(*systems, read, T))
    y_loop, last_loop = system_loop(u, torch.zeros(2, 3, N, dtype=dtype), *systems, read)
    assert_close(y, y_loop, tolerance)
    assert_close(last, last_loop, tolerance)


def test_lssl_begins_as_legs() -> None:
    assert_close(DenseSystems(4, 8).matrix(torch.float32).double(), legs(8)[0], 1e-5)


def test_lssl_stays_stable_whatever_is_learned() -> None:
    torch.manual_seed(0)
    systems = DenseSystems(3, 8).double()
    with torch.no_grad():
        for parameter in systems.parameters():
            parameter.copy_(3 * torch.randn_like(parameter))
        A_DNN, _ = bilinear(systems.matrix(torch.float64), systems.write, systems.log_dt.exp())
    assert (torch.linalg.matrix_norm(A_DNN, 2) <= 1 + 1e-10).all()


def test_legs_remembers_the_past_better_than_random_systems() -> None:
    """The last 100 of 200 steps of smooth signals, read linearly from 16 states: the error in units of the variance."""

    def error(A: Tensor, B: Tensor) -> float:
        A_DNN, B_DN = bilinear(A, B, torch.tensor([0.02], dtype=torch.float64))
        _, last = respond(signals, None, response(A_DNN, B_DN, torch.zeros(1, 1, 16).double(), 200))
        past, states = signals[:, -100:, 0], last[:, 0]
        found = torch.linalg.lstsq(states[:800], past[:800]).solution
        return ((states[800:] @ found - past[800:]).square().mean() / past[800:].var()).item()

    source = torch.Generator().manual_seed(0)
    frequency, phase = (s * torch.rand(1200, 1, 5, generator=source, dtype=torch.float64) for s in (12.6, 6.3))
    signals = (frequency * torch.arange(200)[:, None] / 50 + phase).sin().sum(-1, keepdim=True)
    assert error(*legs(16)) < 0.02
    for seed in (1, 2, 3):
        A, B = inputs(16, 16, seed=seed), inputs(16, seed=seed + 9)
        A = A / 4 - torch.eye(16) * (torch.linalg.eigvals(A / 4).real.max() + 0.1)  # the slowest state: exp(-0.1 s)
        assert error(A, B) > 0.05


def test_a_finer_sampling_rate_with_half_the_step_gives_the_same() -> None:
    A, B = legs(8)
    read, t = inputs(1, 1, 8), torch.arange(400, dtype=torch.float64) / 200
    outputs = []
    for stride in (1, 2):
        u = (5 * t[::stride]).sin()[None, :, None]
        system = bilinear(A, B, torch.tensor([stride / 200], dtype=torch.float64))
        outputs.append(respond(u, None, response(*system, read, u.shape[1]))[0].flatten()[:: 3 - stride][-150:])
    assert (outputs[0] - outputs[1]).norm() < 0.02 * outputs[0].norm()


# S4D and S5


def test_s4d_is_its_equations() -> None:
    torch.manual_seed(0)
    layer, x = DiagonalSystems(3, 8).double(), inputs(2, 9, 3)
    found, state = layer(x)
    A = torch.complex(-layer.log_decay.exp(), layer.frequency)
    c = torch.complex(layer.read[..., 0], layer.read[..., 1])
    dt = layer.log_dt.exp()[:, None]
    y = torch.zeros(2, 9, 3, dtype=torch.float64)
    for t in range(9):
        for j in range(t + 1):  # the integral of exp(A s) over the step in which u was held, times what came after
            weight = (A * dt * j).exp() * ((A * dt).exp() - 1) / A
            y[:, t] += 2 * (c * weight).sum(-1).real * x[:, t - j]
    gate = F.gelu(y + layer.skip * x) @ layer.out.weight.T + layer.out.bias
    assert_close(found, gate[..., :3] * gate[..., 3:].sigmoid(), 1e-10)
    assert state["h"].shape == (2, 3, 8)


def test_s4d_begins_with_the_chosen_frequencies() -> None:
    for kind, second in (("lin", 3.1415927), ("inv", 8 / 3.1415927 * (8 / 3 - 1))):
        assert_close(DiagonalSystems(2, 8, kind).frequency[1, 1].detach(), torch.tensor(second), 1e-6)


def test_s5_with_one_channel_is_s4d() -> None:
    torch.manual_seed(0)
    one, other, x = SharedSystem(1, 8).double(), DiagonalSystems(1, 8).double(), inputs(2, 9, 1)
    with torch.no_grad():
        one.log_dt.copy_(other.log_dt.expand(4))
        for name in ("log_decay", "frequency"):
            getattr(other, name).copy_(getattr(one, name)[None])
        c = complexes(one.read).conj() * complexes(one.write.T)  # S4D has B = 1
        other.read.copy_(torch.view_as_real(c))
        other.skip.copy_(one.skip)
        # gelu(y) sigmoid(w gelu(y) + b) by the gated map of S4D
        other.out.weight.copy_(torch.stack([torch.ones(1), one.gate.weight[0]]))
        other.out.bias.copy_(torch.stack([torch.zeros(()), one.gate.bias[0]]))
    y, state = one(x)
    y_other, _ = other(x)
    assert_close(y, y_other, 1e-10)
    y_more, _ = one(x, state)
    assert_close(y_more, other(x, other(x)[1])[0], 1e-10)


# Mamba and its relatives


def lively(layer: nn.Module) -> nn.Module:
    """With larger steps than at the beginning, so that a short sequence shows what they do."""
    with torch.no_grad():
        layer.size.bias += 4
    return layer.double()


def test_mamba_is_its_equations() -> None:
    torch.manual_seed(0)
    layer, x = lively(SelectiveStateSpace(4, expand=2, state=3, conv=2, chunk=4)), inputs(2, 6, 4)
    found, _ = layer(x)
    u, z = (x @ layer.into.weight.T).split(8, -1)
    before = F.pad(u[:, :-1], (0, 0, 1, 0))
    w = layer.convolution.weight
    u = F.silu(w[0] * u + w[1] * before + layer.convolution.bias)
    r, k, q = (u @ layer.select.weight.T).split([1, 3, 3], -1)
    s = (1 + (r @ layer.size.weight.T + layer.size.bias).exp()).log()
    h, y = torch.zeros(2, 8, 3, dtype=torch.float64), []
    for t in range(6):
        h = (-s[:, t, :, None] * layer.log_rate.exp()).exp() * h + (s[:, t] * u[:, t])[..., None] * k[:, t, None]
        y.append((h * q[:, t, None]).sum(-1) + layer.skip * u[:, t])
    assert_close(found, (torch.stack(y, 1) * F.silu(z)) @ layer.out.weight.T, 1e-10)


def test_mamba_begins_as_published() -> None:
    torch.manual_seed(0)
    layer = SelectiveStateSpace(32, expand=2, state=16, conv=4, chunk=64)
    assert_close(layer.log_rate.exp()[5].detach(), torch.arange(1.0, 17), 1e-5)
    sizes = F.softplus(layer.size.bias)
    assert 1e-3 <= sizes.min() < 2e-3
    assert 5e-2 < sizes.max() <= 1e-1
    assert layer.rank == 2
    y = torch.tensor([1e-4, 0.1, 3.0])
    assert_close(F.softplus(inverse_softplus(y)), y, 1e-6)


def test_mamba2_recurrence_is_mambas_with_one_rate_for_all_states() -> None:
    B, T, H, N, V = 2, 7, 3, 4, 5
    x, s = inputs(B, T, H * V), inputs(B, T, H, seed=2).exp()
    k, q, S = inputs(B, T, N, seed=3), inputs(B, T, N, seed=4), inputs(B, H, N, V, seed=5)
    rate = inputs(H, seed=6).exp()
    wide = s.repeat_interleave(V, -1)
    A = -rate.repeat_interleave(V)[:, None]
    y, h = selective_scan_loop(x, wide, k, q, S.mT.flatten(1, 2), lambda s, k: (s * A).exp())
    heads = [part[:, None].expand(-1, H, -1, -1) for part in (q, k)]
    values = (wide * x).unflatten(-1, (H, V)).transpose(1, 2)
    y_heads, S = scalar_decay_loop(*heads, values, -(s * rate).mT, S)
    assert_close(y_heads.transpose(1, 2).flatten(2), y, 1e-12)
    assert_close(S.mT.flatten(1, 2), h, 1e-12)


def test_polar_states_keep_all_and_nothing() -> None:
    """How the last state depends on the first input, for fixed steps: s_1 k_1 in the first state, whatever T."""
    torch.manual_seed(0)
    layer = SelectiveStateSpace(4, expand=1, state=3, conv=1, chunk=4, ones=1, zeros=1).double()
    for T in (2, 10, 40):
        x, s = inputs(1, T, 4).requires_grad_(), 0.1 + inputs(1, T, 4, seed=2).abs()
        k, q = inputs(1, T, 5, seed=3), inputs(1, T, 5, seed=4)
        _, h = selective_scan_loop(x, s, k, q, torch.zeros(1, 4, 5).double(), layer.decay(torch.float64))
        for n in range(5):
            (slope,) = torch.autograd.grad(h[0, :, n].sum(), x, retain_graph=True)
            expected = (s[0, 0] * k[0, 0, n]).detach()
            if n == 0:
                assert_close(slope[0, 0], expected, 1e-12)
            elif n < 4:
                assert (slope[0, 0].abs() < expected.abs()).all()
                assert T < 40 or (slope[0, 0].abs() < 0.05 * expected.abs()).all()
            else:
                assert slope[0, :-1].abs().max() < 1e-3 * slope[0, -1].abs().min()


def test_without_polar_states_it_is_mamba() -> None:
    layer = SelectiveStateSpace(4, expand=2, state=3, conv=2, chunk=4)
    assert layer.state == 3
    s, k = inputs(2, 1, 1).abs(), inputs(2, 1, 3)
    assert_close(layer.decay(torch.float64)(s, k).detach(), (-s * layer.log_rate.exp()).exp().detach(), 1e-6)


# Longhorn


def test_longhorns_step_minimises_its_objective() -> None:
    """|h' - h|^2 + b (h' . k - x)^2 as least squares: rows of I and sqrt(b) k."""
    h, k, x, b = inputs(5), inputs(5, seed=2), inputs(1, seed=3), inputs(1, seed=4).exp()
    s = step_size(b, k)
    moved = h - s * (h @ k) * k + s * x * k
    rows, goal = torch.cat([torch.eye(5).double(), b.sqrt() * k[None]]), torch.cat([h, b.sqrt() * x])
    assert_close(moved, torch.linalg.lstsq(rows, goal).solution, 1e-10)
    certain = step_size(torch.tensor([1e12]).double(), k)
    moved = h - certain * (h @ k) * k + certain * x * k
    assert_close((moved @ k)[None], x, 1e-8)


def test_longhorn_with_keys_along_an_axis_takes_the_exact_step() -> None:
    """Then k k' is its own diagonal, and the scan does the regression itself: a full weight replaces what was held."""
    torch.manual_seed(0)
    layer = OnlineRegression(4, expand=1, state=3, conv=1, chunk=4).double()
    x = inputs(1, 6, 4)
    k = 2 * F.one_hot(torch.tensor([[0, 1, 0, 2, 1, 0]]), 3).double()
    s = layer.sizes(torch.full((1, 6, 4), 40.0).double(), k)  # b = 1
    assert_close(s, torch.full((1, 6, 4), 0.2, dtype=torch.float64), 1e-10)
    _, h = selective_scan_loop(x, s, k, k, torch.zeros(1, 4, 3).double(), layer.decay(torch.float64))
    exact = torch.zeros(4, 3, dtype=torch.float64)
    for t in range(6):
        d = s[0, t, 0]
        exact = exact @ (torch.eye(3).double() - d * k[0, t][:, None] * k[0, t]) + d * x[0, t][:, None] * k[0, t]
    assert_close(h[0], exact, 1e-12)


@pytest.mark.parametrize("size", [0.0, 1.0, 1e3, 1e8])
def test_longhorns_decay_lies_between_0_and_1(size: float) -> None:
    layer = OnlineRegression(4, expand=1, state=3, conv=1, chunk=4)
    k = size * inputs(2, 5, 3, dtype=torch.float32)
    factors = layer.decay(torch.float32)(layer.sizes(50 * inputs(2, 5, 4).float(), k)[..., None], k[..., None, :])
    assert (factors <= 1).all()
    assert (factors >= -1e-6).all()


def recall(batch: int, source: torch.Generator) -> tuple[Tensor, Tensor]:
    """Eight keys, each followed by one of four values; then the keys in another order, whose values are asked."""
    keys, asked = (torch.rand(batch, 8, generator=source).argsort(1) for _ in range(2))
    values = torch.randint(4, (batch, 8), generator=source)
    pairs = torch.stack([F.one_hot(keys, 12), F.one_hot(values + 8, 12)], 2).flatten(1, 2)
    return torch.cat([pairs, F.one_hot(keys.gather(1, asked), 12)], 1).float(), values.gather(1, asked)


@pytest.mark.slow
def test_longhorn_recalls_and_mamba_no_better() -> None:
    def accuracy(kind: type[Stack]) -> float:
        torch.manual_seed(0)
        source = torch.Generator().manual_seed(1)
        network, head = kind(12, dim=32, layers=1), nn.Linear(32, 4)
        optimizer = torch.optim.Adam([*network.parameters(), *head.parameters()], lr=0.01)
        for _ in range(300):
            x, y = recall(32, source)
            loss = F.cross_entropy(head(network(x)[0][:, 16:]).flatten(0, 1), y.flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        x, y = recall(256, source)
        return (head(network(x)[0][:, 16:]).argmax(-1) == y).float().mean().item()

    longhorn = accuracy(Longhorn)
    assert longhorn > 0.95
    assert longhorn > accuracy(Mamba) - 0.01


# SpaceTime


def autoregression(steps: int, noise: float, weights: list[float], seed: int = 0) -> Tensor:
    """``u_t = sum_i w_i u_{t-i} + noise``, after 200 steps from zeros."""
    shocks = noise * inputs(steps + 200, seed=seed)
    past = [0.0] * len(weights)
    for shock in shocks.tolist():
        past.append(sum(w * past[-1 - i] for i, w in enumerate(weights)) + shock)
    return torch.tensor(past[-steps:], dtype=torch.float64)


# two slow oscillations, one of them fast: roots 0.98 exp(+-0.5 i) and 0.95 exp(+-1.7 i)
OSCILLATIONS = [1.47525728, -1.44182106, 1.31724551, -0.866761]


def test_spacetime_learns_an_autoregression_up_to_its_noise() -> None:
    torch.manual_seed(0)
    layer, u = CompanionSystems(1, 4).double(), autoregression(2000, 1.0, OSCILLATIONS)
    optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=150, line_search_fn="strong_wolfe")

    def wrong(u: Tensor) -> Tensor:
        return (layer(u[None, :-1, None])[0][0, :, 0] - u[1:])[8:].square().mean()

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = wrong(u)
        loss.backward()
        return loss

    optimizer.step(closure)
    fresh = autoregression(2000, 1.0, OSCILLATIONS, seed=1)
    assert fresh.var() > 10
    assert wrong(fresh) < 1.05 * inputs(2200, seed=1)[200:].var()


def test_spacetime_forecasts_an_autoregression_by_feeding_back() -> None:
    """Outputs as inputs through the carried state, 100 steps beyond the end of what was read."""
    layer = CompanionSystems(1, 4).double()
    with torch.no_grad():
        layer.feedback.zero_()
        layer.skip.zero_()
        layer.write.copy_(torch.tensor([1.0, 0, 0, 0]))
        layer.read.copy_(torch.tensor(OSCILLATIONS))
    u = autoregression(100, 1.0, OSCILLATIONS)
    y, state = layer(u[None, :, None])
    forecast, past = [y[:, -1:]], u.tolist()
    for _ in range(100):
        past.append(sum(w * past[-1 - i] for i, w in enumerate(OSCILLATIONS)))
        y, state = layer(forecast[-1], state)
        forecast.append(y)
    assert_close(torch.cat(forecast, 1)[0, :100, 0], torch.tensor(past[100:]).double(), 1e-6)
    assert torch.tensor(past[-50:]).abs().max() > 0.1


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
def test_spacetimes_feedback_is_stable(size: float) -> None:
    """Without inputs nothing grows, however large the weights."""
    torch.manual_seed(0)
    layer = CompanionSystems(3, 5).double()
    with torch.no_grad():
        layer.feedback.copy_(size * inputs(3, 5))
        _, state = layer(torch.zeros(1, 300, 3).double(), {"x": inputs(1, 3, 5)})
        with reference_form():
            _, naive = layer(torch.zeros(1, 300, 3).double(), {"x": inputs(1, 3, 5)})
    assert_close(state["x"], naive["x"], 1e-9)
    assert state["x"].abs().max() < 5 * inputs(1, 3, 5).abs().max()
