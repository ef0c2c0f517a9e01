"""What recurrent networks are made for, learned in small: a task that one of them solves and another does not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as nnf
from torch import Generator, Tensor, nn

from clplat.backbones.base import Backbone
from clplat.backbones.linear.linear_transformer import LinearTransformer
from clplat.backbones.mlp import MLP
from clplat.backbones.rnn.ffm import FFM
from clplat.backbones.rnn.flashrnn import FlashRNN
from clplat.backbones.rnn.lem import LEM
from clplat.backbones.rnn.lstm import LSTM
from clplat.backbones.rnn.min_rnn import MinGRU
from clplat.backbones.rnn.pararnn import ParaRNN
from clplat.backbones.rnn.wrnn import WaveRNN

pytestmark = pytest.mark.slow
Task = Callable[[Generator], tuple[Tensor, Tensor]]  # x (B, T, D), and targets (B, T), NaN where none


def learned(network: Backbone | nn.Module, task: Task, classes: int, steps: int, lr: float) -> float:
    """After Adam on fresh sequences: accuracy in the second half of new ones, or without classes the mean squared error
    there."""
    torch.manual_seed(1)
    head = nn.Linear(network.output_size, max(classes, 1))
    weights = [*network.parameters(), *head.parameters()]
    optimizer, source = torch.optim.Adam(weights, lr), torch.Generator().manual_seed(0)
    for _ in range(steps):
        x, y = task(source)
        asked = ~y.isnan()
        out = head(network(x)[0])[asked]
        loss = nnf.cross_entropy(out, y[asked].long()) if classes else nnf.mse_loss(out[:, 0], y[asked])
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
    with torch.no_grad():
        x, y = task(torch.Generator().manual_seed(9))
        asked = ~y.isnan() & (torch.arange(y.shape[1]) >= y.shape[1] // 2)
        out = head(network(x)[0])[asked]
        found = (out.argmax(-1) == y[asked]).float() if classes else (out[:, 0] - y[asked]).square()
    return found.mean().item()


def copying(source: Generator) -> tuple[Tensor, Tensor]:
    """Three symbols of four, ten empty steps, then the symbols are asked for (Graves et al. 2014, section 4.1)."""
    symbols = torch.randint(1, 5, (64, 3), generator=source)
    x, y = torch.zeros(64, 16, 2), torch.full((64, 16), torch.nan)
    x[:, :3, 0], x[:, 13:, 1], y[:, 13:] = symbols / 4, 1.0, symbols - 1.0
    return x, y


def adding(source: Generator) -> tuple[Tensor, Tensor]:
    """The sum of two marked numbers of thirty (Hochreiter & Schmidhuber 1997, section 5.4)."""
    values, marks = torch.rand(64, 30, generator=source), torch.zeros(64, 30)
    for half in (0, 15):
        marks[torch.arange(64), half + torch.randint(0, 15, (64,), generator=source)] = 1
    y = torch.full((64, 30), torch.nan)
    y[:, -1] = (values * marks).sum(1)
    return torch.stack([values, marks], -1), y


def parity(source: Generator) -> tuple[Tensor, Tensor]:
    """Whether the ones so far are odd in number."""
    bits = torch.randint(0, 2, (64, 16), generator=source)
    return (2.0 * bits - 1)[..., None], (bits.cumsum(1) % 2).float()


def recalling(source: Generator) -> tuple[Tensor, Tensor]:
    """The symbol of four steps ago."""
    symbols = torch.randint(0, 4, (64, 24), generator=source)
    y = torch.full((64, 24), torch.nan)
    y[:, 4:] = symbols[:, :-4].float()
    return nnf.one_hot(symbols, 4).float(), y


class IdentityRNN(nn.Module):
    """Rectifiers that begin with the identity as recurrence (Le, Jaitly & Hinton 2015, arXiv 1504.00941)."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.output_size, self.rnn = hidden, nn.RNN(inputs, hidden, nonlinearity="relu", batch_first=True)
        nn.init.eye_(self.rnn.weight_hh_l0)
        nn.init.normal_(self.rnn.weight_ih_l0, std=1e-3)
        nn.init.zeros_(self.rnn.bias_ih_l0)
        nn.init.zeros_(self.rnn.bias_hh_l0)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        found: tuple[Tensor, Tensor] = self.rnn(x)
        return found


def made(kind: Callable[..., nn.Module], *sizes: int, **options: object) -> nn.Module:
    torch.manual_seed(0)
    return kind(*sizes, **options)


def test_waves_copy_what_an_identity_network_does_not() -> None:
    waves, identity = made(WaveRNN, 2, hidden=96), made(IdentityRNN, 2, 96)
    assert sum(p.numel() for p in waves.parameters()) < 400
    assert learned(waves, copying, 4, 250, 3e-3) > 0.95
    assert learned(identity, copying, 4, 250, 3e-3) < 0.7


def test_lem_adds_before_an_lstm_of_its_size_does() -> None:
    lem, lstm = made(LEM, 2, hidden=24), made(LSTM, 2, hidden=24)
    assert sum(p.numel() for p in lem.parameters()) == sum(p.numel() for p in lstm.parameters())
    assert learned(lem, adding, 0, 300, 1e-2) < 0.02
    assert learned(lstm, adding, 0, 300, 1e-2) > 0.05  # the variance of the sum is 1/6


def test_states_are_tracked_by_recurrences_that_read_their_state() -> None:
    assert learned(made(FlashRNN, 1, hidden=16, heads=2), parity, 2, 300, 1e-2) > 0.95
    assert learned(made(LinearTransformer, 1, dim=16), parity, 2, 300, 1e-2) < 0.8


def test_a_parallel_gru_tracks_what_a_linear_recurrence_does_not() -> None:
    """The loop is the same function, and quicker for networks and sequences of this size."""
    para, linear = made(ParaRNN, 1, dim=16, parallel="loop"), made(MinGRU, 1, dim=16)
    assert learned(para, parity, 2, 300, 1e-2) > 0.95
    assert learned(linear, parity, 2, 300, 1e-2) < 0.8


def test_traces_tell_the_lag() -> None:
    assert learned(made(FFM, 4, dim=32, layers=1), recalling, 4, 300, 5e-3) > 0.95
    assert learned(made(MLP, 4, hidden=64), recalling, 4, 100, 5e-3) < 0.35
