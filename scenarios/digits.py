"""Streams made of scikit-learn's digits: 1,797 real 8x8 images of handwritten digits that ship with the package.

Source: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI repository, 1998 (its test part).
"""

from __future__ import annotations

import math
from functools import cache
from typing import Literal

import torch
import torch.nn.functional as nnf
from torch import Tensor

from clplat.arrange import arrange, pools, shares
from clplat.errors import UsageError
from clplat.randomness import generator
from clplat.scenario import Scenario, Spec, TensorData, stream


@cache
def images_and_labels() -> tuple[Tensor, Tensor]:
    """All images (1797, 1, 8, 8), between 0 and 1, and their labels."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    return torch.tensor(images, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16, torch.tensor(labels, dtype=torch.long)


def split_digits(seed: int, test: float, validation: float) -> dict[str, Tensor]:
    """Indices of train, valid and test; see :func:`clplat.arrange.shares`."""
    if not test > 0:
        raise UsageError(f"scenario.test={test}: a share between 0 and 1 is needed")
    return shares(images_and_labels()[1], seed, "digits/split", test=test, validation=validation)


def _scenario(spec: Spec, parts: dict[str, list[TensorData]]) -> Scenario:
    streams = {name: stream(name, data) if sum(map(len, data)) else () for name, data in parts.items()}
    return Scenario(spec, streams["train"], streams["test"], streams["valid"])


class PermutedDigits(Scenario):
    """The same ten digits in every experience, with the 64 pixels in a new fixed order (domain-incremental).

    After permuted MNIST (Goodfellow et al. 2013; Kirkpatrick et al. 2017). The first experience keeps the natural
    order. The classes are shared by all experiences, and no task label is given.

    Args:
        experiences: how many.
        test: share of the samples of each class that is kept for testing.
        validation: share that is kept for the validation stream.
    """

    def __init__(self, seed: int, *, experiences: int = 5, test: float = 0.2, validation: float = 0.0) -> None:
        if experiences < 1:
            raise UsageError(f"scenario.experiences={experiences}: at least one is needed")
        x, y = images_and_labels()
        parts: dict[str, list[TensorData]] = {"train": [], "valid": [], "test": []}
        split = split_digits(seed, test, validation)
        for i in range(experiences):
            order = torch.arange(64)
            if i:
                order = torch.randperm(64, generator=generator(seed, "permuted-digits", i))
            for name, index in split.items():
                pixels = x[index].flatten(1)[:, order].reshape(-1, 1, 8, 8)
                parts[name].append(TensorData(pixels, y[index]))
        built = _scenario(Spec((1, 8, 8), 10, "domain"), parts)
        super().__init__(built.spec, built.train_stream, built.test_stream, built.valid_stream)


def rotated(images: Tensor, degrees: float) -> Tensor:
    """Images (N, C, H, W) turned counter-clockwise about their centre, bilinearly; what lies outside is black."""
    if degrees % 360 == 0:
        return images.clone()  # sampling at the very pixels would still round
    angle = torch.tensor(math.radians(degrees), dtype=torch.float64)
    cos, sin = angle.cos(), angle.sin()
    # Where each pixel comes from, in coordinates whose y points down.
    turn = torch.stack([torch.stack([cos, -sin]), torch.stack([sin, cos])])
    theta = torch.cat([turn, torch.zeros(2, 1, dtype=torch.float64)], 1).to(images.dtype)
    grid = nnf.affine_grid(theta[None], [1, *images.shape[1:]], align_corners=False)
    return nnf.grid_sample(images, grid.expand(len(images), -1, -1, -1), align_corners=False)


class RotatedDigits(Scenario):
    """The same ten digits in every experience, turned by a new angle (domain-incremental).

    After rotated MNIST (Lopez-Paz and Ranzato 2017). The first experience keeps them upright. The classes are shared by
    all experiences, and no task label is given. Far beyond 90 degrees some digits begin to look like others (6 and 9).

    Args:
        experiences: how many.
        angles: even spaces them evenly from 0 to max_angle; random draws all but the first by the seed, from 0 to
            max_angle, in no order.
        max_angle: in degrees, counter-clockwise, below 360.
        test: share of the samples of each class that is kept for testing.
        validation: share that is kept for the validation stream.
    """

    def __init__(
        self,
        seed: int,
        *,
        experiences: int = 5,
        angles: Literal["even", "random"] = "even",
        max_angle: float = 180.0,
        test: float = 0.2,
        validation: float = 0.0,
    ) -> None:
        if experiences < 1:
            raise UsageError(f"scenario.experiences={experiences}: at least one is needed")
        if not 0 < max_angle < 360:
            raise UsageError(f"scenario.max_angle={max_angle}: an angle between 0 and 360 degrees is needed")
        share = torch.linspace(0, 1, experiences, dtype=torch.float64)
        if angles == "random":
            source = generator(seed, "rotated-digits")
            share[1:] = torch.rand(experiences - 1, generator=source, dtype=torch.float64)
        self.angles = tuple((share * max_angle).tolist())
        x, y = images_and_labels()
        split = split_digits(seed, test, validation)
        parts = {
            name: [TensorData(rotated(x[index], angle), y[index]) for angle in self.angles]
            for name, index in split.items()
        }
        built = _scenario(Spec((1, 8, 8), 10, "domain"), parts)
        super().__init__(built.spec, built.train_stream, built.test_stream, built.valid_stream)


class SplitDigits(Scenario):
    """The ten digits, a few classes in each experience.

    Settings (van de Ven et al. 2022): ``class``: one head over all ten classes; ``task``: the task label is given, each
    task has a head of its own over its classes; ``domain``: no task label, one head over the position of a class within
    its experience (first, second, ...), so for two classes an experience it is "even or odd in this order".

    Args:
        setting: class-, task- or domain-incremental.
        experiences: how many; sizes differ by at most one class and none is lost.
        order: natural keeps 0 to 9; random shuffles the classes by the seed.
        test: share of the samples of each class that is kept for testing.
        validation: share that is kept for the validation stream.
    """

    def __init__(
        self,
        seed: int,
        *,
        setting: Literal["class", "task", "domain"] = "class",
        experiences: int = 5,
        order: Literal["natural", "random"] = "natural",
        test: float = 0.2,
        validation: float = 0.0,
    ) -> None:
        parts = pools(TensorData(*images_and_labels()), seed, "digits/split", test=test, validation=validation)
        spec = Spec((1, 8, 8), 10, "class")
        built = arrange(parts, spec, seed, "split-digits", setting=setting, experiences=experiences, order=order)
        super().__init__(built.spec, built.train_stream, built.test_stream, built.valid_stream)
