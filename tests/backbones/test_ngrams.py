"""N-gram heads: against counting in Python, in both forms, with padding and resets, and in pieces."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from clplat.backbones.base import reference_form, state_tensors
from clplat.backbones.linear.linear_transformer import LinearTransformer
from clplat.backbones.ops.ngrams import after_ngrams, after_ngrams_loop
from clplat.backbones.rnn.min_rnn import MinGRU
from clplat.errors import UsageError
from clplat.metrics import in_context

from .helpers import FLAGS, assert_close, assert_states_close, at, flags, inputs

N, B, T, V = 3, 4, 24, 3


def tokens(seed: int = 0) -> Tensor:
    return torch.randint(V, (B, T), generator=torch.Generator().manual_seed(seed))


def whole(x_BT: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Nothing carried, one sequence, no padding."""
    none_BT = torch.zeros(x_BT.shape, dtype=torch.bool)
    return none_BT[:, :0], none_BT, ~none_BT


def test_they_average_what_a_count_in_python_finds() -> None:
    x_BT, h_BTE = tokens(), inputs(B, T, 5)
    found_BNTE = after_ngrams(x_BT[..., None].double(), h_BTE, *whole(x_BT), orders=N)
    for b, row in enumerate(x_BT.tolist()):
        for t in range(T):
            for n in range(1, N + 1):
                last = row[t - n + 1 : t + 1]
                ends = [s for s in range(n - 1, t) if row[s - n + 1 : s + 1] == last] if t >= n - 1 else []
                wanted = torch.stack([h_BTE[b, s + 1] for s in ends]).mean(0) if ends else torch.zeros(5).double()
                assert_close(found_BNTE[b, n - 1, t], wanted, 1e-12)


def test_of_tokens_themselves_they_are_an_ngram_model() -> None:
    """What they average of one-hot tokens is the n-gram model of the context where the n-gram has occurred."""
    x_BT = tokens(1)
    one_BTV = nn.functional.one_hot(x_BT, V).double()
    found_BNTV = after_ngrams(one_BTV, one_BTV, *whole(x_BT), orders=2)
    for n in (1, 2):
        known_BT = found_BNTV[:, n - 1].sum(-1) > 0
        assert 0.5 < known_BT.double().mean() < 1
        model_BTV = in_context.ngram(x_BT, V, n + 1)
        assert_close(found_BNTV[:, n - 1][known_BT], model_BTV[known_BT], 1e-12)


@pytest.mark.parametrize("kind", FLAGS)
def test_both_forms_agree_and_padding_and_pieces_change_nothing(kind: str) -> None:
    torch.manual_seed(0)
    network = MinGRU(V, dim=6, layers=1, ngrams=N).double()
    x = nn.functional.one_hot(tokens(2), V).double()
    arguments = flags(kind, B, T)
    y, state = network(x, **arguments)
    with reference_form():
        y_loop, state_loop = network(x, **arguments)
    assert_close(y, y_loop, 1e-10)
    assert_states_close(state, state_loop, 1e-10)
    carried, pieces = None, []
    for piece in ((slice(0, 7)), slice(7, 8), slice(8, T)):
        part, carried = network(x[:, piece], carried, **at(arguments, (slice(None), piece)))
        pieces.append(part)
    assert_close(torch.cat(pieces, 1), y, 1e-10)


def test_sequences_and_padding_give_what_the_sequences_give_alone() -> None:
    x_BT, h_BTE = tokens(3), inputs(B, T, 5)
    reset_BT, mask_BT = (flags("reset+mask", B, T)[name] for name in ("reset_BT", "mask_BT"))
    given = (torch.zeros(B, 0, dtype=torch.bool), reset_BT, mask_BT)
    for form in (after_ngrams, after_ngrams_loop):
        found_BNTE = form(x_BT[..., None].double(), h_BTE, *given, orders=N)
        for b in range(B):
            number_T = reset_BT[b].long().cumsum(0)
            for number in number_T[mask_BT[b]].unique():
                rows = (number_T == number) & mask_BT[b]
                alone = after_ngrams(
                    x_BT[b : b + 1, rows, None].double(),
                    h_BTE[b : b + 1, rows],
                    *whole(x_BT[b : b + 1, rows]),
                    orders=N,
                )
                assert_close(found_BNTE[b : b + 1, :, rows], alone, 1e-12)


def test_layer_by_layer_is_the_whole_network() -> None:
    network = LinearTransformer(V, dim=8, heads=2, layers=2, ngrams=2).double()
    x = nn.functional.one_hot(tokens(4), V).double()
    h = network.enter(x)
    for number in range(network.layer_count):
        h = network.layer(number, h)
    assert_close(network.leave(h), network(x)[0], 1e-12)
    assert network.state_size(T) == sum(part.numel() for part in state_tensors(network(x)[1])) // B


def test_nonsense_is_refused() -> None:
    with pytest.raises(UsageError, match="ngrams must be 0 or the largest n, not -1"):
        MinGRU(V, ngrams=-1)
