"""Linear maps that do not mix heads."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from clplat.backbones.base import require


class HeadwiseLinear(nn.Module):
    """``y = R x + b`` with a block-diagonal R for each gate: (..., heads * n) -> (..., gates * heads * n).

    Head h of each gate reads head h of x alone. ``weight`` is (gates * heads * n, n): row (g, h, m) of R without the
    zeros outside its block.

    Args:
        inputs: heads * n.
        outputs: gates * heads * n.
        heads: number of blocks; divides ``inputs``.
    """

    def __init__(self, inputs: int, outputs: int, heads: int) -> None:
        super().__init__()
        require(heads >= 1 and inputs % heads == 0, f"width {inputs} must be a multiple of heads {heads}")
        self.heads, size = heads, inputs // heads
        self.weight = nn.Parameter(torch.empty(outputs, size).uniform_(-(size**-0.5), size**-0.5))
        self.bias = nn.Parameter(torch.empty(outputs).uniform_(-(size**-0.5), size**-0.5))

    def forward(self, x: Tensor) -> Tensor:
        size = self.weight.shape[1]
        weight_GHMN = self.weight.view(-1, self.heads, size, size)
        y = torch.einsum("...hn,ghmn->...ghm", x.unflatten(-1, (self.heads, size)), weight_GHMN)
        return y.flatten(-3) + self.bias
