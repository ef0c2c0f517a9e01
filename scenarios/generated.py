"""What generated streams share: the loop over experiences, sizes that grow, and what a sample may belong to."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from clplat.randomness import generator
from clplat.scenario import Experience, TensorData, stream

BLANK = 0  # the token that says nothing
BLOCK = 2**24  # numbers that are drawn at once

Make = Callable[[int, str, int, torch.Generator], TensorData]
Streams = tuple[tuple[Experience, ...], tuple[Experience, ...]]


def streams(seed: int, purpose: str, experiences: int, samples: int, test_samples: int, make: Make) -> Streams:
    """The train and the test stream.

    Args:
        make: called with the experience's number, ``train`` or ``test``, how many samples, and a generator for them.
    """
    parts: dict[str, list[TensorData]] = {"train": [], "test": []}
    for e in range(experiences):
        for name, n in (("train", samples), ("test", test_samples)):
            parts[name].append(make(e, name, n, generator(seed, f"{purpose}/{name}", e)))
    return stream("train", parts["train"]), stream("test", parts["test"])


def in_blocks(n: int, numbers: int, make: Callable[[int], tuple[Tensor, ...]]) -> list[Tensor]:
    """Tensors of ``n`` rows, a block at a time, so that what is drawn on the way stays small.

    Args:
        numbers: how many are drawn for a row, at most.
    """
    size = max(1, BLOCK // numbers)
    blocks = [make(min(size, n - start)) for start in range(0, n, size)]
    return [torch.cat(tensors) for tensors in zip(*blocks, strict=True)]


def at_least(low: float, **given: float) -> list[str]:
    """A line for each of the options that is smaller than ``low``."""
    return [f"scenario.{name}={value}: at least {low} is needed" for name, value in given.items() if value < low]


def share(whole: int, e: int, experiences: int, step: int = 1) -> int:
    """The part of a growing size that experience e has: all of it in the last; a multiple of ``step`` before."""
    return whole if e == experiences - 1 else step * max(1, whole * (e + 1) // experiences // step)


def evenly(n: int, options: int, source: torch.Generator) -> Tensor:
    """``n`` numbers below ``options`` in random order, each as often as any other, up to one."""
    rounds = [torch.randperm(options, generator=source) for _ in range(-(-n // options))]
    return torch.cat(rounds)[:n]


def chosen(n: int, options: int, many: int, source: torch.Generator) -> Tensor:
    """``many`` different numbers below ``options`` in random order, for each of ``n`` rows, (n, many)."""
    return torch.rand((n, options), generator=source).topk(many, 1).indices


def held_out(x_NT: Tensor, seed: int, one_in: int = 5) -> Tensor:
    """Which samples of short sequences belong to the test, (N,): about one in ``one_in`` of all that are possible, told
    by the sequence itself, so that none is in train and test however few there are.

    Args:
        x_NT: integers.
    """
    source = generator(seed, "held-out")
    weight_T = torch.randint(-(2**62), 2**62, (x_NT.shape[1],), generator=source)
    mixed_N = ((x_NT + 1) * weight_T).sum(1)  # wraps around, which is meant
    mixed_N = (mixed_N ^ (mixed_N >> 31)) * 0x2545F4914F6CDD1D
    return ((mixed_N >> 33) & 0x3FFFFFFF) % one_in == 0


def drawn_apart(n: int, test: bool, seed: int, make: Callable[[int], tuple[Tensor, ...]]) -> list[Tensor]:
    """``n`` rows of which all belong to the test, or none does.

    Args:
        make: draws that many rows. Their first tensor is what decides (:func:`held_out`).
    """
    found: list[tuple[Tensor, ...]] = []
    missing = n
    while missing > 0:
        tensors = make(6 * missing + 16 if test else 2 * missing)
        rows = (held_out(tensors[0], seed) == test).nonzero()[:missing, 0]
        found.append(tuple(tensor[rows] for tensor in tensors))
        missing -= len(rows)
    return [torch.cat(tensors) for tensors in zip(*found, strict=True)]
