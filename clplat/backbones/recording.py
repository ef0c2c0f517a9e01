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
from clplat.backbones.block import Seen


@contextlib.contextmanager
def watched(backbone: Backbone) -> Iterator[list[Seen]]:
    """Inside, each call of a layer of attention adds what it saw to the list, in the order of the calls."""
    seen: list[Seen] = []

    def note(layer: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any], output: Any) -> None:
        seen.append(layer.look(*inputs, **options))  # type: ignore[operator]

    handles = [layer.register_forward_hook(note, with_kwargs=True) for layer in backbone.attention_layers]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def without_heads(backbone: Backbone, heads: Iterable[tuple[int, int]]) -> Iterator[None]:
    """Inside, what these heads (number of the layer of attention, number of the head) give is zero."""
    off: dict[int, list[int]] = {}
    for layer, head in heads:
        off.setdefault(layer, []).append(head)
    layers = {number: backbone.attention_layers[number] for number in off}
    handles = [
        layer.out.register_forward_pre_hook(_silence(off[number], layer.heads))  # type: ignore
        for number, layer in layers.items()
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
