"""A device that is not the CPU, on a machine that has no other.

Its tensors say that they lie on ``meta`` and hold their numbers on the CPU. What would fail on an accelerator fails
here: an operation on tensors of two devices, a generator of another device, a tensor that did not move with its module.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import pytorch_lightning as pl
import torch
from pytorch_lightning.accelerators import CPUAccelerator
from pytorch_lightning.strategies import SingleDeviceStrategy
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing

DEVICE = torch.device("meta")

aten = torch.ops.aten
# An accelerator, too, takes indices that lie on the CPU, and copies from one device to another.
MIXING = {aten.index, aten.index_put, aten.index_put_, aten.copy_}


class Elsewhere(Tensor):
    """A tensor on that device. Methods here are those of which torch's own leave the numbers out, or refuse."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> Elsewhere:
        held = held.resolve_conj().resolve_neg()  # the wrapper has no such mark
        made = torch.Tensor._make_wrapper_subclass(
            cls, held.shape, held.stride(), held.storage_offset(), dtype=held.dtype, device=DEVICE
        )
        made.held = held
        return made

    def __repr__(self, *, tensor_contents: object = None) -> str:
        return f"Elsewhere({self.held})"

    def __reduce_ex__(self, protocol: Any) -> Any:  # a checkpoint holds tensors of the CPU
        return self.held.__reduce_ex__(protocol)

    def tolist(self) -> Any:
        return self.held.tolist()

    def new_tensor(self, *args: Any, **kwargs: Any) -> Tensor:
        return Elsewhere(self.held.new_tensor(*args, **kwargs))

    def __getitem__(self, index: Any) -> Tensor:
        return super().__getitem__(_without_lists(index))

    def __setitem__(self, index: Any, value: Any) -> None:
        super().__setitem__(_without_lists(index), value)

    @property
    def data(self) -> Tensor:
        return Elsewhere(self.held.detach())

    @data.setter
    def data(self, new: Tensor) -> None:
        assert isinstance(new, Elsewhere)
        assert (new.shape, new.dtype) == (self.shape, self.dtype), "the wrapper's own cannot change"
        self.held = new.held

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Mode(TorchDispatchMode):
    """So that functions which make tensors are seen as well."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    leaves = list(_leaves((args, list(kwargs.values()))))
    there = any(isinstance(leaf, Elsewhere) for leaf in leaves)
    device = kwargs.get("device")
    stays = there if device is None else torch.device(device) == DEVICE
    if not stays and not there:
        return func(*args, **kwargs)
    here = [tuple(leaf.shape) for leaf in leaves if isinstance(leaf, Tensor) and not isinstance(leaf, Elsewhere)]
    if there and any(here) and func.overloadpacket not in MIXING:  # a number without dimensions may come along
        raise RuntimeError(f"{func} of tensors elsewhere and, of shapes {here}, on the CPU")
    if stays and any(isinstance(leaf, torch.Generator) for leaf in leaves):
        raise RuntimeError(f"{func} elsewhere with a generator of the CPU")
    own = kwargs if device is None else kwargs | {"device": torch.device("cpu")}
    found = func(*_each(_here, args), **{name: _each(_here, value) for name, value in own.items()})
    if not stays:
        return found.clone() if isinstance(found, Tensor) else found
    return return_and_correct_aliasing(func, args, kwargs, _each(_there, found))


# What torch has for this (pytree) knows any container, and takes most of the time of these tests.


def _leaves(value: Any) -> Iterator[Any]:
    """All that lies in lists and tuples."""
    if isinstance(value, (list, tuple)):
        for part in value:
            yield from _leaves(part)
    else:
        yield value


def _each(change: Callable[[Any], Any], value: Any) -> Any:
    """The same lists and tuples, of what has been changed."""
    if isinstance(value, (list, tuple)):
        return type(value)([_each(change, part) for part in value])
    return change(value)


def _here(value: Any) -> Any:
    return value.held if isinstance(value, Elsewhere) else value


def _there(value: Any) -> Any:
    return Elsewhere(value) if isinstance(value, Tensor) else value


def _without_lists(index: Any) -> Any:
    if isinstance(index, tuple):
        return tuple(map(_without_lists, index))
    return moved(torch.as_tensor(index)) if isinstance(index, list) else index


def moved(tensor: Tensor) -> Tensor:
    """A copy on that device."""
    return Elsewhere(tensor.detach().clone())


@contextmanager
def elsewhere() -> Iterator[None]:
    """Within it tensors are made there, and modules and runs go there, where ``device`` is :data:`DEVICE`."""

    def filled(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """Make a tensor of numbers on the CPU and move it: torch itself leaves the numbers out."""

        def made(*args: Any, device: Any = None, **kwargs: Any) -> Tensor:
            return make(*args, **kwargs) if device is None else make(*args, **kwargs).to(device)

        return made

    def autocast(device_type: str, *args: Any, **kwargs: Any) -> Any:  # torch's own knows none for meta
        return cast("cpu" if device_type == DEVICE.type else device_type, *args, **kwargs)

    def trainer(accelerator: str, devices: int, **options: Any) -> pl.Trainer:
        return fitted(strategy=SingleDeviceStrategy(device=DEVICE, accelerator=_Accelerator()), **options)

    cast, fitted, swaps = torch.autocast, pl.Trainer, torch.__future__.get_swap_module_params_on_conversion()
    changed = {"tensor": filled(torch.tensor), "as_tensor": filled(torch.as_tensor), "autocast": autocast}
    torch.__future__.set_swap_module_params_on_conversion(True)  # a parameter that moves stays the same object
    try:
        with _Mode(), mock.patch.multiple(torch, **changed), mock.patch.object(pl, "Trainer", trainer):
            yield
    finally:
        torch.__future__.set_swap_module_params_on_conversion(swaps)


class _Accelerator(CPUAccelerator):
    def setup_device(self, device: torch.device) -> None:
        pass
