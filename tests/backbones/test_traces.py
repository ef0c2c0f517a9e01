"""minGRU, minLSTM and fast and forgetful memory: their scans against the papers' formulas."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as nnf
from torch import Tensor

from clplat.backbones.base import reference_form
from clplat.backbones.rnn.ffm import Traces
from clplat.backbones.rnn.min_rnn import MinGRUMixer, MinLSTMMixer, MinMixer, positive_part
from clplat.errors import UsageError

from .helpers import assert_close, inputs


def identity_out(mixer: MinMixer) -> MinMixer:
    """Its output map made the identity, so that y is h."""
    with torch.no_grad():
        mixer.out.weight.copy_(torch.eye(mixer.inner))
        mixer.out.bias.zero_()
    return mixer.double()


def in_logarithms(log_keep: Tensor, log_add: Tensor) -> Tensor:
    """The paper's scan: ``h = exp(A + logcumsumexp(log b - A))`` with A the sums of log a."""
    sums = log_keep.cumsum(1)
    return (sums + torch.logcumsumexp(log_add - sums, 1)).exp()


def log_positive_part(x: Tensor) -> Tensor:
    return torch.where(x >= 0, (nnf.relu(x) + 0.5).log(), -nnf.softplus(-x))


def test_min_gru_is_the_papers_form_in_logarithms() -> None:
    mixer, x = identity_out(MinGRUMixer(6, 1.0, True, 4)), inputs(2, 13, 6)
    value, update = mixer.maps(x).chunk(2, -1)
    expected = in_logarithms(-nnf.softplus(update), log_positive_part(value) - nnf.softplus(-update))
    assert_close(mixer(x)[0], expected, 1e-10)


def test_min_lstm_is_the_papers_form_in_logarithms() -> None:
    mixer, x = identity_out(MinLSTMMixer(6, 1.0, True, 4)), inputs(2, 13, 6)
    value, forget, enter = mixer.maps(x).chunk(3, -1)
    apart = nnf.softplus(-forget) - nnf.softplus(-enter)
    expected = in_logarithms(-nnf.softplus(apart), log_positive_part(value) - nnf.softplus(-apart))
    assert_close(mixer(x)[0], expected, 1e-10)


@pytest.mark.parametrize("kind", [MinGRUMixer, MinLSTMMixer])
def test_states_are_weighted_means(kind: type[MinMixer]) -> None:
    """keep + add = 1, also where both of the LSTM's gates underflow, so a constant stays what it is."""
    mixer = kind(4, 1.0, False, 4).double()
    for size in (1.0, 1e4):
        maps = [size * inputs(2, 9, 4, seed=i) for i in range(mixer.gates)]
        keep, add = mixer.gate(maps)
        assert_close(keep + add, torch.ones_like(keep), 1e-12)
        assert keep.min() >= 0
        assert add.min() >= 0
    keep, add = MinLSTMMixer(4, 1.0, False, 4).gate([torch.full((1,), -500.0), torch.full((1,), -500.0)])
    assert keep.item() == add.item() == 0.5


def test_min_lstm_with_equal_gates_is_min_gru_at_one_half() -> None:
    gru, lstm = (identity_out(kind(3, 1.0, False, 4)) for kind in (MinGRUMixer, MinLSTMMixer))
    with torch.no_grad():
        for mixer in (gru, lstm):
            mixer.maps.weight.zero_()
            mixer.maps.bias.zero_()
            mixer.maps.weight[:3] = torch.eye(3)
    x = inputs(2, 6, 3)
    assert_close(lstm(x)[0], gru(x)[0], 1e-12)
    assert_close(gru(x)[0][:, 1], 0.25 * x[:, 0] + 0.5 * x[:, 1], 1e-12)


def test_positive_part() -> None:
    x = torch.tensor([-2.0, 0.0, 3.0]).double()
    assert_close(positive_part(x), torch.tensor([1 / (1 + math.exp(2)), 0.5, 3.5], dtype=torch.float64), 1e-12)


# fast and forgetful memory


def test_traces_decay_and_turn() -> None:
    mixer, T = Traces(3, 4, 2, 64, 8).double(), 50
    x = torch.zeros(1, T, 3).double()
    x[:, 0] = 1
    with torch.no_grad():
        mixer.frequency.copy_(torch.tensor([0.3, 2.0]))
        mixer.maps.bias.zero_()
    value, enter = mixer.maps(x[:, 0]).split(mixer.split, -1)[:2]
    impulse = (value * enter.sigmoid()).flatten()
    state = None
    for t in range(T):
        _, state = mixer(x[:, t : t + 1], state)
        size = impulse[:, None] * (mixer.decay[:, None] * t).exp()
        expected = torch.stack([size * (mixer.frequency * t).cos(), size * (mixer.frequency * t).sin()], -1)
        assert_close(state["trace"][0], expected, 1e-12)


def test_traces_are_the_loop_over_a_thousand_steps_in_single_precision() -> None:
    torch.manual_seed(0)
    mixer, x = Traces(4, 5, 3, 1024, 64), inputs(2, 1000, 4, dtype=torch.float32)
    state = {"trace": inputs(2, 5, 3, 2, seed=2, dtype=torch.float32)}
    y, after = mixer(x, state)
    with reference_form():
        y_loop, after_loop = mixer(x, state)
    assert_close(y, y_loop, 1e-5)
    assert_close(after["trace"], after_loop["trace"], 1e-5)


def test_traces_begin_as_in_the_paper() -> None:
    mixer = Traces(3, 6, 4, 1024, 64)
    assert_close((1024 * mixer.decay[-1]).exp(), torch.tensor(0.01), 1e-4)
    assert mixer.decay.diff().min() > 0
    assert_close(2 * math.pi / mixer.frequency[[0, -1]].detach(), torch.tensor([1.0, 1024.0]), 1e-2)
    for horizon in (2, 30_000):
        assert Traces(3, 6, 4, horizon, 64).decay.max() < 0
    with pytest.raises(UsageError, match="horizon"):
        Traces(3, 6, 4, 40_000, 64)


def test_a_row_that_would_grow_stays() -> None:
    mixer = Traces(3, 2, 1, 64, 8).double()
    with torch.no_grad():
        mixer.decay.fill_(0.5)
        mixer.frequency.zero_()
    state = {"trace": torch.ones(1, 2, 1, 2).double()}
    mask_BT = torch.ones(1, 100, dtype=torch.bool)
    with torch.no_grad():
        mixer.maps.weight.zero_()
        mixer.maps.bias.zero_()
    _, after = mixer(torch.zeros(1, 100, 3).double(), state, mask_BT=mask_BT)
    assert_close(after["trace"], state["trace"], 1e-5)
