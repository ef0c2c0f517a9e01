"""Continual few-shot learning: a few samples of a few new classes at a time, and the test of single instances."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from clplat.errors import UsageError
from clplat.randomness import generator
from clplat.scenario import Scenario, Spec, TensorData, stream

STROKES = 4  # corners of a glyph's line, less one


class CFSL(Scenario):
    """Support sets of new glyphs one after another, each of n classes with k samples.

    Antoniou, Patacchiola, Ochal and Storkey 2020, Defining Benchmarks for Continual Few-Shot Learning (arXiv
    2004.11967), and Kowadlo, Ahmed, Mayan and Rawlinson 2024, Expanding continual few-shot learning benchmarks to
    include recognition of specific instances (PLOS ONE, arXiv 2209.07863), with the settings of the latter's code
    (Cerenaut/cfsl). That applies no noise and no occlusion, though the paper reports both, so ours are assumed. An
    experience is a support set; their NSS is ``experiences``, n-way k-shot ``ways`` and ``shots``, the class change
    interval ``change``.

    - classes: after ``change`` support sets new classes come; those between show other samples of the same classes.
      There is a test experience for each block of classes, of ``queries`` samples of each class that were never shown.
      Setting ``class``: all blocks have labels of their own, one head. ``domain``: each block uses the labels 0 to
      n - 1 again (their ``overwrite``), and what the new classes share with the old is nothing but the label.
    - instances: all samples are of ONE glyph, each an instance with a label of its own (``ways`` in an experience), and
      tested are the very images that were shown, or with ``noise`` and ``occlusion`` spoilt copies of them.

    The test data of ``instances`` without noise and occlusion are the training data, which is what this test is about.
    ACC at the end is the accuracy over all classes or instances; chance is one in their number. Nothing is pretrained,
    where the papers train on other classes first.

    Glyphs stand in for Omniglot, which cannot be shipped: a class is a line of four strokes between random corners, and
    a sample is the line with its corners moved at random, drawn with soft edges.

    Args:
        setting: whether labels are new in each block of classes.
        experiences: support sets.
        ways: classes (or instances) in each.
        shots: samples of each class in a support set.
        change: support sets after which the classes change.
        test: what is tested.
        queries: test samples of each class.
        noise: standard deviation of noise on the pixels of test samples, which go from 0 to 1.
        occlusion: share of each test sample that a blank square covers, at a random place.
        jitter: standard deviation of a corner, as a share of the picture's side.
        size: pixels on a side.
    """

    settings = ("class", "domain")

    def __init__(
        self,
        seed: int,
        *,
        setting: Literal["class", "domain"] = "class",
        experiences: int = 10,
        ways: int = 5,
        shots: int = 1,
        change: int = 1,
        test: Literal["classes", "instances"] = "classes",
        queries: int = 5,
        noise: float = 0.0,
        occlusion: float = 0.0,
        jitter: float = 0.05,
        size: int = 16,
    ) -> None:
        least = {"experiences": 1, "ways": 1, "shots": 1, "change": 1, "queries": 1, "noise": 0, "jitter": 0, "size": 8}
        given = (experiences, ways, shots, change, queries, noise, jitter, size)
        problems = [
            f"scenario.{name}={value}: at least {low} is needed"
            for (name, low), value in zip(least.items(), given, strict=True)
            if value < low
        ]
        if not 0 <= occlusion < 1:
            problems.append(f"scenario.occlusion={occlusion}: a share of at least 0 and less than 1 is needed")
        if test == "instances" and (shots, change, setting) != (1, 1, "class"):
            problems.append(
                "scenario.test=instances shows each instance once: scenario.shots and scenario.change are 1, and "
                "scenario.setting is class"
            )
        if problems:
            raise UsageError(*problems)
        parts: dict[str, list[TensorData]] = {"train": [], "test": []}
        if test == "instances":
            x = glyphs(_corners(1, seed), experiences * ways, jitter, size, generator(seed, "cfsl/instances"))
            y = torch.arange(len(x))
            parts["train"] = [TensorData(*both) for both in zip(x.split(ways), y.split(ways), strict=True)]
            parts["test"] = [TensorData(part.x, part.y) for part in parts["train"]]
        blocks = -(-experiences // change)
        for block in range(blocks if test == "classes" else 0):
            corners = _corners(blocks * ways, seed)[block * ways : (block + 1) * ways]
            sets = min(change, experiences - block * change)
            each = sets * shots + queries
            x = glyphs(corners, each, jitter, size, generator(seed, "cfsl/samples", block))
            x = x.reshape(ways, each, *x.shape[1:])
            first = block * ways if setting == "class" else 0
            for start in range(0, sets * shots, shots):
                parts["train"].append(_labelled(x[:, start : start + shots], first))
            parts["test"].append(_labelled(x[:, sets * shots :], first))
        for number, part in enumerate(parts["test"]):
            part.x = spoilt(part.x, noise, occlusion, generator(seed, "cfsl/spoilt", number))
        classes = experiences * ways if test == "instances" else blocks * ways if setting == "class" else ways
        tests = tuple(e // change for e in range(experiences))
        spec = Spec((1, size, size), classes, setting)
        super().__init__(spec, stream("train", parts["train"]), stream("test", parts["test"]), tests=tests)


def _corners(classes: int, seed: int) -> Tensor:
    """Where the lines of some classes turn (classes, STROKES + 1, 2), in shares of the picture's side."""
    return 0.15 + 0.7 * torch.rand(classes, STROKES + 1, 2, generator=generator(seed, "cfsl/glyphs"))


