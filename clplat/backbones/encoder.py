"""Encoders: how one sample becomes a sequence of vectors.

All but ``tokens`` are pure functions of shapes, :func:`encode`; :class:`Encoder` is any of them as a module.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import gcd, prod

from torch import Tensor, nn

from clplat.backbones.base import require
from clplat.errors import UsageError, suggestion

Shape = tuple[int, ...]
PATCH = 4  # largest side of a patch


def _rows(shape: Shape) -> tuple[int, int] | None:
    if len(shape) == 3:
        C, H, W = shape
        return H, C * W
    return (shape[0], shape[1]) if len(shape) == 2 else None


def _pixels(shape: Shape) -> tuple[int, int] | None:
    return (prod(shape[-2:]), prod(shape[:-2])) if len(shape) in (2, 3) else None


def _patches(shape: Shape) -> tuple[int, int] | None:
    if len(shape) not in (2, 3):
        return None
    area = patch_side(*shape[-2:]) ** 2
    return prod(shape[-2:]) // area, prod(shape[:-2]) * area


def _image(shape: Shape) -> tuple[int, int] | None:
    return (1, prod(shape)) if len(shape) in (2, 3) else None


def _vectors(shape: Shape) -> tuple[int, int] | None:
    return 1, prod(shape)


_shapes: dict[str, Callable[[Shape], tuple[int, int] | None]] = {
    "rows": _rows,
    "pixels": _pixels,
    "patches": _patches,
    "image": _image,
    "vectors": _vectors,
}
_names = (*_shapes, "tokens")


def patch_side(H: int, W: int) -> int:
    """The side p of the square patches that ``patches`` cuts: the largest number up to 4 that divides both sides."""
    return max(p for p in range(1, PATCH + 1) if gcd(H, W) % p == 0)


def encoded_shape(
    name: str, sample_shape: Sequence[int], *, vocabulary: int | None = None, dim: int = 64
) -> tuple[int, int]:
    """(T, D) that encoder ``name`` makes of one sample, or a :class:`UsageError` that lists the encoders that fit.

    Args:
        name: rows: an image (C, H, W) or (H, W) becomes T = H rows of D = C * W values, a sequence (T, D) stays as it
            is. pixels: an image becomes T = H * W steps of D = C values. patches: an image is cut into squares of
            side p (see :func:`patch_side`), T = H * W / p^2 of them, row by row, of D = C * p^2 values (Dosovitskiy et
            al. 2021, arXiv 2010.11929, section 3.1). image: an image becomes T = 1 vector, for networks that make an
            image of it again. vectors: any sample becomes T = 1 flat vector. tokens: T integers become vectors of
            D = ``dim`` values by a table that is learnt.
        sample_shape: shape of one sample, without the batch.
        vocabulary: number of tokens; None where samples are not tokens.
        dim: D of tokens.
    """
    if name not in _names:
        raise UsageError(f"there is no encoder '{name}'.{suggestion(name, _names)}")
    shape = tuple(sample_shape)
    encoded = _fit(name, shape, vocabulary, dim)
    if encoded is None:
        fitting = ", ".join(other for other in _names if _fit(other, shape, vocabulary, dim) is not None)
        needs = "tokens of shape (T,)" if name == "tokens" else "2 or 3 dimensions (H, W) or (C, H, W)"
        found = "have shape" if vocabulary is None else "are tokens of shape"
        raise UsageError(
            f"encoder '{name}' needs samples of {needs}, but these {found} {shape}; fitting encoders: "
            f"{fitting or 'none'}"
        )
    return encoded


def _fit(name: str, shape: Shape, vocabulary: int | None, dim: int) -> tuple[int, int] | None:
    """(T, D), or None where the encoder does not fit the samples."""
    if (name == "tokens") != (vocabulary is not None):
        return None
    if name == "tokens":
        return (shape[0], dim) if len(shape) == 1 else None
    return _shapes[name](shape)


def encode(name: str, x: Tensor) -> Tensor:
    """Encode a batch (B, *sample_shape) as ``x_BTD``; see :func:`encoded_shape`. Tokens need an :class:`Encoder`."""
    T, D = encoded_shape(name, x.shape[1:])
    if name == "patches":
        H, W = x.shape[-2:]
        p = patch_side(H, W)
        x = x.reshape(len(x), prod(x.shape[1:-2]), H // p, p, W // p, p).permute(0, 2, 4, 1, 3, 5)
    elif x.ndim == 4 and name in ("rows", "pixels"):  # channels come behind rows and pixels
        x = x.permute(0, 2, 1, 3) if name == "rows" else x.permute(0, 2, 3, 1)
    return x.reshape(len(x), T, D)


class Encoder(nn.Module):
    """An encoder with what it learns: (B, *sample_shape) -> ``x_BTD``.

    Only ``tokens`` learns anything, one vector for each token (B, T) -> (B, T, dim); see :func:`encoded_shape`.

    Args:
        name: rows, pixels, patches, image, vectors or tokens.
        sample_shape: shape of one sample, without the batch.
        vocabulary: number of tokens; None where samples are not tokens.
        dim: D of tokens.
    """

    def __init__(self, name: str, sample_shape: Sequence[int], *, vocabulary: int | None = None, dim: int = 64) -> None:
        super().__init__()
        require(vocabulary is None or vocabulary >= 1, f"vocabulary must be at least 1, not {vocabulary}")
        require(dim >= 1, f"dim must be at least 1, not {dim}")
        self.name, self.sample_shape = name, tuple(sample_shape)
        self.shape = encoded_shape(name, sample_shape, vocabulary=vocabulary, dim=dim)
        self.embedding = None if vocabulary is None else nn.Embedding(vocabulary, dim)

    def forward(self, x: Tensor) -> Tensor:
        return encode(self.name, x) if self.embedding is None else self.embedding(x.long())

    def extra_repr(self) -> str:
        return f"{self.name}, {self.sample_shape} -> {self.shape}"
