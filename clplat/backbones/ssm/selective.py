"""What Mamba and its relatives share: the gated block round a selective scan."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clplat.backbones.base import State, in_reference_form, require
from clplat.backbones.block import Mixer
from clplat.backbones.conv.short import ShortConv
from clplat.backbones.ops.selective_scan import Decay, selective_scan, selective_scan_loop


class SelectiveScan(Mixer):
    """The block of Mamba (Gu & Dao 2023, arXiv 2312.00752, figure 3): (B, T, D) -> (B, T, D), with E channels inside::

        x, z = W_i input        x = silu(convolution(x))
        r, k, q = W_x x         s = sizes(W_s r + b, k)
        h_t = decay(s_t, k_t) * h_{t-1} + s_t x_t k_t            for each of E channels N numbers
        y_t = h_t . q_t + d x_t
        out = W_o (y * silu(z))

    k, q have N numbers and r has R. A subclass says what a step size and its decay are.

    State: ``convolution``, the last inputs, see :class:`ShortConv`, and ``h`` (B, E, N), kept in float32 at least.

    Args:
        dim: D.
        inner: E.
        state: N.
        rank: R.
        conv: width of the convolution in steps.
        chunk: steps that are computed at once.
    """

    def __init__(self, dim: int, *, inner: int, state: int, rank: int, conv: int, chunk: int) -> None:
        super().__init__()
        require(inner >= 1, f"the width inside a block must be at least 1, not {inner}")
        require(state >= 1, f"state must be at least 1, not {state}")
        require(chunk >= 1, f"chunk must be at least 1, not {chunk}")
        self.inner, self.state, self.rank, self.chunk = inner, state, rank, chunk
        self.into = nn.Linear(dim, 2 * inner, bias=False)
        self.convolution = ShortConv(inner, conv)
        self.select = nn.Linear(inner, rank + 2 * state, bias=False)
        self.size = nn.Linear(rank, inner)
        self.skip = nn.Parameter(torch.ones(inner))
        self.out = nn.Linear(inner, dim, bias=False)

    def sizes(self, r_BTE: Tensor, k_BTN: Tensor) -> Tensor:
        """The step sizes (B, T, E), at least 0."""
        raise TypeError(f"{type(self).__name__} does not define sizes")

    def decay(self, dtype: torch.dtype) -> Decay:
        """What becomes of the states; it keeps to local tensors."""
        raise TypeError(f"{type(self).__name__} does not define decay")

    def forward(
        self, x_BTD: Tensor, state: State = None, *, reset_BT: Tensor | None = None, mask_BT: Tensor | None = None
    ) -> tuple[Tensor, State]:
        dtype = torch.promote_types(x_BTD.dtype, torch.float32)
        x_BTE, z_BTE = self.into(x_BTD).chunk(2, -1)
        if state is None:
            state = self.init_state(len(x_BTD), device=x_BTE.device, dtype=x_BTE.dtype)
        x_BTE, inputs = self.convolution(x_BTE, state["convolution"], reset_BT=reset_BT, mask_BT=mask_BT)
        x_BTE = F.silu(x_BTE)
        r, k, q = self.select(x_BTE).split([self.rank, self.state, self.state], -1)
        r, k, q, x = (part.to(dtype) for part in (self.size(r), k, q, x_BTE))
        h_BEN = state["h"].to(dtype)
        with torch.autocast(x_BTD.device.type, enabled=False):
            s = self.sizes(r, k)
            if mask_BT is not None:
                s = s.masked_fill(~mask_BT[..., None], 0)
            if in_reference_form():
                y_BTE, h_BEN = selective_scan_loop(x, s, k, q, h_BEN, self.decay(dtype), reset_BT)
            else:
                y_BTE, h_BEN = selective_scan(x, s, k, q, h_BEN, self.decay(dtype), reset_BT, self.chunk)
            y_BTE = y_BTE + self.skip.to(dtype) * x
        return self.out(y_BTE.to(z_BTE.dtype) * F.silu(z_BTE)), {"convolution": inputs, "h": h_BEN}

    def init_state(self, batch: int, *, device: torch.device, dtype: torch.dtype) -> State:
        h = torch.zeros((batch, self.inner, self.state), device=device, dtype=torch.promote_types(dtype, torch.float32))
        return {"convolution": self.convolution.init_state(batch, device=device, dtype=dtype), "h": h}

    def state_size(self, T: int) -> int:
        return self.convolution.state_size(T) + self.inner * self.state
