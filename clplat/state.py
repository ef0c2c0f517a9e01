"""Modules that remember: tensors as buffers that come back from a checkpoint as they were saved."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn


class Remembering(nn.Module):
    """A module whose buffers may be made at any time and in any shape: loading makes them as they were saved.

    Attributes:
        keeps_precision: its own buffers keep their number format when the network is brought to that of the run, as
            sums in double precision must.
        kinds: what is kept under a key, for reports of memory: ``memory`` (samples), ``importances``, ``teacher``
            (earlier weights or outputs), ``prototypes``. A key that ends in a number is named without it.
    """

    keeps_precision: ClassVar[bool] = False
    kinds: ClassVar[Mapping[str, str]] = {}

    def kind_of(self, buffer: str) -> str | None:
        """The kind of one of its own buffers, as its class or one of its bases declares it; None where none does."""
        key = buffer.partition(":")[0].rstrip("0123456789/")
        declared = (vars(base).get("kinds", {}).get(key) for base in type(self).__mro__)
        return next((kind for kind in declared if kind is not None), None)

    def remember(self, key: str, tensors: Mapping[str, Tensor]) -> None:
        """Keep a dictionary of tensors as buffers; what was kept under the key before goes."""
        for old in [name for name in self._buffers if name.startswith(key + ":")]:
            del self._buffers[old]
        for name, tensor in tensors.items():
            self.register_buffer(f"{key}:{name.replace('.', '/')}", tensor.detach())

    def recall(self, key: str) -> dict[str, Tensor]:
        """What :meth:`remember` keeps under the key; empty if nothing."""
        start = key + ":"
        return {
            name[len(start) :].replace("/", "."): tensor
            for name, tensor in self._buffers.items()
            if name.startswith(start) and tensor is not None
        }

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Remembering:
        before = dict(self._buffers) if self.keeps_precision else {}
        super()._apply(fn, recurse)
        for name, old in before.items():
            new = self._buffers[name]
            if old is not None and new is not None and new.dtype != old.dtype:
                self._buffers[name] = old.to(new.device)
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        own = [key for key in state_dict if key.startswith(prefix) and "." not in key[len(prefix) :]]
        saved = {key[len(prefix) :]: state_dict[key] for key in own if isinstance(state_dict[key], Tensor)}
        for name in list(self._buffers):
            if name not in saved and name not in self._non_persistent_buffers_set:
                del self._buffers[name]
        device = next((t.device for t in self.buffers()), None) or next((p.device for p in self.parameters()), None)
        for name, tensor in saved.items():
            if name not in self._parameters and name != "_extra_state":
                self._buffers.pop(name, None)
                self.register_buffer(name, tensor.clone() if device is None else tensor.to(device, copy=True))
        super()._load_from_state_dict(state_dict, prefix, *rest)


def grown(old: Tensor, like: Tensor) -> Tensor:
    """``old`` enlarged to the shape of a parameter that has grown since: what is new takes ``like``'s values."""
    if old.shape == like.shape:
        return old
    new = like.detach().clone()
    new[tuple(slice(0, n) for n in old.shape)] = old
    return new


def overlap(parameter: Tensor, old: Tensor) -> Tensor:
    """The part of a parameter that was there before it grew from ``old``'s shape."""
    return parameter if parameter.shape == old.shape else parameter[tuple(slice(0, n) for n in old.shape)]


def stored_bytes(state: Any) -> int:
    """Bytes of all tensors in a nested state."""
    if isinstance(state, Tensor):
        return state.numel() * state.element_size()
    if isinstance(state, Mapping):
        return sum(map(stored_bytes, state.values()))
    return sum(map(stored_bytes, state)) if isinstance(state, (list, tuple)) else 0


def weights_sha256(state: Mapping[str, Any]) -> str:
    """sha256 over a state dict sorted by name: name, dtype, shape and little-endian bytes of each tensor; anything else
    (extra state) as canonical JSON with its tensors in the same form."""
    digest = hashlib.sha256()
    for name in sorted(state):
        digest.update(name.encode() + b"\0")
        value = state[name]
        if isinstance(value, Tensor):
            for piece in _tensor(value):
                digest.update(piece)
        else:
            digest.update(json.dumps(_plain(value), sort_keys=True).encode())
    return digest.hexdigest()


def _tensor(tensor: Tensor) -> tuple[bytes, bytes]:
    head = f"{tensor.dtype} {tuple(tensor.shape)} ".encode()
    return head, tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        head, body = _tensor(value)
        return [head.decode(), hashlib.sha256(body).hexdigest()]
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted(map(repr, value))
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    return value if isinstance(value, (int, float, str, bool)) or value is None else repr(value)
