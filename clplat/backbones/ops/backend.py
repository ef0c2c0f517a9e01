"""Which form of a kernel computes: the naive loop, this package's chunks, or the flash-linear-attention library's.

Layers call :func:`scalar_decay`, :func:`channel_decay` and :func:`delta_rule` inside :func:`computing`. The library is
optional (``pip install 'clplat[fla]'``; https://github.com/fla-org/flash-linear-attention), is imported at the first
use only, and needs a GPU. Its kernels round to 16 bits and know packed sequences in another layout alone.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from clplat.backbones.base import in_reference_form, require
from clplat.backbones.ops.channel_decay import channel_decay_chunk, channel_decay_loop
from clplat.backbones.ops.delta_rule import delta_rule_chunk, delta_rule_loop
from clplat.backbones.ops.scalar_decay import scalar_decay_chunk, scalar_decay_loop
from clplat.errors import MissingError

Backend = Literal["auto", "torch", "fla"]


class Library(NamedTuple):
    """The library, and what its kernels are to compute in.

    Attributes:
        ops: the module ``fla.ops``.
        dtype: of queries, keys and values.
    """

    ops: Any
    dtype: torch.dtype

    def call(self, name: str, S_BHKV: Tensor, **steps: Tensor | None) -> tuple[Tensor, Tensor]:
        """Its kernel of that name on tensors (B, H, T, ...), which it takes as (B, T, H, ...): y and the last S."""
        laid = {key: x.transpose(1, 2).contiguous() for key, x in steps.items() if x is not None}
        laid = {key: x if key == "g" else x.to(self.dtype) for key, x in laid.items()}  # logarithms stay as they are
        start = S_BHKV.float().contiguous()
        y_BTHV, last = getattr(self.ops, name)(**laid, scale=1.0, initial_state=start, output_final_state=True)
        return y_BTHV.transpose(1, 2).to(S_BHKV.dtype), last.to(S_BHKV.dtype)


_library: ContextVar[Library | None] = ContextVar("library", default=None)


@contextlib.contextmanager
def computing(backend: Backend, x: Tensor, reset_BT: Tensor | None) -> Iterator[None]:
    """Inside, kernels compute by a backend.

    Args:
        backend: ``torch`` for this package's own; ``fla`` for the library's, in bfloat16 where x has 32 bits; ``auto``
            for the library's where it is installed, x is on a GPU and of 16 bits, and no sequence begins in the call.
        x: what the layer has projected, in the precision that the network computes in.
        reset_BT: True where a new sequence begins.

    Raises:
        UsageError: ``fla`` is asked for and cannot be.
        MissingError: ``fla`` is asked for and not installed.
    """
    token = _library.set(None if in_reference_form() else choose(backend, x, reset_BT))
    try:
        yield
    finally:
        _library.reset(token)


def choose(backend: Backend, x: Tensor, reset_BT: Tensor | None) -> Library | None:
    """The library if it is to compute, else None."""
    short = x.dtype in (torch.float16, torch.bfloat16)
    if backend == "torch" or (backend == "auto" and not (short and on_gpu(x) and reset_BT is None)):
        return None
    if backend == "fla":
        require(on_gpu(x), "backend=fla needs a GPU: leave it at auto, or say backend=torch")
        require(reset_BT is None, "backend=fla cannot compute packed sequences: leave it at auto, or say backend=torch")
    ops = fla_ops()
    if ops is None and backend == "fla":
        raise MissingError("backend=fla needs flash-linear-attention: pip install 'clplat[fla]'")
    return None if ops is None else Library(ops, x.dtype if short else torch.bfloat16)


def on_gpu(x: Tensor) -> bool:
    """Whether the library's kernels can run where x is."""
    return x.is_cuda


@functools.cache
def fla_ops() -> Any:
    """The module ``fla.ops``, None where the library is not installed."""
    try:
        return importlib.import_module("fla.ops")
    except ImportError:
        return None


def scalar_decay(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor | None, S: Tensor, reset_BT: Tensor | None, chunk: int
) -> tuple[Tensor, Tensor]:
    """See :func:`scalar_decay_chunk`."""
    if in_reference_form():
        return scalar_decay_loop(q, k, v, g, S, reset_BT)
    if (library := _library.get()) is not None:
        return library.call("chunk_simple_gla", S, q=q, k=k, v=v, g=g)
    return scalar_decay_chunk(q, k, v, g, S, reset_BT, chunk)


def channel_decay(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, S: Tensor, reset_BT: Tensor | None, chunk: int
) -> tuple[Tensor, Tensor]:
    """See :func:`channel_decay_chunk`."""
    if in_reference_form():
        return channel_decay_loop(q, k, v, g, S, reset_BT)
    if (library := _library.get()) is not None:
        return library.call("chunk_gla", S, q=q, k=k, v=v, g=g)
    return channel_decay_chunk(q, k, v, g, S, reset_BT, chunk)


def delta_rule(
    q: Tensor, k: Tensor, v: Tensor, b: Tensor, g: Tensor | None, S: Tensor, reset_BT: Tensor | None, chunk: int
) -> tuple[Tensor, Tensor]:
    """See :func:`delta_rule_chunk`."""
    if in_reference_form():
        return delta_rule_loop(q, k, v, b, S, reset_BT, g_BHT=g)
    if (library := _library.get()) is not None:
        require(k.shape[-1] <= 256, "flash-linear-attention takes keys up to 256 wide a head: say backend=torch")
        name = "chunk_delta_rule" if g is None else "chunk_gated_delta_rule"
        return library.call(name, S, q=q, k=k, v=v, beta=b, g=g)
    return delta_rule_chunk(q, k, v, b, S, reset_BT, chunk, g_BHT=g)
