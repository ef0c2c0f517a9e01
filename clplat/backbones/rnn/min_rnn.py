"""minGRU and minLSTM: recurrent networks whose gates do not read their state, so that a scan runs them in parallel."""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from clplat.backbones.base import State, in_reference_form, require
from clplat.backbones.block import Mixer, Stack
from clplat.backbones.ops.scan import diagonal, diagonal_loop


def positive_part(x: Tensor) -> Tensor:
    """``x + 1/2`` where x is not negative, else ``sigmoid(x)``: positive, continuous and increasing."""
    return torch.where(x >= 0, x + 0.5, x.sigmoid())


class MinMixer(Mixer):
    """``h_t = keep_t * h_{t-1} + add_t * v_t`` with an output map: (B, T, D) -> (B, T, D).

    v is a linear map of x_t, or :func:`positive_part` of it. A subclass says what keep and add are. State: ``hidden``
    (B, inner), kept in float32 at least.

    Attributes:
        gates: linear maps of x_t that :meth:`gate` reads.

    Args:
        dim: D.
        expand: width inside in units of D.
        positive: whether v is made positive.
        chunk: steps that are computed at once.
    """

    gates: ClassVar[int]

    def __init__(self, dim: int, expand: float, positive: bool, chunk: int) -> None:
        super().__init__()
        self.inner, self.positive, self.chunk = int(expand * dim), positive, chunk
        require(self.inner >= 1, f"expand {expand} of dim {dim} leaves no width")
        require(chunk >= 1, f"chunk must be at least 1, not {chunk}")
        self.maps = nn.Linear(dim, (self.gates + 1) * self.inner)
        self.out = nn.Linear(self.inner, dim)

    def gate(self, maps: list[Tensor]) -> tuple[Tensor, Tensor]:
        """keep and add, each in [0, 1], of their maps (B, T, inner)."""
        raise TypeError(f"{type(self).__name__} does not define gate")

    def forward(
        self, x_BTD: Tensor, state: State = None, *, reset_BT: Tensor | None = None, mask_BT: Tensor | None = None
    ) -> tuple[Tensor, State]:
        dtype = torch.promote_types(x_BTD.dtype, torch.float32)  # running sums over many steps lose digits in 16 bits
        if state is None:
            state = self.init_state(len(x_BTD), device=x_BTD.device, dtype=dtype)
        value, *maps = self.maps(x_BTD).to(dtype).chunk(self.gates + 1, -1)
        keep, add = self.gate(maps)
        add = add * (positive_part(value) if self.positive else value)
        if mask_BT is not None:
            keep, add = keep.masked_fill(~mask_BT[..., None], 1), add.masked_fill(~mask_BT[..., None], 0)
        form = diagonal_loop if in_reference_form() else partial(diagonal, chunk=self.chunk)
        h_BTH, last_BH = form(keep, add, state["hidden"].to(dtype), reset_BT)
        return self.out(h_BTH.to(x_BTD.dtype)), {"hidden": last_BH}

    def init_state(self, batch: int, *, device: torch.device, dtype: torch.dtype) -> State:
        dtype = torch.promote_types(dtype, torch.float32)
        return {"hidden": torch.zeros((batch, self.inner), device=device, dtype=dtype)}

    def state_size(self, T: int) -> int:
        return self.inner


class MinGRUMixer(MinMixer):
    """``keep = 1 - z, add = z`` with ``z = sigmoid(W_z x + b_z)``."""

    gates = 1

    def gate(self, maps: list[Tensor]) -> tuple[Tensor, Tensor]:
        (update,) = maps
        return (-update).sigmoid(), update.sigmoid()


class MinLSTMMixer(MinMixer):
    """``keep = f / (f + i), add = i / (f + i)`` with ``f = sigmoid(W_f x + b_f)`` and ``i = sigmoid(W_i x + b_i)``."""

    gates = 2

    def gate(self, maps: list[Tensor]) -> tuple[Tensor, Tensor]:
        forget, enter = maps
        apart = nnf.logsigmoid(forget) - nnf.logsigmoid(enter)  # f and i may both underflow
        return apart.sigmoid(), (-apart).sigmoid()


class MinGRU(Stack):
    """minGRU (Feng et al. 2024, Were RNNs All We Needed?, arXiv 2410.01201, section 3.1), in this package's blocks.

    (B, T, input_size) -> (B, T, dim), in each block with v_t and z_t read from x_t alone::

        h_t = (1 - z_t) * h_{t-1} + z_t * v_t        z = sigmoid(W_z x + b_z)
        v = W_h x + b_h, or g(W_h x + b_h)           g(a) = a + 1/2 where a >= 0, else sigmoid(a)
        y = W_o h + b_o

    With g this is the paper's form for computing in logarithms (appendix B); the scan here needs none and computes the
    same numbers. Each h is a weighted mean of the v so far and h_0 = 0. State: h (B, expand * dim) in each block. The
    paper's convolution of width 4 in front is ``conv=4``.

    Args:
        expand: width of h in units of dim.
        positive: v by g, which makes h positive; else v is linear.
        chunk: steps that are computed at once; the result is the same for all.
    """

    def __init__(
        self, input_size: int, *, expand: float = 1.0, positive: bool = True, chunk: int = 64, **block: Any
    ) -> None:
        super().__init__(input_size, lambda dim, number: MinGRUMixer(dim, expand, positive, chunk), **block)


class MinLSTM(Stack):
    """minLSTM (Feng et al. 2024, Were RNNs All We Needed?, arXiv 2410.01201, section 3.2), in this package's blocks.

    (B, T, input_size) -> (B, T, dim), as :class:`MinGRU` but with two gates whose sum is made 1::

        h_t = f'_t * h_{t-1} + i'_t * v_t            f' = f / (f + i),  i' = i / (f + i)
        f = sigmoid(W_f x + b_f)                     i = sigmoid(W_i x + b_i)

    Args:
        expand: width of h in units of dim.
        positive: v by g, which makes h positive; else v is linear.
        chunk: steps that are computed at once; the result is the same for all.
    """

    def __init__(
        self, input_size: int, *, expand: float = 1.0, positive: bool = True, chunk: int = 64, **block: Any
    ) -> None:
        super().__init__(input_size, lambda dim, number: MinLSTMMixer(dim, expand, positive, chunk), **block)
