"""Running a network so that what its modules were given is known, and as a function of its parameters."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

from clplat.backbones.base import reference_form
from clplat.fisher.definition import Logits
from clplat.fisher.rules import Call


class Closure(nn.Module):
    """A function that reads a module, as a module: ``functional_call`` swaps parameters, the function sees them."""

    def __init__(self, module: nn.Module, function: Logits) -> None:
        super().__init__()
        self.module = module
        self._function = [function]  # in a list: a bound method of a module, or a module, is not to be registered

    def forward(self, x: Tensor, task: Tensor) -> Tensor:
        return self._function[0](x, task)


@contextlib.contextmanager
def recorded(modules: Iterable[nn.Module]) -> Iterator[dict[nn.Module, list[Call]]]:
    """Within, calls of the modules are kept: arguments, and the edge of the graph at which the output's gradient is."""
    calls: dict[nn.Module, list[Call]] = {module: [] for module in modules}

    def keep(module: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
        if isinstance(output, Tensor) and output.requires_grad and arguments:
            inputs = tuple(a.detach() for a in arguments if isinstance(a, Tensor))
            calls[module].append(Call(inputs, get_gradient_edge(output), output.shape))

    handles = [module.register_forward_hook(keep) for module in calls]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def in_form(reference: bool) -> contextlib.AbstractContextManager[None]:
    """The reference form of the backbones, or the one they take by themselves."""
    return reference_form() if reference else contextlib.nullcontext()
