"""The kernels of flash-linear-attention beside our loops, without a GPU: Triton's interpreter runs them.

``TRITON_INTERPRET=1 python -m tests.backbones.interpreted`` prints, as JSON, for each kernel how far its outputs, its
last state and all gradients are from the loop's, relative to the largest number of each. A process of its own, since
Triton reads the variable when it is imported. bfloat16 is left out: the interpreter takes its bits for integers.
"""

from __future__ import annotations

import builtins
import json
import sys
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from triton.runtime.autotuner import Autotuner

from clplat.backbones.base import reference_form
from clplat.backbones.ops import backend
from clplat.backbones.ops.delta_rule import unit

Given = dict[str, Tensor]
B, H, T, K, V = 2, 2, 70, 32, 16  # a chunk of 64, and a part of one


class Step(int):
    """A loop's counter: a kernel converts it like a tensor, the interpreter hands it a plain number."""

    def to(self, dtype: Any) -> Step:
        return self


def _first_setting(tuner: Any, *args: Any, **kwargs: Any) -> Any:
    """In place of the quickest one, to find which takes a GPU."""
    return tuner.fn.run(*args, **{**kwargs, **tuner.configs[0].all_kwargs()})


def _interpretable() -> Any:
    """The library's functions, with what the interpreter cannot do by itself."""
    ops = backend.fla_ops()
    if ops is None:
        raise SystemExit("fla-core is not installed")
    Autotuner.run = _first_setting
    for name, module in list(sys.modules.items()):
        if name.startswith("fla.ops"):
            module.__dict__["range"] = lambda *args: [Step(i) for i in builtins.range(*args)]
    return ops


# What is called when that kernel is to compute.
KERNELS: dict[str, Callable[[Given], tuple[Tensor, Tensor]]] = {
    "chunk_simple_gla": lambda x: backend.scalar_decay(x["q"], x["k"], x["v"], x["g"], x["S"], None, 64),
    "chunk_simple_gla without decay": lambda x: backend.scalar_decay(x["q"], x["k"], x["v"], None, x["S"], None, 64),
    "chunk_gla": lambda x: backend.channel_decay(x["q"], x["k"], x["v"], x["g_K"], x["S"], None, 64),
    "chunk_delta_rule": lambda x: backend.delta_rule(x["q"], x["k"], x["v"], x["b"], None, x["S"], None, 64),
    "chunk_gated_delta_rule": lambda x: backend.delta_rule(x["q"], x["k"], x["v"], x["b"], x["g"], x["S"], None, 64),
}


def _given() -> Given:
    torch.manual_seed(0)
    q, k, v = (torch.randn(B, H, T, n) for n in (K, K, V))
    gates = {"g": -torch.rand(B, H, T), "g_K": -torch.rand(B, H, T, K), "b": torch.rand(B, H, T)}
    return {"q": q, "k": unit(k), "v": v, "S": torch.randn(B, H, K, V), **gates}


def _computed(compute: Callable[[Given], tuple[Tensor, Tensor]]) -> Given:
    """Outputs, last state and gradients, each with other weights."""
    x = {name: tensor.requires_grad_() for name, tensor in _given().items()}
    y_BHTV, S_BHKV = compute(x)
    (y_BHTV.float() @ torch.linspace(-1, 1, V)).sum().backward(retain_graph=True)
    (S_BHKV @ torch.linspace(1, 2, V)).sum().backward()
    found = {f"d{name}": tensor.grad for name, tensor in x.items() if tensor.grad is not None}
    return {"y": y_BHTV.detach().float(), "S": S_BHKV.detach(), **found}


def main() -> None:
    """Compute by both, print."""
    ops = _interpretable()
    far: dict[str, dict[str, float]] = {}
    for name, compute in KERNELS.items():
        with reference_form():
            expected = _computed(compute)
        # the library's delta rule refuses 32 bits
        library = backend.Library(ops, torch.float16 if name == "chunk_delta_rule" else torch.float32)
        chosen = mock.patch.object(backend, "choose", return_value=library)
        with chosen, backend.computing("fla", expected["y"], None):
            found = _computed(compute)
        far[name] = {
            key: float((found[key] - value).abs().max() / value.abs().max()) for key, value in expected.items()
        }
    print(json.dumps(far))


if __name__ == "__main__":
    main()
