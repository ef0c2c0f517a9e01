"""Encoders: how one sample becomes a sequence of vectors. Pure functions of shapes; no parameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

from torch import Tensor

from clplat.errors import UsageError, suggestion

Shape = tuple[int, ...]


def _rows(shape: Shape) -> tuple[int, int] | None:
    if len(shape) == 3:
        C, H, W = shape
        return H, C * W
    return (shape[0], shape[1]) if len(shape) == 2 else None


def _pixels(shape: Shape) -> tuple[int, int] | None:
    return (prod(shape[-2:]), prod(shape[:-2])) if len(shape) in (2, 3) else None


def _vectors(shape: Shape) -> tuple[int, int] | None:
    return 1, prod(shape)


_shapes: dict[str, Callable[[Shape], tuple[int, int] | None]] = {"rows": _rows, "pixels": _pixels, "vectors": _vectors}


def encoded_shape(name: str, sample_shape: Sequence[int]) -> tuple[int, int]:
    """(T, D) that encoder ``name`` makes of one sample, or a :class:`UsageError` that lists the encoders that fit.

    Args:
        name: rows: an image (C, H, W) or (H, W) becomes T = H rows of D = C * W values, a sequence (T, D) stays as it
            is. pixels: an image becomes T = H * W steps of D = C values. vectors: any sample becomes T = 1 flat vector.
        sample_shape: shape of one sample, without the batch.
    """
    if name not in _shapes:
        raise UsageError(f"there is no encoder '{name}'.{suggestion(name, _shapes)}")
    shape = tuple(sample_shape)
    encoded = _shapes[name](shape)
    if encoded is None:
        fitting = ", ".join(other for other, encode_shape in _shapes.items() if encode_shape(shape) is not None)
        raise UsageError(
            f"encoder '{name}' needs samples of 2 or 3 dimensions (H, W) or (C, H, W), but these have shape {shape}; "
            f"fitting encoders: {fitting}"
        )
    return encoded


def encode(name: str, x: Tensor) -> Tensor:
    """Encode a batch (B, *sample_shape) as ``x_BTD``; see :func:`encoded_shape`."""
    T, D = encoded_shape(name, x.shape[1:])
    if x.ndim == 4 and name != "vectors":  # channels come behind rows and pixels
        x = x.permute(0, 2, 1, 3) if name == "rows" else x.permute(0, 2, 3, 1)
    return x.reshape(len(x), T, D)
