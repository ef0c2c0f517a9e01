"""Looking into layers of attention while a network runs, and switching single heads off.

Nothing of this is in the way of a network that nobody looks into: layers are watched by hooks, which are there inside
these contexts only. What a watched layer saw is computed beside its own output, from the same inputs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor, nn

from clplat.backbones.base import Backbone
from clplat.backbones.seen import Seen


@contextlib.contextmanager
def watched(backbone: Backbone) -> Iterator[list[Seen]]:
    """Inside, each call of the backbone adds what its layers of attention saw to the list, in their order."""
    seen: list[Seen] = []
    calls: list[tuple[nn.Module, Seen]] = []

    def note(layer: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any], output: Any) -> None:
        calls.append((layer, layer.look(*inputs, **options)))  # type: ignore[operator]

    def begin(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        calls.clear()  # of layers that were called one by one

    def end(_: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any], output: Any) -> None:
        seen.extend(backbone.told(calls, *inputs, **options))

    layers = dict.fromkeys(backbone.attention_layers)  # one may be called several times
    handles = [layer.register_forward_hook(note, with_kwargs=True) for layer in layers]
    handles += [backbone.register_forward_pre_hook(begin), backbone.register_forward_hook(end, with_kwargs=True)]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def without_heads(backbone: Backbone, heads: Iterable[tuple[int, int]]) -> Iterator[None]:
    """Inside, what these heads (number of the layer of attention, number of the head) give is zero; in every call, if
    the layer is called several times."""
    layers = backbone.attention_layers
    off: dict[nn.Module, list[int]] = {}
    for number, head in heads:
        off.setdefault(layers[number], []).append(head)
    handles = [
        layer.out.register_forward_pre_hook(_silence(chosen, layer.heads))  # type: ignore
        for layer, chosen in off.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _silence(chosen: list[int], heads: int) -> Any:
    """A hook for the layer that joins the heads."""

    def hook(out: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        by_head = inputs[0].unflatten(-1, (heads, -1)).clone()
        by_head[..., chosen, :] = 0
        return (by_head.flatten(-2),)

    return hook
