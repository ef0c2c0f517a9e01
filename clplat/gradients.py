"""The gradient of one optimiser step as a whole: how long it is, and made shorter where it is too long."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn

from clplat import sharding


def norm(parameters: Iterable[nn.Parameter]) -> Tensor | None:
    """The 2-norm of the gradient over all of some parameters, of those that are cut over the pieces of all ranks, which
    call this alike; None where no parameter has a gradient."""
    return _norm([p.grad for p in parameters if p.grad is not None])


def clip(parameters: Iterable[nn.Parameter], largest: float) -> Tensor | None:
    """Scale all gradients down so that their 2-norm is at most ``largest``; returns what it was, as :func:`norm`."""
    learning = [p for p in parameters if p.grad is not None]
    gradients = [p.grad for p in learning if p.grad is not None]
    found = _norm(gradients)
    if found is None:
        return None
    if any(map(sharding.is_cut, gradients)):
        scale = (largest / (found + 1e-6)).clamp(max=1.0)
        for gradient in gradients:
            sharding.local(gradient).mul_(scale)
    else:
        nn.utils.clip_grads_with_norm_(learning, largest, found)
    return found


def _norm(gradients: list[Tensor]) -> Tensor | None:
    if not gradients:
        return None
    pieces = [gradient for gradient in gradients if sharding.is_cut(gradient)]
    if not pieces:
        return nn.utils.get_total_norm(gradients)
    squares = sharding.total(sharding.sum_pieces(piece.square() for piece in pieces)).detach()
    return (squares + sum(g.square().sum() for g in gradients if not sharding.is_cut(g))).sqrt()
