"""The cells of recurrent networks against their papers' formulas, and what each is made for."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from clplat.backbones.base import reference_form
from clplat.backbones.rnn.flashrnn import FlashRNN
from clplat.backbones.rnn.leaky import LeakyRNN
from clplat.backbones.rnn.lem import LEM
from clplat.backbones.rnn.lstm import LSTM, Ablated
from clplat.backbones.rnn.wrnn import WaveRNN
from clplat.errors import UsageError

from .helpers import assert_close, inputs

VARIANTS = ("vanilla", "nig", "nfg", "nog", "niaf", "noaf", "cifg", "fgr")


def rows(network: nn.Module, names: str) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    """By gate, W, R and the sum of the biases of the only layer."""
    ih, hh = network.ih[0], network.hh[0]
    parts = [m.chunk(len(names)) for m in (ih.weight, hh.weight, ih.bias + hh.bias)]
    return dict(zip(names, zip(*parts, strict=True), strict=True))


# LSTM and its variants


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_are_the_equations_of_the_study(variant: str) -> None:
    H, T = 4, 7
    network = LSTM(3, variant=variant, hidden=H).double()
    names = {"nig": "fgo", "nfg": "igo", "cifg": "igo", "nog": "ifg"}.get(variant, "ifgo")
    maps, cell = rows(network, names), network.cells[0]
    assert isinstance(cell, Ablated)
    assert set(cell.peephole) == set(names) - {"g"}
    x = inputs(2, T, 3)
    y, c = x.new_zeros(2, H), x.new_zeros(2, H)
    gates = {name: x.new_zeros(2, H) for name in "ifo"}
    expected = []
    for t in range(T):
        old_gates = torch.cat(list(gates.values()), -1)

        def pre(name: str, t: int = t, y: Tensor = y, old_gates: Tensor = old_gates) -> Tensor:
            W, R, b = maps[name]
            fed = 0
            if variant == "fgr" and name != "g":
                fed = old_gates @ cell.feedback.weight.chunk(3)["ifo".index(name)].T
            return x[:, t] @ W.T + y @ R.T + b + fed

        def gate(name: str, cell_state: Tensor) -> Tensor:
            return torch.sigmoid(pre(name) + cell.peephole[name] * cell_state)

        i = torch.ones_like(c) if variant == "nig" else gate("i", c)
        f = torch.ones_like(c) if variant == "nfg" else 1 - i if variant == "cifg" else gate("f", c)
        z = pre("g") if variant == "niaf" else torch.tanh(pre("g"))
        c = z * i + c * f
        o = torch.ones_like(c) if variant == "nog" else gate("o", c)
        y = (c if variant == "noaf" else torch.tanh(c)) * o
        gates = {"i": i, "f": f, "o": o}
        expected.append(y)
    found, state = network(x)
    assert_close(found, torch.stack(expected, 1), 1e-12)
    assert_close(state["cell"][:, 0], c, 1e-12)


def test_without_peepholes_vanilla_is_torchs() -> None:
    network, plain = LSTM(5, variant="vanilla", hidden=6, layers=2).double(), LSTM(5, hidden=6, layers=2).double()
    with torch.no_grad():
        for cell in network.cells:
            for peephole in cell.peephole.values():
                peephole.zero_()
    plain.load_state_dict({name: v for name, v in network.state_dict().items() if not name.startswith("cells")})
    x = inputs(3, 9, 5)
    assert_close(network(x)[0], plain(x)[0], 1e-12)


def test_units_of_a_cell_with_parameters_of_its_own() -> None:
    assert [units.size for units in LSTM(5, hidden=6).units()] == [6]
    named = dict(LSTM(5, hidden=6, variant="vanilla").named_parameters())
    made = [name for units in LSTM(5, hidden=6, variant="vanilla").units() for name in units.makes]
    assert sorted(made) == sorted(named)


# LEM


def test_lem_is_the_papers_step() -> None:
    network = LEM(3, hidden=4, step=0.7).double()
    ih, hh, read = network.ih[0], network.hh[0], network.cells[0].read
    x = inputs(2, 6, 3)
    y, z, expected = x.new_zeros(2, 4), x.new_zeros(2, 4), []
    for t in range(6):
        (V1, V2, Vz, Vy), (W1, W2, Wz) = (
            (x[:, t] @ ih.weight.T + ih.bias).chunk(4, 1),
            (y @ hh.weight.T + hh.bias).chunk(3, 1),
        )
        d, e = 0.7 / (1 + (-V1 - W1).exp()), 0.7 / (1 + (-V2 - W2).exp())
        z = (1 - d) * z + d * torch.tanh(Vz + Wz)
        y = (1 - e) * y + e * torch.tanh(Vy + z @ read.weight.T + read.bias)
        expected.append(y)
    assert_close(network(x)[0], torch.stack(expected, 1), 1e-12)


def test_lem_without_weights_forgets_by_half_a_step() -> None:
    network = LEM(3, hidden=2, step=0.6).double()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    state = {"hidden": inputs(2, 1, 2), "memory": inputs(2, 1, 2, seed=2)}
    _, after = network(inputs(2, 1, 3), state)
    assert_close(after["memory"], 0.7 * state["memory"], 1e-12)
    assert_close(after["hidden"], 0.7 * state["hidden"], 1e-12)
    with pytest.raises(UsageError, match="step"):
        LEM(3, step=1.5)


# wRNN


def test_a_fresh_wave_network_stores_its_last_inputs() -> None:
    n, T = 10, 8
    network = WaveRNN(1, hidden=3 * n, rings=3).double()
    x = inputs(2, T, 1).abs()
    y, _ = network(x)
    last = y[:, -1].unflatten(-1, (3, n))
    for j in range(T):
        assert torch.equal(last[:, :, -j % n], x[:, T - 1 - j].expand(2, 3))
    assert (last[:, :, 1 : n - T + 1] == 0).all()  # where nothing has come yet


def test_each_input_of_a_wave_network_has_a_ring() -> None:
    for size, rings in ((5, 2), (2, 5), (3, 3)):
        weight = WaveRNN(size, hidden=4 * rings, rings=rings).ih[0].weight.unflatten(0, (rings, 4))
        assert (weight[:, 1:] == 0).all()
        assert (weight[:, 0].sum(0) >= 1).all()
        assert (weight[:, 0].sum(1) >= 1).all()


def test_a_wave_network_is_the_papers_convolution() -> None:
    network = WaveRNN(2, hidden=8, rings=2).double()
    conv = nn.Conv1d(2, 2, 3, padding=1, padding_mode="circular").double()
    network.hh[0].conv.load_state_dict(conv.state_dict())
    x, h = inputs(2, 5, 2), torch.zeros(2, 8).double()
    for t in range(5):
        h = torch.relu(x[:, t] @ network.ih[0].weight.T + network.ih[0].bias + conv(h.view(2, 2, 4)).view(2, 8))
    assert_close(network(x)[0][:, -1], h, 1e-12)


# leaky network


def test_leaky_network_is_the_papers_step() -> None:
    network = LeakyRNN(3, hidden=4).double()
    with torch.no_grad():
        network.cells[0].tau.copy_(torch.tensor([0.2, 1.0, 2.0, 50.0]))  # below 1 counts as 1
    assert network.timescales()[0].tolist() == [1, 1, 2, 50]
    tau = torch.tensor([1.0, 1, 2, 50]).double()
    W = network.hh[0].weight - network.hh[0].weight.diag().diag()
    x, h, expected = inputs(2, 6, 3), torch.zeros(2, 4).double(), []
    for t in range(6):
        total = h @ W.T + network.hh[0].bias + x[:, t] @ network.ih[0].weight.T + network.ih[0].bias
        h = (1 - 1 / tau) * h + total / tau
        h = torch.where(h > 0, h, 0.01 * h)
        expected.append(h)
    assert_close(network(x)[0], torch.stack(expected, 1), 1e-12)


def test_a_leaky_neuron_alone_forgets_with_its_time_constant() -> None:
    network = LeakyRNN(1, hidden=1).double()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        network.cells[0].tau.fill_(20.0)
        network.hh[0].weight.fill_(3.0)  # itself, which it does not read
    y, _ = network(torch.zeros(1, 10, 1).double(), {"hidden": torch.ones(1, 1, 1).double()})
    assert_close(y.flatten(), 0.95 ** torch.arange(1, 11).double(), 1e-12)


# heads


def test_one_head_is_torchs_lstm_with_all_gradients() -> None:
    ours, theirs = FlashRNN(5, heads=1, hidden=6).double(), nn.LSTM(5, 6, batch_first=True).double()
    theirs.load_state_dict({f"{n.replace('.0.', '_')[3:]}_{n[:2]}_l0": v for n, v in ours.state_dict().items()})
    x, weight = inputs(3, 9, 5), inputs(3, 9, 6, seed=2)
    y, y_torch = ours(x)[0], theirs(x)[0]
    assert_close(y, y_torch, 1e-12)
    found = torch.autograd.grad((y * weight).sum(), [ours.ih[0].weight, ours.hh[0].weight, ours.hh[0].bias])
    expected = torch.autograd.grad(
        (y_torch * weight).sum(), [theirs.weight_ih_l0, theirs.weight_hh_l0, theirs.bias_hh_l0]
    )
    for a, b in zip(found, expected, strict=True):
        assert_close(a, b, 1e-10)


@pytest.mark.parametrize("cell", ["lstm", "gru", "elman", "slstm"])
def test_heads_are_a_full_matrix_without_the_blocks_between(cell: str) -> None:
    heads, size, hidden = 3, 2, 6
    split, full = (FlashRNN(5, cell=cell, heads=h, hidden=hidden).double() for h in (heads, 1))
    blocks = split.hh[0].weight.unflatten(0, (-1, heads, size))  # (G, heads, size, size)
    weight = torch.stack([torch.block_diag(*gate) for gate in blocks]).flatten(0, 1)
    full.load_state_dict({**split.state_dict(), "hh.0.weight": weight})
    x = inputs(2, 7, 5)
    assert_close(split(x)[0], full(x)[0], 1e-12)


def test_slstm_is_the_unstabilised_formula_where_that_can_be_computed() -> None:
    network = FlashRNN(3, cell="slstm", heads=2, hidden=4).double()
    ih, x = network.ih[0], inputs(2, 6, 3)
    h, c, n = (torch.zeros(2, 4).double() for _ in range(3))
    expected = []
    for t in range(6):
        i, f, z, o = (x[:, t] @ ih.weight.T + ih.bias + network.hh[0](h)).chunk(4, 1)
        c = f.sigmoid() * c + i.exp() * z.tanh()
        n = f.sigmoid() * n + i.exp()
        h = o.sigmoid() * c / n
        expected.append(h)
    y, state = network(x)
    assert_close(y, torch.stack(expected, 1), 1e-12)
    assert_close(state["normaliser"] * state["stabiliser"].exp(), n[:, None], 1e-12)


@pytest.mark.parametrize("size", [80.0, -80.0, 1e4])
def test_slstm_stays_finite_with_extreme_input_gates(size: float) -> None:
    network = FlashRNN(3, cell="slstm", heads=2, hidden=4)
    with torch.no_grad():
        network.ih[0].bias[:4] = size
    for form in ("plain", "loop"):
        x = inputs(2, 20, 3, dtype=torch.float32).requires_grad_()
        with reference_form() if form == "loop" else torch.enable_grad():
            y, state = network(x)
        y.sum().backward()
        assert torch.isfinite(y).all()
        assert y.abs().max() <= 1  # a weighted mean of tanh's
        assert state["normaliser"].min() >= 1
        assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize("network", [FlashRNN, WaveRNN])
def test_heads_and_rings_divide_the_width(network: type[nn.Module]) -> None:
    with pytest.raises(UsageError, match="multiple"):
        network(5, hidden=10)
