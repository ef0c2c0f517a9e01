"""Interval arithmetic as a tensor: run a network on boxes of inputs or weights; outputs lie in the box it gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from clplat.errors import UsageError
from clplat.scenario import Target


class Interval(Tensor):
    """All tensors between ``lower`` and ``upper``, entry by entry (Moore 1966, "Interval analysis").

    It goes where a tensor goes: functions of tensors give intervals that hold the function's value at every point
    inside. Both ends carry gradients. A function that has no rule here is refused by name, never approximated.
    """

    lower: Tensor
    upper: Tensor

    @staticmethod
    def __new__(cls, lower: Tensor, upper: Tensor) -> Interval:
        made: Interval = lower.detach().as_subclass(cls)  # for shape, type and device; its values are not used
        made.lower, made.upper = lower, upper
        return made

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func.__name__.strip("_")
        if name == "get":  # of a property
            name = func.__self__.__name__  # type: ignore[attr-defined]
        with torch._C.DisableTorchFunctionSubclass():
            if name in _ABOUT:
                return func(*args, **(kwargs or {}))
            if name in _RISING:
                return _both(func, args, kwargs or {})
            if name in _RULES and not kwargs:
                return _RULES[name](*args)
        raise UsageError(
            f"interval arithmetic has no rule for {name}: choose a backbone of linear maps, rectifiers, tanh and "
            "sigmoids, such as mlp, rnn, gru or lstm"
        )


# What asks for shape, type and place only.
_ABOUT = {"dim", "size", "len", "numel", "is_floating_point", "zeros_like", "shape", "ndim", "dtype", "device"}
# What rearranges entries, or falls in none of its arguments: the ends go to the ends.
_RISING = {
    *(
        "flatten",
        "view",
        "reshape",
        "getitem",
        "chunk",
        "split",
        "unbind",
        "stack",
        "cat",
        "transpose",
        "permute",
        "pad",
    ),
    *("unflatten", "gather", "expand", "squeeze", "unsqueeze", "select", "contiguous", "clone", "masked_fill"),
    *("relu", "tanh", "sigmoid", "sum", "mean"),
}


def ends(value: Any) -> tuple[Any, Any]:
    """The lower and the upper end; twice the same for what is no interval."""
    return (value.lower, value.upper) if isinstance(value, Interval) else (value, value)


def _end(value: Any, which: int) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value)(_end(part, which) for part in value)
    return ends(value)[which]


def _both(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    lower, upper = (func(*_end(args, which), **kwargs) for which in (0, 1))
    if isinstance(lower, (list, tuple)):
        return tuple(Interval(*pair) for pair in zip(lower, upper, strict=True))
    return Interval(lower, upper)


def _minus(a: Any, b: Any) -> Interval:
    (a_low, a_high), (b_low, b_high) = ends(a), ends(b)
    return Interval(a_low - b_high, a_high - b_low)


def _times(a: Any, b: Any) -> Interval:
    products = torch.stack([x * y for x in ends(a) for y in ends(b)])
    return Interval(products.amin(0), products.amax(0))


def _divided(a: Any, b: Any) -> Interval:
    if isinstance(b, Interval):
        raise UsageError("interval arithmetic has no rule for a division by an interval")
    low, high = a.lower / b, a.upper / b
    return Interval(torch.minimum(low, high), torch.maximum(low, high))


def _product(a: Any, b: Any) -> Interval:
    """Matrix product, by middle m and radius r: ``|a b - m_a m_b| <= |m_a| r_b + r_a |m_b| + r_a r_b``."""
    (m_a, r_a), (m_b, r_b) = ([(u + l) / 2, (u - l) / 2] for l, u in (ends(a), ends(b)))  # noqa: E741
    middle = m_a @ m_b
    radius = m_a.abs() @ r_b + r_a @ (m_b.abs() + r_b)
    return Interval(middle - radius, middle + radius)


def _linear(x: Any, weight: Any, bias: Any = None) -> Interval:
    turned = Interval(weight.lower.mT, weight.upper.mT) if isinstance(weight, Interval) else weight.mT
    return _plus(_product(x, turned), 0.0 if bias is None else bias)


def _plus(a: Any, b: Any) -> Interval:
    (a_low, a_high), (b_low, b_high) = ends(a), ends(b)
    return Interval(a_low + b_low, a_high + b_high)


_RULES: dict[str, Callable[..., Interval]] = {
    "add": _plus,
    "radd": _plus,
    "sub": _minus,
    "rsub": lambda a, b: _minus(b, a),
    "neg": lambda a: Interval(-a.upper, -a.lower),
    "mul": _times,
    "rmul": _times,
    "div": _divided,
    "truediv": _divided,
    "matmul": _product,
    "bmm": _product,
    "linear": _linear,
    "baddbmm": lambda added, a, b: _plus(_product(a, b), added),
}


def worst(target: Target, logits: Interval, y: Tensor) -> Tensor:
    """The logits, or values, inside an interval for which the loss is largest.

    For classes and tokens the lower end for the right one and the upper end for all others; for bits the end that
    speaks against the bit; for values the end farther away.
    """
    low, high = logits.lower, logits.upper
    if target in ("value", "series"):
        return torch.where((low - y).abs() > (high - y).abs(), low, high)
    if target == "bits":
        return torch.where(y == 1, low, high)
    right = torch.arange(low.shape[-1], device=y.device) == y[..., None]
    return torch.where(right, low, high)
