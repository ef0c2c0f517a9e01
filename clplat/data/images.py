"""Images: checked by their headers at first, loaded whole only when they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clplat.errors import UsageError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp")


@dataclass(frozen=True)
class Images:
    """A column of images.

    Args:
        openers: what gives each image, as a picture of Pillow that may not have been read yet.
        names: what to call each in an error.
    """

    openers: Sequence[Callable[[], Any]]
    names: Sequence[str]

    def __len__(self) -> int:
        return len(self.openers)

    def __getitem__(self, index: np.ndarray) -> Images:
        """Some of them."""
        numbers = index.tolist()
        return Images([self.openers[i] for i in numbers], [self.names[i] for i in numbers])

    @classmethod
    def join(cls, columns: Sequence[Images]) -> Images:
        """All of several columns."""
        return cls(
            [opener for column in columns for opener in column.openers], [n for column in columns for n in column.names]
        )

    @classmethod
    def of_files(cls, paths: Sequence[Path]) -> Images:
        """Images in files."""
        return cls([_Opener(path) for path in paths], [str(path) for path in paths])

    def open(self, i: int) -> Any:
        """Picture i.

        Raises:
            UsageError: it cannot be read.
        """
        from PIL import Image

        try:
            return self.openers[i]()
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            said = "" if isinstance(error, Image.UnidentifiedImageError) else f": {error}"
            raise UsageError(f"{self.names[i]}: no image can be read from it{said}") from None

    def sizes(self) -> list[tuple[int, int]]:
        """(H, W) of each, read from the headers."""
        found = []
        for i in range(len(self)):
            picture = self.open(i)
            found.append((picture.height, picture.width))
            picture.close()
        return found

    def loader(self, size: tuple[int, int], channels: int) -> Callable[[int], Tensor]:
        """What gives image i as (C, H, W), 0 to 1; one of another size is scaled bilinearly."""

        def load(i: int) -> Tensor:
            from PIL import Image

            picture = self.open(i)
            if picture.mode.startswith(("I", "F")):
                raise UsageError(f"{self.names[i]}: more than 8 bits a value (mode {picture.mode}) are not read")
            try:
                picture = picture.convert("L" if channels == 1 else "RGB")
            except (OSError, ValueError, SyntaxError) as error:
                raise UsageError(f"{self.names[i]}: this image is damaged: {error}") from None
            if (picture.height, picture.width) != size:
                picture = picture.resize((size[1], size[0]), Image.Resampling.BILINEAR)
            pixels = torch.from_numpy(np.array(picture, dtype=np.float32) / 255)
            return pixels[None] if channels == 1 else pixels.permute(2, 0, 1).contiguous()

        return load


@dataclass(frozen=True)
class _Opener:
    path: Path

    def __call__(self) -> Any:
        from PIL import Image

        return Image.open(self.path)


def common_size(columns: Sequence[Images]) -> tuple[int, int]:
    """The size that all images have.

    Raises:
        UsageError: sizes differ; names the first of another size.
    """
    first: tuple[int, int] | None = None
    for column in columns:
        for i, size in enumerate(column.sizes()):
            first = first or size
            if size != first:
                raise UsageError(
                    f"{column.names[i]}: {size[0]}x{size[1]} pixels (height x width), but {columns[0].names[0]} has "
                    f"{first[0]}x{first[1]}; scenario.size=[{first[0]},{first[1]}] scales all to one size"
                )
    assert first is not None
    return first
