"""HiPPO matrices (Gu et al. 2020, arXiv 2008.07669), their diagonal relatives, and how they are made discrete.

All describe a continuous system ``x'(t) = A x(t) + B u(t)``.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def legs(N: int) -> tuple[Tensor, Tensor]:
    """HiPPO-LegS, Legendre polynomials over all of the past (theorem 2 there, without the factor 1/t)::

        A_nk = -sqrt((2n+1)(2k+1)) for n > k    -(n+1) for n = k    0 for n < k        B_n = sqrt(2n+1)

    With ``A + A' = -(I + B B')`` no state grows by itself.

    Returns:
        A (N, N) and B (N,), in float64.
    """
    n = torch.arange(N, dtype=torch.float64)
    B = (2 * n + 1).sqrt()
    return -(B[:, None] * B).tril(-1) - (n + 1).diag(), B


def legs_normal(N: int) -> tuple[Tensor, Tensor]:
    """The normal part of :func:`legs`, ``A + B B'/2 = V diag(w) V^*`` with w = -1/2 + i f (Gu et al. 2022, arXiv
    2206.11893): the half of the eigenvalues with f > 0; the others are their conjugates.

    Args:
        N: even.

    Returns:
        f (N/2,), rising, and V (N, N/2).
    """
    A, B = legs(N)
    skew = A + (B[:, None] * B + torch.eye(N, dtype=A.dtype)) / 2
    f, V = torch.linalg.eigh(-1j * skew)
    return f[N // 2 :], V[:, N // 2 :]


def diagonal_frequencies(kind: str, N: int) -> Tensor:
    """The imaginary parts of an S4D system with eigenvalues -1/2 + i f_n (Gu et al. 2022, arXiv 2206.11893)::

        lin    f_n = pi n
        inv    f_n = N/pi (N/(2n+1) - 1)
        legs   those of the normal part of HiPPO-LegS, see :func:`legs_normal`

    Args:
        kind: lin, inv or legs.
        N: even; real states, of which one of each conjugate pair is given.

    Returns:
        (N/2,), float64.
    """
    n = torch.arange(N // 2, dtype=torch.float64)
    if kind == "legs":
        return legs_normal(N)[0]
    return math.pi * n if kind == "lin" else N / math.pi * (N / (2 * n + 1) - 1)


def log_uniform(*size: int, low: float = 1e-3, high: float = 1e-1) -> Tensor:
    """Logarithms of random step sizes between low and high, as all of these papers choose them."""
    return torch.empty(size).uniform_(math.log(low), math.log(high))


def bilinear(A_NN: Tensor, B_N: Tensor, dt_D: Tensor) -> tuple[Tensor, Tensor]:
    """The bilinear rule (Gu et al. 2021, arXiv 2110.13985, the generalised rule with a = 1/2): for each step size::

        A' = (I - dt/2 A)^-1 (I + dt/2 A)        B' = (I - dt/2 A)^-1 dt B

    Returns:
        A' (D, N, N) and B' (D, N).
    """
    half = dt_D[:, None, None] / 2 * A_NN
    one = torch.eye(len(B_N), device=half.device, dtype=half.dtype)
    both = torch.linalg.solve(one - half, torch.cat([one + half, dt_D[:, None, None] * B_N[:, None]], -1))
    return both[..., :-1], both[..., -1]


def zero_order_hold(A: Tensor, dt: Tensor) -> tuple[Tensor, Tensor]:
    """A diagonal system with an input held for dt (arXiv 2206.11893): ``a = exp(dt A)`` and what B is to be
    multiplied by, ``(exp(dt A) - 1) / A``, without a division by zero where dt A is tiny."""
    z = dt * A
    a = z.exp()
    tiny = z.detach().abs() < 1e-3
    series = 1 + z / 2 * (1 + z / 3 * (1 + z / 4 * (1 + z / 5)))
    return a, dt * torch.where(tiny, series, (a - 1) / torch.where(tiny, 1, z))