def _labelled(x: Tensor, first: int) -> TensorData:
    """Samples (ways, n, ...) with the labels first, first + 1, ..."""
    y = first + torch.arange(len(x)).repeat_interleave(x.shape[1])
    return TensorData(x.flatten(0, 1), y)


def glyphs(corners: Tensor, each: int, jitter: float, size: int, source: torch.Generator) -> Tensor:
    """Samples (classes * each, 1, size, size) of glyphs with corners (classes, points, 2), those of a class together.

    A pixel's value is ``exp(-(d / w)^2)`` at distance d from the nearest stroke, with w one pixel.
    """
    moved = corners.repeat_interleave(each, 0)
    moved = moved + jitter * torch.randn(moved.shape, generator=source)
    centre = (torch.arange(size) + 0.5) / size
    pixels_P2 = torch.stack(torch.meshgrid(centre, centre, indexing="ij"), -1).reshape(-1, 2)
    start_NS12, along_NS12 = moved[:, :-1, None], (moved[:, 1:] - moved[:, :-1])[:, :, None]
    reached_NSP2 = pixels_P2 - start_NS12
    length_NS1 = along_NS12.square().sum(-1).clamp(min=1e-12)
    share_NSP = ((reached_NSP2 * along_NS12).sum(-1) / length_NS1).clamp(0, 1)  # of the stroke, to its nearest point
    distance_NP = (reached_NSP2 - share_NSP[..., None] * along_NS12).square().sum(-1).amin(1)
    return torch.exp(-distance_NP * size**2).reshape(-1, 1, size, size)


def spoilt(x: Tensor, noise: float, occlusion: float, source: torch.Generator) -> Tensor:
    """Images (N, 1, size, size) with noise, then a blank square that covers a share of each, at a random place."""
    size = x.shape[-1]
    if noise:
        x = (x + noise * torch.randn(x.shape, generator=source)).clamp(0, 1)
    side = round(math.sqrt(occlusion) * size)
    if side:
        corner_N2 = torch.randint(size - side + 1, (len(x), 2), generator=source)
        away_N2S = torch.arange(size) - corner_N2[..., None]
        inside_N2S = (away_N2S >= 0) & (away_N2S < side)
        x = x.masked_fill((inside_N2S[:, 0, :, None] & inside_N2S[:, 1, None, :])[:, None], 0.0)
    return x
