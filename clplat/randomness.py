"""All randomness of a run, derived from (seed, purpose, numbers) and never from hidden generator state.

Nothing here knows the rank: what is random per sample is drawn for the global batch and then sliced, so that N ranks
see what one rank sees, and a resumed run sees what the uninterrupted one saw.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


def derive(seed: int, purpose: str, *numbers: int) -> int:
    """A 63-bit integer that depends on every argument (BLAKE2b of their text)."""
    text = "/".join([str(seed), purpose, *map(str, numbers)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def generator(seed: int, purpose: str, *numbers: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A fresh generator seeded with :func:`derive`."""
    return torch.Generator(device).manual_seed(derive(seed, purpose, *numbers))


@dataclass
class Rows:
    """Where the rows that this rank holds lie in the global batch: ``spans`` of (n_global, start, stop), in order."""

    spans: Sequence[tuple[int, int, int]]

    @property
    def n_local(self) -> int:
        return sum(stop - start for _, start, stop in self.spans)


class Noise:
    """Noise per sample within one training step, equal for any number of ranks.

    Each call of :meth:`uniform` is numbered, so two dropout layers differ; the numbers restart at each step.
    """

    def __init__(self, seed: int, rows: Rows, *numbers: int) -> None:
        self.seed, self.rows, self.numbers, self.calls = seed, rows, numbers, 0
        self.selected: Tensor | None = None

    def uniform(self, shape: Sequence[int], device: torch.device) -> Tensor:
        """Uniform numbers in [0, 1) of ``shape``; ``shape[0]`` must be the local number of rows."""
        expected = self.rows.n_local if self.selected is None else len(self.selected)
        if shape[0] != expected:
            raise ValueError(f"noise for {shape[0]} rows asked, but this rank holds {expected} of the batch")
        source = generator(self.seed, "noise", *self.numbers, self.calls)
        self.calls += 1
        parts = [torch.rand((n, *shape[1:]), generator=source)[start:stop] for n, start, stop in self.rows.spans]
        local = torch.cat(parts)
        return (local if self.selected is None else local[self.selected.cpu()]).to(device)

    def groups(self, groups: Sequence[Tensor]) -> Iterator[Tensor]:
        """Go through groups of the local rows that are run one after another; each sees the noise it would see if all
        were run at once. So it does not matter which groups a rank has."""
        start = self.calls
        try:
            for rows in groups:
                self.calls, self.selected = start, rows
                yield rows
        finally:
            self.selected = None


_current: Noise | None = None


@contextlib.contextmanager
def noise(source: Noise) -> Iterator[None]:
    """Make ``source`` the one that :func:`uniform` draws from."""
    global _current
    before, _current = _current, source
    try:
        yield
    finally:
        _current = before


def groups(rows: Sequence[Tensor]) -> Iterator[Tensor]:
    """:meth:`Noise.groups` of the step's own noise; outside a step the groups as they are."""
    return iter(rows) if _current is None else _current.groups(rows)


def uniform(shape: Sequence[int], device: torch.device) -> Tensor:
    """Uniform numbers per sample from the step's own noise, or from torch's default generator outside a step."""
    return torch.rand(tuple(shape), device=device) if _current is None else _current.uniform(shape, device)
