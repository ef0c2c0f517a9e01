"""Dropout whose noise is the same on any number of ranks (Srivastava et al. 2014, JMLR 15)."""

from __future__ import annotations

from torch import Tensor, nn

from clplat.backbones.base import require
from clplat.randomness import uniform


class Dropout(nn.Module):
    """``y = x * [u >= p] / (1 - p)`` with u uniform per element, of the step's own noise; the identity in evaluation.

    ``torch.nn.Dropout`` draws from hidden generator state: it would give each rank its own noise and a resumed run
    another one. Here the noise of the global batch is drawn and this rank's rows are cut from it
    (:func:`clplat.randomness.uniform`), so x must be (B, ...) with this rank's rows first.

    Args:
        p: probability that an element is dropped, in [0, 1).
    """

    def __init__(self, p: float = 0.0) -> None:
        super().__init__()
        require(0 <= p < 1, f"dropout must be at least 0 and below 1, not {p}")
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        return x * (uniform(x.shape, x.device) >= self.p) / (1 - self.p)

    def extra_repr(self) -> str:
        return f"p={self.p}"
