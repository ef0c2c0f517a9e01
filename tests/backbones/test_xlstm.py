"""The matrix memory: chunks against the loop, the loop against the paper's formulas, and what gates do at extremes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from clplat.backbones.ops.mlstm import mlstm_chunk, mlstm_loop
from clplat.backbones.rnn.xlstm import XLSTM, MatrixLSTM, ScalarLSTM
from clplat.errors import UsageError

from .helpers import TOLERANCE, assert_close, inputs

B, H, K, V = 2, 3, 4, 5


def case(T: int, dtype: torch.dtype, reset: str = "none", size: float = 1.0) -> tuple[list[Tensor], Tensor | None]:
    """q, k, v, i, f, C, n, m with some padded steps (i = -inf, f = 0), and the resets."""
    q, k, v = (inputs(B, H, T, n, seed=n + seed, dtype=dtype) for seed, n in enumerate((K, K, V)))
    i, f = size * inputs(B, H, T, seed=5, dtype=dtype), -size * inputs(B, H, T, seed=6, dtype=dtype).abs()
    padding = torch.rand(B, 1, T, generator=torch.Generator().manual_seed(3)) < 0.2
    i, f = i.masked_fill(padding, -torch.inf), f.masked_fill(padding, 0)
    C, n, m = (inputs(B, H, *shape, seed=7 + len(shape), dtype=dtype) for shape in ((K, V), (K,), ()))
    probability = {"none": None, "never": 0.0, "some": 0.2, "always": 1.1}[reset]
    tensors = [q, k, v, i, f, C, n, m]
    if probability is None:
        return tensors, None
    return tensors, torch.rand(B, T, generator=torch.Generator().manual_seed(6)) < probability


# strong gates bring q . n near zero, where single precision loses the digits of either form
@pytest.mark.parametrize(("dtype", "size"), [(torch.float64, 1.0), (torch.float64, 15.0), (torch.float32, 1.0)])
@pytest.mark.parametrize("reset", ["none", "never", "some", "always"])
@pytest.mark.parametrize(("T", "chunk"), [(1, 4), (7, 4), (8, 4), (13, 5), (13, 1), (13, 64), (75, 32)])
def test_chunk_equals_loop(T: int, chunk: int, reset: str, size: float, dtype: torch.dtype) -> None:
    tensors, reset_BT = case(T, dtype, reset, size)
    results = []
    for form in (mlstm_loop, lambda *a: mlstm_chunk(*a, chunk=chunk)):
        leaves = [tensor.clone().requires_grad_() for tensor in tensors]
        y, memory = form(*leaves[:5], tuple(leaves[5:]), reset_BT)
        outputs = [y, *memory]
        loss = sum((out * inputs(*out.shape, seed=11 + i, dtype=dtype)).sum() for i, out in enumerate(outputs))
        results.append([*outputs, *torch.autograd.grad(loss, leaves)])
    assert len(results[0]) == 12
    for ours, naive in zip(results[1], results[0], strict=True):
        assert_close(ours, naive, TOLERANCE[dtype])


@pytest.mark.parametrize("form", [mlstm_loop, mlstm_chunk])
def test_the_stabiliser_changes_nothing(form: object) -> None:
    """Against the paper's equations with gates that can be computed as they are."""
    (q, k, v, i, f, C, n, m), _ = case(9, torch.float64)
    y, (C_after, n_after, m_after) = form(q, k, v, i, f, (C, n, m))
    C, n = C * m.exp()[..., None, None], n * m.exp()[..., None]
    for t in range(9):
        kept, added = f[:, :, t].exp(), i[:, :, t].exp()
        C = kept[..., None, None] * C + added[..., None, None] * k[:, :, t, :, None] * v[:, :, t, None, :]
        n = kept[..., None] * n + added[..., None] * k[:, :, t]
        below = (n * q[:, :, t]).sum(-1).abs().clamp(min=1)
        assert_close(
            y[:, :, t], (q[:, :, t, None] @ C).squeeze(-2) / below[..., None], 1e-4
        )  # kernels add 1e-6 to the divisor
    assert_close(C_after * m_after.exp()[..., None, None], C, 1e-12)
    assert_close(n_after * m_after.exp()[..., None], n, 1e-12)


@pytest.mark.parametrize("form", [mlstm_loop, mlstm_chunk])
@pytest.mark.parametrize("size", [100.0, -100.0, 1e6, -1e6])
def test_extreme_gates_stay_finite(form: object, size: float) -> None:
    tensors, _ = case(13, torch.float32)
    for forget in (0.0, -1e6):
        tensors[3], tensors[4] = torch.full_like(tensors[3], size), torch.full_like(tensors[4], forget)
        leaves = [tensor.clone().requires_grad_() for tensor in tensors]
        y, memory = form(*leaves[:5], tuple(leaves[5:]))
        assert all(torch.isfinite(out).all() for out in (y, *memory))
        gradients = torch.autograd.grad(y.sum() + sum(part.mean() for part in memory), leaves)
        assert all(torch.isfinite(gradient).all() for gradient in gradients)


def test_a_dominant_input_gate_replaces_what_was_stored() -> None:
    (_, k, v, i, f, C, n, m), _ = case(5, torch.float64)
    i = torch.zeros_like(i)
    i[:, :, 3] = 60.0
    y, _ = mlstm_chunk(k, k, v, i, 0 * f, (C, n, m))
    assert_close(y[:, :, 3], v[:, :, 3], 1e-5)
    assert not torch.allclose(y[:, :, 2], v[:, :, 2], atol=0.1)


def test_order_of_the_blocks() -> None:
    def kinds(**options: int) -> str:
        mixers = XLSTM(3, dim=8, heads=2, **options).mixers
        assert all(isinstance(mixer, MatrixLSTM | ScalarLSTM) for mixer in mixers)
        return "".join("m" if isinstance(mixer, MatrixLSTM) else "s" for mixer in mixers)

    assert kinds() == "ms"
    assert kinds(layers=5, matrix=3) == "mmmsm"
    assert kinds(layers=3, scalar=0) == "mmm"
    assert kinds(layers=2, matrix=0) == "ss"
    with pytest.raises(UsageError, match="no blocks"):
        XLSTM(3, matrix=0, scalar=0)
