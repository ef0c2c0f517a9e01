"""Encoders and readouts on small numbers, their sizes, and what they refuse."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from clplat.backbones.encoder import Encoder, encode, encoded_shape, patch_side
from clplat.backbones.readout import flatten, last, mean, read, readout_size
from clplat.errors import UsageError

from .helpers import assert_close, inputs

IMAGE = torch.arange(2 * 2 * 2 * 3).reshape(2, 2, 2, 3).float()  # B, C, H, W


@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("rows", [[0, 1, 2, 6, 7, 8], [3, 4, 5, 9, 10, 11]]),
        ("pixels", [[0, 6], [1, 7], [2, 8], [3, 9], [4, 10], [5, 11]]),
        ("patches", [[0, 6], [1, 7], [2, 8], [3, 9], [4, 10], [5, 11]]),
        ("image", [list(range(12))]),
        ("vectors", [list(range(12))]),
    ],
)
def test_images(name: str, first: list[list[int]]) -> None:
    encoded = encode(name, IMAGE)
    assert encoded[0].tolist() == first
    assert encoded[1].tolist() == [[value + 12 for value in row] for row in first]


@pytest.mark.parametrize("name", ["rows", "pixels", "patches", "image", "vectors"])
@pytest.mark.parametrize("shape", [(4,), (4, 3), (1, 4, 3), (3, 4, 5), (2, 3, 4, 5)])
@pytest.mark.parametrize("batch", [0, 2])
def test_shape_is_what_encode_makes(name: str, shape: tuple[int, ...], batch: int) -> None:
    x = inputs(batch, *shape)
    if len(shape) not in (2, 3) and name != "vectors":
        with pytest.raises(UsageError, match="fitting encoders: vectors"):
            encoded_shape(name, shape)
        with pytest.raises(UsageError, match="fitting encoders: vectors"):
            encode(name, x)
        return
    assert encode(name, x).shape == (batch, *encoded_shape(name, shape))
    assert_close(encode(name, x).sum(), x.sum(), 1e-10)


def test_a_sequence_of_frames_stays() -> None:
    x = inputs(2, 7, 5)
    assert torch.equal(encode("rows", x), x)


def test_a_gray_image_reads_alike_with_and_without_its_channel() -> None:
    x = inputs(2, 1, 8, 8)
    for name in ("rows", "pixels", "patches", "image", "vectors"):
        assert torch.equal(encode(name, x), encode(name, x[:, 0]))


@pytest.mark.parametrize(("sides", "p"), [((28, 28), 4), ((32, 48), 4), ((9, 6), 3), ((10, 8), 2), ((7, 8), 1)])
def test_patches_are_the_largest_up_to_four(sides: tuple[int, int], p: int) -> None:
    assert patch_side(*sides) == p


def test_patches_are_those_of_a_convolution() -> None:
    """A linear map of each patch is a convolution with its stride: channels, then rows, then columns of a patch."""
    x, kernel = inputs(2, 3, 8, 12), inputs(5, 3, 4, 4, seed=2)
    patches = encode("patches", x)
    assert patches.shape == (2, 6, 48)
    expected = torch.nn.functional.conv2d(x, kernel, stride=4).flatten(2).mT
    assert_close(patches @ kernel.flatten(1).mT, expected, 1e-12)


@pytest.mark.parametrize("name", ["rows", "pixels", "patches", "image", "vectors"])
def test_an_encoder_as_a_module_is_the_function(name: str) -> None:
    encoder, x = Encoder(name, (3, 8, 8)), inputs(2, 3, 8, 8)
    assert torch.equal(encoder(x), encode(name, x))
    assert encoder.shape == encoded_shape(name, (3, 8, 8))
    assert not encoder.state_dict()
    assert f"{name}, (3, 8, 8) -> " in repr(encoder)


@pytest.mark.parametrize("dtype", [torch.long, torch.int32, torch.uint8])
@pytest.mark.parametrize("batch", [0, 2])
def test_tokens(dtype: torch.dtype, batch: int) -> None:
    encoder = Encoder("tokens", (5,), vocabulary=7, dim=3)
    x = torch.tensor([[0, 6, 2, 2, 1], [5, 4, 3, 2, 1]][:batch], dtype=dtype).reshape(batch, 5)
    y = encoder(x)
    assert encoder.shape == (5, 3)
    assert y.shape == (batch, 5, 3)
    for b in range(batch):
        for t in range(5):
            assert torch.equal(y[b, t], encoder.embedding.weight[int(x[b, t])])
    y.sum().backward()
    assert [name for name, _ in encoder.named_parameters()] == ["embedding.weight"]
    assert encoder.embedding.weight.grad.sum() == 15 * batch


@pytest.mark.parametrize(
    ("name", "shape", "vocabulary", "message"),
    [
        ("tokens", (5,), None, "tokens of shape.*have shape.*fitting encoders: vectors"),
        ("rows", (5,), 7, "are tokens of shape.*fitting encoders: tokens"),
        ("vectors", (5,), 7, "fitting encoders: tokens"),
        ("tokens", (5, 2), 7, "fitting encoders: none"),
        ("token", (5,), 7, "Did you mean 'tokens'"),
        ("tokens", (5,), 0, "vocabulary"),
    ],
)
def test_tokens_and_values_are_told_apart(
    name: str, shape: tuple[int, ...], vocabulary: int | None, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        Encoder(name, shape, vocabulary=vocabulary)


def test_unknown_names_are_answered_with_a_suggestion() -> None:
    with pytest.raises(UsageError, match="Did you mean 'rows'"):
        encoded_shape("row", (8, 8))
    with pytest.raises(UsageError, match="Did you mean 'flatten'"):
        readout_size("flaten", 8, 8)
    with pytest.raises(UsageError, match="Did you mean 'last'"):
        read("lost", IMAGE[0])


def test_readouts_without_padding() -> None:
    y = inputs(2, 4, 3)
    assert torch.equal(last(y), y[:, 3])
    assert_close(mean(y), (y[:, 0] + y[:, 1] + y[:, 2] + y[:, 3]) / 4, 1e-12)
    assert flatten(y)[1].tolist() == [value for step in y[1].tolist() for value in step]


def test_readouts_skip_padding() -> None:
    y, mask = inputs(3, 4, 2), torch.tensor([[1, 1, 0, 0], [0, 1, 0, 1], [0, 0, 0, 0]]).bool()
    y = y.masked_fill(~mask[..., None], torch.nan)
    zero = torch.zeros(2, dtype=y.dtype)
    assert_close(last(y, mask), torch.stack([y[0, 1], y[1, 3], zero]), 1e-12)
    assert_close(mean(y, mask), torch.stack([y[0, :2].mean(0), (y[1, 1] + y[1, 3]) / 2, zero]), 1e-12)
    assert_close(flatten(y, mask), y.nan_to_num(0).reshape(3, 8), 1e-12)


@pytest.mark.parametrize(("name", "function"), [("last", last), ("mean", mean), ("flatten", flatten)])
@pytest.mark.parametrize("batch", [0, 2])
def test_readouts_by_name(name: str, function: Callable[..., Tensor], batch: int) -> None:
    y = inputs(batch, 4, 3)
    for mask in (None, torch.ones(batch, 4, dtype=torch.bool)):
        assert read(name, y, mask).shape == (batch, readout_size(name, 4, 3))
        assert_close(read(name, y, mask), function(y), 1e-12)
