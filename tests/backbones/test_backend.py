"""The optional library: when it computes, what it is given, and what is said when it cannot."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from clplat.backbones.base import reference_form
from clplat.backbones.ops import backend
from clplat.backbones.ops.channel_decay import channel_decay_chunk
from clplat.backbones.ops.delta_rule import delta_rule_chunk
from clplat.backbones.ops.scalar_decay import scalar_decay_chunk
from clplat.errors import MissingError, UsageError

from .helpers import ENTRIES, B, D, T, assert_close, build, inputs

KERNELS = {
    "delta-net": "chunk_delta_rule",
    "gated-delta-net": "chunk_gated_delta_rule",
    "mom": "chunk_gated_delta_rule",
    "gla": "chunk_gla",
    "hgrn2": "chunk_gla",
    "lightnet": "chunk_gla",
    "retnet": "chunk_simple_gla",
}
layers = pytest.mark.parametrize("name", KERNELS)
Calls = list[tuple[str, dict[str, Any]]]


def stand_in(calls: Calls) -> ModuleType:
    """A module with the library's functions, which notes what it is given and computes by our own kernels."""
    module = ModuleType("fla.ops")

    def kernel(name: str, compute: Callable[..., tuple[Tensor, Tensor]]) -> None:
        def call(
            *,
            q: Tensor,
            k: Tensor,
            v: Tensor,
            initial_state: Tensor,
            scale: float,
            output_final_state: bool,
            **more: Any,
        ) -> tuple[Tensor, Tensor]:
            assert output_final_state
            calls.append((name, {"q": q, "k": k, "v": v, "initial_state": initial_state, "scale": scale, **more}))
            wide = {key: x.float().transpose(1, 2) for key, x in {"q": q, "k": k, "v": v, **more}.items()}
            y, S = compute(**wide, S=initial_state)
            return y.transpose(1, 2).to(q.dtype), S

        setattr(module, name, call)

    kernel("chunk_simple_gla", lambda q, k, v, g, S: scalar_decay_chunk(q, k, v, g, S))
    kernel("chunk_gla", lambda q, k, v, g, S: channel_decay_chunk(q, k, v, g, S))
    kernel("chunk_delta_rule", lambda q, k, v, beta, S: delta_rule_chunk(q, k, v, beta, S))
    kernel("chunk_gated_delta_rule", lambda q, k, v, g, beta, S: delta_rule_chunk(q, k, v, beta, S, g_BHT=g))
    return module


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[Calls]:
    """The library is installed, and tensors count as being on a GPU."""
    made: Calls = []
    package = ModuleType("fla")
    package.__path__ = []
    monkeypatch.setitem(sys.modules, "fla", package)
    monkeypatch.setitem(sys.modules, "fla.ops", stand_in(made))
    monkeypatch.setattr(backend, "on_gpu", lambda x: True)
    backend.fla_ops.cache_clear()
    yield made
    backend.fla_ops.cache_clear()


def network(name: str, **options: Any) -> torch.nn.Module:
    return build(ENTRIES[name], dtype=torch.float32, **options)


@layers
def test_library_computes_the_same_function(name: str, calls: Calls) -> None:
    x, more = inputs(dtype=torch.float32), inputs(seed=2, dtype=torch.float32)
    mask_BT = torch.rand(B, T, generator=torch.Generator().manual_seed(3)) < 0.8
    y, state = network(name, backend="fla")(x, mask_BT=mask_BT)
    y_more, _ = network(name, backend="fla")(more, state)
    found = torch.cat([y, y_more], 1)
    assert {kernel for kernel, _ in calls} == {KERNELS[name]}
    ours = network(name, backend="torch")
    expected, state = ours(x, mask_BT=mask_BT)
    expected = torch.cat([expected, ours(more, state)[0]], 1)
    assert (found - expected).norm() < 0.03 * expected.norm()
    found.square().sum().backward()


@layers
def test_library_is_given_its_layout_and_types(name: str, calls: Calls) -> None:
    torch.manual_seed(0)
    network(name, backend="fla")(inputs(dtype=torch.float32))
    for _, given in calls:
        rows, steps, heads, K = given["q"].shape
        assert given["k"].shape == given["q"].shape
        assert given["v"].shape[:3] == (rows, steps, heads)
        assert given["initial_state"].shape == (rows, heads, K, given["v"].shape[-1])
        assert given["initial_state"].dtype == torch.float32
        assert given["scale"] == 1.0
        for key in ("q", "k", "v", "beta"):
            if key in given:
                assert given[key].dtype == torch.bfloat16
                assert given[key].is_contiguous()
        if "beta" in given:
            assert given["beta"].shape == (rows, steps, heads)
        if "g" in given:
            assert given["g"].dtype == torch.float32
            assert given["g"].shape == ((rows, steps, heads, K) if given["g"].ndim == 4 else (rows, steps, heads))
            assert (given["g"] <= 0).all()
            assert given["g"].min() > -100  # running sums of larger ones lose their digits


@pytest.mark.slow
def test_kernels_of_the_library_itself_equal_our_loops_with_all_gradients() -> None:
    pytest.importorskip("triton", reason="Triton interprets the library's kernels, and is not installed")
    done = subprocess.run(
        [sys.executable, "-m", "tests.backbones.interpreted"],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    far = json.loads(done.stdout.splitlines()[-1])
    assert {name.split()[0] for name in far} == set(KERNELS.values())
    for name, errors in far.items():
        assert set(errors) >= {"y", "S", "dq", "dk", "dv", "dS"}
        bound = 5e-3 if name == "chunk_delta_rule" else 1e-5  # that one in 16 bits
        assert max(errors.values()) < bound, (name, errors)


def test_auto_takes_the_library_only_where_nothing_is_lost(calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = network("gla"), inputs(dtype=torch.float32)
    reset_BT = torch.zeros(B, T, dtype=torch.bool)
    reset_BT[:, 3] = True
    layer(x)
    assert not calls  # it computes in 32 bits
    with torch.autocast("cpu", dtype=torch.bfloat16):
        layer(x, reset_BT=reset_BT)
        with reference_form():
            layer(x)
        network("gla", backend="torch")(x)
        assert not calls
        layer(x, mask_BT=~reset_BT)
        assert len(calls) == 2  # one for each layer
        monkeypatch.setattr(backend, "on_gpu", lambda x: x.is_cuda)
        layer(x)
        assert len(calls) == 2


def test_without_the_library_auto_computes_by_our_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fla.ops", None)  # its import fails
    monkeypatch.setattr(backend, "on_gpu", lambda x: True)
    backend.fla_ops.cache_clear()
    x = inputs(dtype=torch.float32)
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert_close(network("gla")(x)[0], network("gla", backend="torch")(x)[0], 0.0)
        with pytest.raises(MissingError, match=r"pip install 'clplat\[fla\]'"):
            network("gla", backend="fla")(x)
    finally:
        backend.fla_ops.cache_clear()


def test_what_the_library_cannot_do_is_refused(calls: Calls, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = network("retnet", backend="fla"), inputs(B, 2, D, dtype=torch.float32)
    with pytest.raises(UsageError, match="cannot compute packed sequences"):
        layer(x, reset_BT=torch.ones(B, 2, dtype=torch.bool))
    with pytest.raises(UsageError, match="keys up to 256 wide"):
        network("delta-net", backend="fla", dim=514, heads=2)(x)
    monkeypatch.setattr(backend, "on_gpu", lambda x: x.is_cuda)
    with pytest.raises(UsageError, match="needs a GPU"):
        layer(x)
    assert not calls
