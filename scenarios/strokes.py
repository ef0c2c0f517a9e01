"""Digits as the path of a pen: scikit-learn's digit images, thinned to lines and drawn step by step."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Literal

import torch
import torch.nn.functional as nnf
from torch import Tensor

from clplat.arrange import arrange, class_order
from clplat.errors import UsageError
from clplat.randomness import generator
from clplat.scenario import Scenario, Spec, TensorData, class_groups, stream
from clplat.scenarios.digits import images_and_labels, split_digits

SIDE = 16  # of the images that are thinned: the 8x8 ones enlarged
Pixel = tuple[int, int]


class StrokeDigits(Scenario):
    """Digits as pen paths, a few classes in each experience; or rows of digits of two classes, told apart.

    A sample is a sequence of steps (dx, dy, end of stroke, end of digit), dx to the right and dy downwards, in the
    manner of the stroke MNIST of de Jong 2016 that Ehret et al. 2021 (Continual learning in recurrent neural networks,
    section 5 and their code) split by classes. In a digit's first step (dx, dy) is where the pen is put down, from the
    upper left corner; a jump to where the next stroke begins is a step as well, and the step before it has the flag for
    the end of a stroke. Blank steps stand in front, so that the last step is the last of the digit.

    The paths are made here, from scikit-learn's 8x8 images, by rules of our own without any randomness, so they are not
    those of de Jong: see :func:`skeletons` and :func:`pen_path`. dx and dy are in pixels of the enlarged image, divided
    by 4. Of images whose paths are the same (37 of 1797, mostly ones) one is used, so that none is in both streams.

    - ``digits=1`` (Split Stroke-MNIST there): the task is which class of its experience a digit is. Settings as in
      split-digits.
    - ``digits=m`` > 1 (Split Sequential-Stroke-MNIST): experience e has two classes; a sample is m digits of them one
      after another, drawn from the images of its stream, and the answer is which of two halves, drawn by the seed, of
      the 2^m possible rows it belongs to. All rows come as often as one another, up to one. Setting task, or domain,
      where the digits themselves tell the experience.

    Success is accuracy; chance is one in as many as an experience has classes (in all, in the class-incremental
    setting), and 1/2 for m > 1.

    Args:
        setting: class-, task- or domain-incremental.
        experiences: how many.
        digits: m, digits in a sample.
        order: natural keeps the classes 0 to 9; random shuffles them by the seed.
        samples: training samples in an experience where m > 1; with m = 1 there are as many as images.
        test_samples: test samples in an experience where m > 1.
        test: share of the images of each class that is kept for testing.
    """

    def __init__(
        self,
        seed: int,
        *,
        setting: Literal["class", "task", "domain"] = "class",
        experiences: int = 5,
        digits: int = 1,
        order: Literal["natural", "random"] = "natural",
        samples: int = 1000,
        test_samples: int = 250,
        test: float = 0.2,
    ) -> None:
        problems = []
        most = 10 if digits == 1 else 5
        if not 1 <= digits <= 10:
            problems.append(f"scenario.digits={digits}: 1 to 10 digits make a sample")
        if not 1 <= experiences <= most:
            problems.append(f"scenario.experiences={experiences}: ten classes make 1 to {most} experiences here")
        if digits > 1 and setting == "class":
            problems.append(f"scenario.digits={digits}: rows have no classes of their own; use scenario.setting=task")
        if min(samples, test_samples) < 1:
            problems.append("scenario.samples and scenario.test_samples: at least one is needed")
        if problems:
            raise UsageError(*problems)
        self.digits = digits
        (_, y), (x, lengths, new) = images_and_labels(), _paths()
        rows = {name: index[new[index]] for name, index in split_digits(seed, test, 0.0).items() if name != "valid"}
        if digits == 1:
            pools = {name: TensorData(x, y).subset(index) for name, index in rows.items()}
            whole = Spec(tuple(x.shape[1:]), 10, "class")
            built = arrange(pools, whole, seed, "stroke-digits", setting=setting, experiences=experiences, order=order)
            spec, train, test_stream = built.spec, built.train_stream, built.test_stream
        else:
            classes = class_order(10, seed, "stroke-digits", order)
            parts: dict[str, list[TensorData]] = {"train": [], "test": []}
            for e, pair in enumerate(class_groups(classes[: 2 * experiences], experiences)):
                half = torch.randperm(2**digits, generator=generator(seed, "stroke-digits/halves", e)) % 2
                for name, n in (("train", samples), ("test", test_samples)):
                    source = generator(seed, f"stroke-digits/{name}", e)
                    wanted = torch.randperm(n, generator=source) % 2**digits
                    which = _row_images(wanted, pair, y, rows[name], digits, source)
                    joined = _joined(x, lengths, which)
                    parts[name].append(TensorData(joined, half[wanted], e if setting == "task" else 0))
            spec = Spec((digits * x.shape[1], 4), 2, setting)
            train, test_stream = stream("train", parts["train"]), stream("test", parts["test"])
        super().__init__(spec, train, test_stream)


def _row_images(
    wanted_N: Tensor, pair: list[int], y: Tensor, rows: Tensor, digits: int, source: torch.Generator
) -> Tensor:
    """Images (N, digits) whose classes are the binary digits of ``wanted``, the first digit being the highest."""
    bit_NM = (wanted_N[:, None] >> torch.arange(digits - 1, -1, -1)) & 1
    draw_NM = torch.rand(bit_NM.shape, generator=source, dtype=torch.float64)
    which_NM = torch.zeros_like(bit_NM)
    for bit, label in enumerate(pair):
        images = rows[y[rows] == label]
        which_NM = torch.where(bit_NM == bit, images[(draw_NM * len(images)).long()], which_NM)
    return which_NM


def _joined(x: Tensor, lengths: Tensor, which_NM: Tensor) -> Tensor:
    """The paths of several images one after another, all blank steps in front."""
    long_NTF = x[which_NM].flatten(1, 2)
    T = x.shape[1]
    drawn_NT = (torch.arange(T) >= T - lengths[which_NM][..., None]).flatten(1)
    # A stable sort by "is drawn" keeps the order of the steps.
    order_NT = drawn_NT.to(torch.uint8).argsort(dim=1, stable=True)
    return long_NTF.gather(1, order_NT[..., None].expand_as(long_NTF))


@cache
def _paths() -> tuple[Tensor, Tensor, Tensor]:
    """x (1797, T, 4), how many steps each path has, and whether no image before it has the same; T is the longest."""
    images, _ = images_and_labels()
    pixels: list[list[Pixel]] = [[] for _ in images]
    for number, row, column in skeletons(images).nonzero().tolist():
        pixels[number].append((row, column))
    paths = [pen_path(of_one) for of_one in pixels]
    longest = max(map(len, paths))
    x = torch.tensor([[[0, 0, 0, 0]] * (longest - len(path)) + path for path in paths])
    first = {str(path): number for number, path in reversed(list(enumerate(paths)))}
    new = torch.tensor([first[str(path)] == number for number, path in enumerate(paths)])
    return x / torch.tensor([4.0, 4.0, 1.0, 1.0]), torch.tensor([len(path) for path in paths]), new


def skeletons(images_N1HW: Tensor) -> Tensor:
    """Lines one pixel wide, (N, 16, 16) of truth values: the images are enlarged bilinearly, what is darker than half
    of the darkest is ink, and the ink is thinned from its four sides in turn by taking away what is neither the end of
    a line nor holds its neighbours together (Rosenfeld 1975, A characterization of parallel thinning algorithms)."""
    large = nnf.interpolate(images_N1HW, (SIDE, SIDE), mode="bilinear", align_corners=False)[:, 0]
    ink = large > 0.5 * large.amax((1, 2), keepdim=True)
    while True:
        before = ink
        for side in (0, 4, 6, 2):  # from the north, the south, the west and the east
            p = _around(ink)
            blank = ~p
            # Yokoi's number: how many pieces the neighbours fall into; corners alone are held by the pixel as well.
            corners = [blank[k] & ~(blank[k] & blank[k + 1] & blank[(k + 2) % 8]) for k in (0, 2, 4, 6)]
            simple = torch.stack(corners).sum(0) == 1
            ink = ink & ~(blank[side] & simple & (p.sum(0) > 1))
        if torch.equal(ink, before):
            return ink


def _around(ink: Tensor) -> Tensor:
    """The eight neighbours (8, N, H, W) of each pixel, clockwise from the north."""
    padded = nnf.pad(ink, (1, 1, 1, 1))
    before, same, behind = slice(0, -2), slice(1, -1), slice(2, None)
    order = [
        (before, same), (before, behind), (same, behind), (behind, behind),
        (behind, same), (behind, before), (same, before), (before, before),
    ]  # fmt: skip
    return torch.stack([padded[:, rows, columns] for rows, columns in order])


def pen_path(pixels: Iterable[Pixel]) -> list[list[int]]:
    """The steps in which a pen draws lines, given as (row, column), each pixel once.

    The pen is put down on an end of a line, or anywhere if there is none: the first, row by row. It goes on to
    neighbours that are not drawn yet: to the one that turns it least, at a tie to the first row by row. Where there is
    none, the stroke ends, and the next begins likewise on the end, or the pixel, that is nearest to the pen.
    """
    left, at = set(pixels), (0, 0)
    steps: list[list[int]] = []
    while left:
        ends = [pixel for pixel in left if len(_neighbours(pixel, left)) <= 1] or left
        # The pen has no place before the first stroke.
        _, to = min(((to[0] - at[0]) ** 2 + (to[1] - at[1]) ** 2 if steps else 0, to) for to in ends)
        begun = False
        while True:
            down, right = to[0] - at[0], to[1] - at[1]
            steps.append([right, down, 0, 0])
            left.remove(to)
            heading, at, begun = ((down, right) if begun else (0, 0)), to, True
            options = [(_turn(heading, at, pixel), pixel) for pixel in _neighbours(at, left)]
            if not options:
                break
            _, to = min(options)
        steps[-1][2] = 1
    steps[-1][3] = 1
    return steps


def _neighbours(pixel: Pixel, among: set[Pixel]) -> list[Pixel]:
    row, column = pixel
    around = ((row + i, column + j) for i in (-1, 0, 1) for j in (-1, 0, 1))
    return [other for other in around if other in among and other != pixel]


def _turn(heading: Pixel, at: Pixel, to: Pixel) -> float:
    """Minus the cosine of the angle by which the pen turns, times the length of the step before."""
    down, right = to[0] - at[0], to[1] - at[1]
    return -(heading[0] * down + heading[1] * right) / (down * down + right * right) ** 0.5
