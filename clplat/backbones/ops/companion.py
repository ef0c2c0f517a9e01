"""Linear systems with companion matrices (Zhang et al. 2023, arXiv 2303.09489): a loop and an equal form by FFT.

Channel d has N states and vectors a, B, C of N numbers each::

    x_t = A x_{t-1} + B u_t        A x = (0, x_1, ..., x_{N-1}) + a x_N
    y_t = C . x_t

So A shifts the state by one place and feeds its last number back with weights a. With a = 0 and B = e_1 the state holds
the last N inputs, and y is an autoregression with the coefficients C.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from clplat.backbones.base import State
from clplat.backbones.ops.fft_convolution import fft_convolution
from clplat.backbones.ops.recurrence import unroll


def advance(x_BDN: Tensor, a_DN: Tensor) -> Tensor:
    """A x."""
    return F.pad(x_BDN[..., :-1], (1, 0)) + a_DN * x_BDN[..., -1:]


def companion_loop(
    u_BTD: Tensor,
    x_BDN: Tensor,
    a_DN: Tensor,
    B_DN: Tensor,
    C_DN: Tensor,
    reset_BT: Tensor | None = None,
    mask_BT: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The equations above, one step at a time.

    Args:
        u_BTD: inputs.
        x_BDN: the state before the first step.
        a_DN: of each channel.
        B_DN: of each channel.
        C_DN: of each channel.
        reset_BT: True where a new sequence begins.
        mask_BT: False for padding, where the output means nothing.

    Returns:
        y (B, T, D), and the state after the last step.
    """

    def step(u_BD: Tensor, x_BDN: State) -> tuple[Tensor, State]:
        x_BDN = advance(x_BDN, a_DN) + B_DN * u_BD[..., None]
        return (C_DN * x_BDN).sum(-1), x_BDN

    return unroll(step, u_BTD, x_BDN, torch.zeros_like(x_BDN), reset_BT, mask_BT)


def companion_fft(u_BTD: Tensor, x_BDN: Tensor, a_DN: Tensor, B_DN: Tensor, C_DN: Tensor) -> tuple[Tensor, Tensor]:
    """Equal to :func:`companion_loop` in T log T for any N, without any power of A.

    What entered at place i of the state comes to its end N - i steps later. So the state's last numbers s_t obey a
    recurrence with N terms, and everything else is a convolution with at most N terms. As power series in z::

        s = (r(B) u + r(a) s_0 + h) / (1 - z r(a))          r reverses the order; s_0 is the last number of x_0
        y = (C*B) u + (C*a) (s_0 + z s) + c                 (C*v)_m = sum_i C_{i+m} v_i

    where h and c are what x_0, shifted on, brings to the end and to the output. The last state is what the last N
    inputs and feedbacks have left at their places.
    """
    T, N = u_BTD.shape[1], a_DN.shape[-1]
    a, B, C, x = (v.movedim(-1, 0) for v in (a_DN, B_DN, C_DN, x_BDN))  # places first: (N, D), x (N, B, D)
    x_BND = x.transpose(0, 1)

    shifted_BND = F.pad(x_BND[:, :-1], (0, 0, 1, 0))  # x_0, one place on
    feedback = a.flip(0)
    arriving = _fit(shifted_BND.flip(1) + feedback * x_BND[:, -1:], T)
    s_BTD = fft_convolution(fft_convolution(u_BTD, B.flip(0)) + arriving, reciprocal(feedback, T))
    fed_BTD = torch.cat([x_BND[:, -1:], s_BTD[:, :-1]], 1)

    # with C reversed the correlation is a convolution, term N - 1 - m
    read_B, read_a, read_x = (fft_convolution(v, C.flip(0)).flip(1) for v in (B[None], a[None], shifted_BND))
    y_BTD = fft_convolution(u_BTD, read_B[0]) + fft_convolution(fed_BTD, read_a[0]) + _fit(read_x, T)

    recent = [_fit(v.flip(1), N) for v in (u_BTD, fed_BTD)]
    last_BND = fft_convolution(recent[0], B) + fft_convolution(recent[1], a)
    if T < N:
        last_BND = last_BND + F.pad(x_BND[:, : N - T], (0, 0, T, 0))
    return y_BTD, last_BND.transpose(1, 2)


def _fit(v_BND: Tensor, T: int) -> Tensor:
    """T steps of a sequence, with zeros behind its end."""
    return F.pad(v_BND[:, :T], (0, 0, 0, max(0, T - v_BND.shape[1])))


def reciprocal_loop(p_ND: Tensor, T: int) -> Tensor:
    """The first T terms of ``g = 1 / (1 - z p)``: ``g_t = sum_i p_i g_{t-1-i}``, one after the other."""
    terms = [torch.ones_like(p_ND[0])]
    for t in range(1, T):
        terms.append(sum((p_ND[i] * terms[t - 1 - i] for i in range(min(t, len(p_ND)))), torch.zeros_like(p_ND[0])))
    return torch.stack(terms)


def reciprocal(p_ND: Tensor, T: int) -> Tensor:
    """Equal to :func:`reciprocal_loop` by Newton's iteration, ``g <- g + g (1 - g (1 - z p))``: each round doubles the
    number of terms that are right."""
    one = torch.ones_like(p_ND[:1])
    f_TD = _fit(torch.cat([one, -p_ND])[None], T)[0]
    g_TD = one
    while len(g_TD) < T:
        size = min(2 * len(g_TD), T)
        g_TD = _fit(g_TD[None], size)
        wrong = _fit(one[None], size) - fft_convolution(g_TD, f_TD[:size])
        g_TD = (g_TD + fft_convolution(wrong, g_TD[0]))[0]
    return g_TD
