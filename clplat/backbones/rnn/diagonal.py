"""Cells whose units read no state but their own, with the derivative of their step: ParaRNN's, and a diagonal LEM.

x holds the linear maps of the inputs (..., G, D), h the states (..., S, D), and a weight (D,) is written as a letter.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn


class DiagonalCell(nn.Module):
    """One step for each unit. No state grows beyond 1 or what it was.

    Attributes:
        gates: G, maps of the input.
        states: S, of which the first is the output.
        own: weights of each unit on its own states.

    Args:
        width: D.
    """

    gates: ClassVar[int]
    states: ClassVar[int]
    own: ClassVar[int]

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(self.own, width) * 2 / (5 * width) ** 0.5)

    def step(self, x: Tensor, h: Tensor) -> Tensor:
        """The next states (..., S, D)."""
        raise TypeError(f"{type(self).__name__} does not define step")

    def jacobian(self, x: Tensor, h: Tensor) -> Tensor:
        """Their derivatives by the states before, (..., S', S, D): row S' is that of the new state S'."""
        raise TypeError(f"{type(self).__name__} does not define jacobian")


class DiagonalGRU(DiagonalCell):
    """ParaGRU::

    z = sigmoid(a * h + x_z)    r = sigmoid(b * h + x_r)    c = tanh(g * (h * r) + x_c)
    h' = (1 - z) * h + z * c
    """

    gates, states, own = 3, 1, 3

    def parts(self, x: Tensor, h: Tensor) -> tuple[Tensor, ...]:
        a, b, g = self.weight.to(h.dtype).unbind(0)
        (h,), (x_z, x_r, x_c) = h.unbind(-2), x.unbind(-2)
        z, r = (a * h + x_z).sigmoid(), (b * h + x_r).sigmoid()
        return h, z, r, (g * h * r + x_c).tanh()

    def step(self, x: Tensor, h: Tensor) -> Tensor:
        h, z, _, c = self.parts(x, h)
        return (h + z * (c - h))[..., None, :]

    def jacobian(self, x: Tensor, h: Tensor) -> Tensor:
        a, b, g = self.weight.to(h.dtype).unbind(0)
        h, z, r, c = self.parts(x, h)
        by_z, by_c = (c - h) * z * (1 - z) * a, z * (1 - c * c) * g * (r + h * r * (1 - r) * b)
        return (1 - z + by_z + by_c)[..., None, None, :]


class DiagonalLSTM(DiagonalCell):
    """ParaLSTM, with coupled gates and peepholes; states h, c::

    f = sigmoid(a * h + p * c + x_f)    z = tanh(b * h + x_z)         c' = f * c + (1 - f) * z
    o = sigmoid(g * h + q * c' + x_o)   h' = o * tanh(c')
    """

    gates, states, own = 3, 2, 5

    def parts(self, x: Tensor, h: Tensor) -> tuple[Tensor, ...]:
        a, b, g, p, q = self.weight.to(h.dtype).unbind(0)
        (h, c), (x_f, x_z, x_o) = h.unbind(-2), x.unbind(-2)
        f, z = (a * h + p * c + x_f).sigmoid(), (b * h + x_z).tanh()
        new = z + f * (c - z)
        return c, f, z, new, (g * h + q * new + x_o).sigmoid()

    def step(self, x: Tensor, h: Tensor) -> Tensor:
        *_, new, o = self.parts(x, h)
        return torch.stack([o * new.tanh(), new], -2)

    def jacobian(self, x: Tensor, h: Tensor) -> Tensor:
        a, b, g, p, q = self.weight.to(h.dtype).unbind(0)
        c, f, z, new, o = self.parts(x, h)
        shown, slope = new.tanh(), (c - z) * f * (1 - f)
        new_by_h, new_by_c = slope * a + (1 - f) * (1 - z * z) * b, f + slope * p
        opens, passes = o * (1 - o) * shown, o * (1 - shown * shown)
        h_by_h, h_by_c = opens * (g + q * new_by_h) + passes * new_by_h, (opens * q + passes) * new_by_c
        return torch.stack([torch.stack([h_by_h, h_by_c], -2), torch.stack([new_by_h, new_by_c], -2)], -3)


class DiagonalLEM(DiagonalCell):
    """:class:`clplat.backbones.rnn.lem.LEM` with a step of 1 and diagonal matrices; states y, z::

    d = sigmoid(a * y + x_d)    e = sigmoid(b * y + x_e)
    z' = (1 - d) * z + d * tanh(g * y + x_z)
    y' = (1 - e) * y + e * tanh(q * z' + x_y)
    """

    gates, states, own = 4, 2, 4

    def parts(self, x: Tensor, h: Tensor) -> tuple[Tensor, ...]:
        a, b, g, q = self.weight.to(h.dtype).unbind(0)
        (y, z), (x_d, x_e, x_z, x_y) = h.unbind(-2), x.unbind(-2)
        d, e, u = (a * y + x_d).sigmoid(), (b * y + x_e).sigmoid(), (g * y + x_z).tanh()
        new = z + d * (u - z)
        return y, z, d, e, u, new, (q * new + x_y).tanh()

    def step(self, x: Tensor, h: Tensor) -> Tensor:
        y, _, _, e, _, new, v = self.parts(x, h)
        return torch.stack([y + e * (v - y), new], -2)

    def jacobian(self, x: Tensor, h: Tensor) -> Tensor:
        a, b, g, q = self.weight.to(h.dtype).unbind(0)
        y, z, d, e, u, _, v = self.parts(x, h)
        new_by_y, new_by_z = (u - z) * d * (1 - d) * a + d * (1 - u * u) * g, 1 - d
        reads = e * (1 - v * v) * q
        y_by_y, y_by_z = 1 - e + (v - y) * e * (1 - e) * b + reads * new_by_y, reads * new_by_z
        return torch.stack([torch.stack([y_by_y, y_by_z], -2), torch.stack([new_by_y, new_by_z], -2)], -3)
