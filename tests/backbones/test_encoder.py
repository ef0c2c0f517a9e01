"""Encoders and readouts on small numbers, their sizes, and what they refuse."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from clplat.backbones.encoder import encode, encoded_shape
from clplat.backbones.readout import flatten, last, mean, read, readout_size
from clplat.errors import UsageError

from .helpers import assert_close, inputs

IMAGE = torch.arange(2 * 2 * 2 * 3).reshape(2, 2, 2, 3).float()  # B, C, H, W


@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("rows", [[0, 1, 2, 6, 7, 8], [3, 4, 5, 9, 10, 11]]),
        ("pixels", [[0, 6], [1, 7], [2, 8], [3, 9], [4, 10], [5, 11]]),
        ("vectors", [list(range(12))]),
    ],
)
def test_images(name: str, first: list[list[int]]) -> None:
    encoded = encode(name, IMAGE)
    assert encoded[0].tolist() == first
    assert encoded[1].tolist() == [[value + 12 for value in row] for row in first]


@pytest.mark.parametrize("name", ["rows", "pixels", "vectors"])
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
    for name in ("rows", "pixels", "vectors"):
        assert torch.equal(encode(name, x), encode(name, x[:, 0]))


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
