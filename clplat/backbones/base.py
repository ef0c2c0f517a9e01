"""The backbone contract: batch first, state in and state out, nothing hidden.

A backbone maps ``x_BTD`` (B samples, T steps, D = ``input_size``) to ``y`` of shape (B, T, ``output_size``) and hands
back its state. A state is a pytree (dicts, lists, tuples) of tensors whose first dimension is B, and nothing else: it
can be detached, cut by sample, reset by a mask, moved and saved. Fast weights are per-sample state, never parameters.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from clplat.backbones.seen import Seen
from clplat.backbones.units import Units, units_of_modules
from clplat.errors import UsageError

State = Any  # a pytree of tensors, batch first
Prefix = tuple[Tensor, Tensor]  # keys and values (B, P, W) each

_reference: ContextVar[bool] = ContextVar("reference_form", default=False)


@contextlib.contextmanager
def reference_form() -> Iterator[None]:
    """Inside, every backbone runs its naive loop: slow, plain, and safe under ``torch.func`` transforms."""
    token = _reference.set(True)
    try:
        yield
    finally:
        _reference.reset(token)


def in_reference_form() -> bool:
    """Whether the caller is inside :func:`reference_form`."""
    return _reference.get()


class Backbone(nn.Module):
    """Base class of all backbones.

    Subclasses take ``input_size`` first and their options as keyword-only arguments, and set ``output_size``. One that
    ``takes_shape`` is given the shape of a sample, as the scenario says it, as a second positional argument.

    Attributes:
        causal: output t depends on inputs up to t only.
        sequential: the order of the T steps matters; a non-sequential network treats each step by itself.
        takes_shape: x alone does not say how its D values lie, as those of an image.
        input_size: D.
        output_size: D'.
    """

    causal: bool = True
    sequential: ClassVar[bool] = True
    takes_shape: ClassVar[bool] = False
    input_size: int
    output_size: int

    def forward(
        self,
        x_BTD: Tensor,
        state: State = None,
        *,
        reset_BT: Tensor | None = None,
        mask_BT: Tensor | None = None,
    ) -> tuple[Tensor, State]:
        """Run over T steps.

        Args:
            x_BTD: inputs; T may be 1 or more, B may be 0.
            state: what an earlier call returned, or None for the initial state.
            reset_BT: True where a new sequence begins: before that step the sample's state is the initial one. So two
                sequences packed into one row give what they give alone.
            mask_BT: False where a step is padding: it leaves the state as it was and its output is zero. What x holds
                there does not matter, not even if it is NaN. Where a step is padding and a reset, the reset holds.

        Returns:
            ``(y, state)``: y of shape (B, T, D'), and the state after the last step.
        """
        raise TypeError(f"{type(self).__name__} does not define forward")

    def init_state(self, batch: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None) -> State:
        """The state before the first step for ``batch`` samples; by default where and what the parameters are."""
        raise TypeError(f"{type(self).__name__} does not define init_state")

    def state_size(self, T: int) -> int:
        """Number of elements in one sample's state after T steps."""
        raise TypeError(f"{type(self).__name__} does not define state_size")

    def units(self) -> list[Units]:
        """All parameters as units that can be switched off one by one; each makes exactly one kind of units. A network
        that can say who reads its units overrides this."""
        return units_of_modules(self)

    def gives(self) -> set[str]:
        """What strategies and probes may need of a backbone, in the words of their ``needs``."""
        found = {
            "hidden-layers": bool(self.hidden()),
            "prompts": self.takes_prompts,
            "prefixes": self.takes_prefix,
            "attention": bool(self.attention_layers),
        }
        return {word for word, holds in found.items() if holds}

    def hidden(self) -> list[tuple[str, str]]:
        """Layers of units that can be replaced one by one: pairs of names of linear layers (maker, reader). Each unit
        is a row of the maker, goes through an activation, and is read by the reader's column alone; an empty reader
        stands for whoever reads the output."""
        return []

    # Step by step through the layers, for prompts: vectors put in front of the steps, or keys and values in front of
    # those of a layer. ``leave(layer(n - 1, ... layer(0, enter(x))))`` is what ``forward`` gives without a state. By
    # default the whole network is one layer; one that can be taken apart overrides all of them.

    @property
    def takes_prompts(self) -> bool:
        """Whether steps that are put in front of others change what comes of those."""
        return self.sequential

    @property
    def attention_layers(self) -> list[nn.Module]:
        """Layers that weigh steps and tell the weights, in the order of their calls, each as often as it is called;
        see :mod:`clplat.backbones.recording`."""
        return [module for module in self.modules() if getattr(module, "attends", False)]

    def told(
        self,
        calls: list[tuple[nn.Module, Seen]],
        x_BTD: Tensor,
        state: State = None,
        *,
        reset_BT: Tensor | None = None,
        mask_BT: Tensor | None = None,
    ) -> list[Seen]:
        """What each of :attr:`attention_layers` saw of the T steps that :meth:`forward` was given.

        Args:
            calls: what they saw, call by call.
            x_BTD, state, reset_BT, mask_BT: of :meth:`forward`.

        Raises:
            UsageError: it cannot be told of a call like this.
        """
        return [seen for _, seen in calls]

    @property
    def takes_prefix(self) -> bool:
        """Whether layers take keys and values to put in front of their own."""
        return False

    @property
    def layer_count(self) -> int:
        """Number of layers."""
        return 1

    @property
    def layer_width(self) -> int:
        """Width W of the vectors between layers."""
        return self.input_size

    def enter(self, x_BTD: Tensor) -> Tensor:
        """Inputs as vectors between layers, (B, T', W); T' may be more than T where the network adds steps."""
        return x_BTD

    def layer(self, number: int, h_BTW: Tensor, prefix: Prefix | None = None) -> Tensor:
        """One layer, (B, T, W) -> (B, T, W).

        Args:
            number: from 0.
            h_BTW: for all steps.
            prefix: keys and values, (B, P, W) each, that all steps see besides their own.
        """
        require(prefix is None, f"{type(self).__name__} takes no prefix")
        y_BTW: Tensor = self(h_BTW)[0]
        return y_BTW

    def leave(self, h_BTW: Tensor) -> Tensor:
        """The last layer's vectors of a sample as its outputs: (B, T', W) -> (B, T, output_size)."""
        return h_BTW

    def outputs(self, h_BTW: Tensor) -> Tensor:
        """Any of the last layer's vectors as outputs, one for each: (B, n, W) -> (B, n, output_size)."""
        return self.leave(h_BTW)


def map_state(function: Callable[..., Tensor], state: State, *others: State) -> State:
    """Apply ``function`` to each tensor of a state, ``map_state(Tensor.detach, state)``, or to those of several
    states of one structure, tensor by tensor."""
    if state is None or isinstance(state, Tensor):
        return None if state is None else function(state, *others)
    if isinstance(state, dict):
        return {key: map_state(function, part, *(other[key] for other in others)) for key, part in state.items()}
    return type(state)(map_state(function, *parts) for parts in zip(state, *others, strict=True))


def state_tensors(state: State) -> list[Tensor]:
    """The tensors of a state in order."""
    if state is None or isinstance(state, Tensor):
        return [] if state is None else [state]
    parts = state.values() if isinstance(state, dict) else state
    return [tensor for part in parts for tensor in state_tensors(part)]


def select_rows(condition_B: Tensor, yes: State, no: State) -> State:
    """For each sample the state ``yes`` where the condition holds, else ``no``."""
    return map_state(lambda a, b: torch.where(condition_B.reshape(-1, *[1] * (a.ndim - 1)), a, b), yes, no)


def blank(x_BTD: Tensor, mask_BT: Tensor | None) -> Tensor:
    """Zeros where a step is padding. Done to inputs too, so that no value there, even NaN, reaches a gradient."""
    return x_BTD if mask_BT is None else x_BTD.masked_fill(~mask_BT[..., None], 0)


def require(holds: bool, message: str) -> None:
    """Raise :class:`UsageError` with ``message`` unless the condition on the options holds."""
    if not holds:
        raise UsageError(message)
