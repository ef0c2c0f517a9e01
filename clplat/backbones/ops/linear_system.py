"""Linear systems with fixed coefficients, one for each channel: a loop, and an equal form by convolution.

Channel d has a state h of N numbers, an input and M outputs::

    h_t = A h_{t-1} + B u_t
    y_t = C h_t

So ``y_t = sum_j C A^j B u_{t-j} + C A^{t+1} h_0`` with t from 0: a convolution, and what is left of the state.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from clplat.backbones.base import State
from clplat.backbones.ops.fft_convolution import fft_convolution
from clplat.backbones.ops.recurrence import unroll
from clplat.backbones.ops.scan import diagonal
from clplat.backbones.ops.selective_scan import in_chunks


class Response(NamedTuple):
    """What T steps of a system do.

    Attributes:
        kernel: (T, D, M), C A^t B, the output t steps after an input of 1.
        left: (T, D, N), A^t B, the state then.
        rest: the state (B, D, N) before the first step -> what it adds to the outputs, (B, T, D, M), and to the state
            after the last step.
    """

    kernel: Tensor
    left: Tensor
    rest: Callable[[Tensor], tuple[Tensor, Tensor]]


def respond(u_BTD: Tensor, h_BDN: Tensor | None, response: Response) -> tuple[Tensor, Tensor]:
    """Outputs (B, T, D, M) for inputs u and a state h, None for zeros, and the state after the last step."""
    y_BTDM = fft_convolution(u_BTD[..., None], response.kernel)
    last_BDN = torch.einsum("tdn,btd->bdn", response.left.flip(0), u_BTD)
    if h_BDN is None:
        return y_BTDM, last_BDN
    more_BTDM, more_BDN = response.rest(h_BDN)
    return y_BTDM + more_BTDM, last_BDN + more_BDN


def in_parts(
    u_BTD: Tensor, h_BDN: Tensor | None, respond_to: Callable[[int], Response], part: int = 128
) -> tuple[Tensor, Tensor]:
    """Equal to :func:`respond`, in parts of P steps one after the other: their responses are the same but for a
    shorter last one, so that time grows with T alone and kernels never hold more than P steps.

    Args:
        respond_to: number of steps -> the response of the system over them.
        part: P.
    """
    whole, outputs = respond_to(min(part, u_BTD.shape[1])), []
    for u_BPD in u_BTD.split(part, 1):
        same = u_BPD.shape[1] == len(whole.kernel)
        y_BPDM, h_BDN = respond(u_BPD, h_BDN, whole if same else respond_to(u_BPD.shape[1]))
        outputs.append(y_BPDM)
    assert h_BDN is not None
    return torch.cat(outputs, 1), h_BDN


def system_loop(
    u_BTD: Tensor,
    h_BDN: Tensor,
    A_DNN: Tensor,
    B_DN: Tensor,
    C_DMN: Tensor,
    reset_BT: Tensor | None = None,
    mask_BT: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The equations above, one step at a time.

    Args:
        u_BTD: inputs.
        h_BDN: the state before the first step.
        A_DNN: of each channel.
        B_DN: of each channel.
        C_DMN: of each channel.
        reset_BT: True where a new sequence begins.
        mask_BT: False for padding, where the output means nothing.

    Returns:
        y (B, T, D, M), and the state after the last step.
    """

    def step(u_BD: Tensor, h_BDN: State) -> tuple[Tensor, State]:
        h_BDN = (A_DNN @ h_BDN[..., None]).squeeze(-1) + B_DN * u_BD[..., None]
        return (C_DMN @ h_BDN[..., None]).squeeze(-1), h_BDN

    return unroll(step, u_BTD, h_BDN, torch.zeros_like(h_BDN), reset_BT, mask_BT)


def powers_loop(A_DNN: Tensor, x_DNK: Tensor, T: int) -> Tensor:
    """A^t x for t < T, one after the other: (T, D, N, K)."""
    found = [x_DNK]
    for _ in range(T - 1):
        found.append(A_DNN @ found[-1])
    return torch.stack(found)


def powers(A_DNN: Tensor, x_DNK: Tensor, T: int) -> Tensor:
    """Equal to :func:`powers_loop`, by squaring: log2 T products, each of which gives twice as many t."""
    (D, N, K), found_DNX = x_DNK.shape, x_DNK  # X: all t so far, times K
    while found_DNX.shape[-1] < T * K:
        found_DNX = torch.cat([found_DNX, A_DNN @ found_DNX], -1)
        A_DNN = A_DNN @ A_DNN
    return found_DNX[..., : T * K].reshape(D, N, T, K).permute(2, 0, 1, 3)


def response(A_DNN: Tensor, B_DN: Tensor, C_DMN: Tensor, T: int) -> Response:
    """The response of the system of :func:`system_loop`, by powers of its matrices."""
    left_TDN = powers(A_DNN, B_DN[..., None], T).squeeze(-1)

    def rest(h_BDN: Tensor) -> tuple[Tensor, Tensor]:
        free_TDNM = powers(A_DNN.mT, (C_DMN @ A_DNN).mT, T)
        last_DNB = torch.linalg.matrix_power(A_DNN, T) @ h_BDN.permute(1, 2, 0)
        return torch.einsum("tdnm,bdn->btdm", free_TDNM, h_BDN), last_DNB.permute(2, 0, 1)

    return Response(torch.einsum("dmn,tdn->tdm", C_DMN, left_TDN), left_TDN, rest)


def pairs(z: Tensor) -> Tensor:
    """Complex (..., N) as real (..., 2 N): all real parts, then all imaginary ones."""
    return torch.cat([z.real, z.imag], -1)


def complexes(x: Tensor) -> Tensor:
    """Real (..., 2 N) as complex (..., N), see :func:`pairs`."""
    return torch.complex(*x.chunk(2, -1))


def diagonal_response(a_DN: Tensor, b_DN: Tensor, c_DN: Tensor, T: int) -> Response:
    """The response of a complex diagonal system ``h_t = a h_{t-1} + b u_t``, ``y_t = 2 Re(c . h_t)``: one of each pair
    of conjugate states, held as real :func:`pairs`. M is 1."""
    power_TDN = a_DN.new_ones((1, *a_DN.shape))
    square_DN = a_DN
    while len(power_TDN) <= T:
        power_TDN = torch.cat([power_TDN, square_DN * power_TDN])
        square_DN = square_DN * square_DN
    left_TDN = power_TDN[:T] * b_DN

    def rest(h_BDN: Tensor) -> tuple[Tensor, Tensor]:
        free_TDN = 2 * c_DN * power_TDN[1 : T + 1]
        # Re(c h) = Re c Re h - Im c Im h
        y_BTD = torch.einsum("tdn,bdn->btd", pairs(free_TDN.conj()), h_BDN)
        return y_BTD[..., None], pairs(power_TDN[T] * complexes(h_BDN))

    return Response(2 * (c_DN * left_TDN).sum(-1, keepdim=True).real, pairs(left_TDN), rest)


def diagonal_system_loop(
    u_BTD: Tensor,
    h_BDN: Tensor,
    a_DN: Tensor,
    b_DN: Tensor,
    c_DN: Tensor,
    reset_BT: Tensor | None = None,
    mask_BT: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The system of :func:`diagonal_response`, one step at a time; see :func:`system_loop`. y is (B, T, D)."""

    def step(u_BD: Tensor, h_BDN: State) -> tuple[Tensor, State]:
        h_BDN = a_DN * h_BDN + b_DN * u_BD[..., None]
        return 2 * (c_DN * h_BDN).sum(-1).real, h_BDN

    h_BDN = complexes(h_BDN)
    y_BTD, h_BDN = unroll(step, u_BTD, h_BDN, torch.zeros_like(h_BDN), reset_BT, mask_BT)
    return y_BTD, pairs(h_BDN)


def diagonal_scan(
    u_BTD: Tensor,
    h_BDN: Tensor,
    a_DN: Tensor,
    b_DN: Tensor,
    c_DN: Tensor,
    reset_BT: Tensor | None = None,
    mask_BT: Tensor | None = None,
    chunk: int = 64,
) -> tuple[Tensor, Tensor]:
    """Equal to :func:`diagonal_system_loop`, by a scan: for sequences with resets and padding, which are no
    convolution."""

    def part(h_BDN: Tensor, u_BCD: Tensor, reset: Tensor | None, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        a, b = a_DN.expand(*u_BCD.shape, -1), b_DN * u_BCD[..., None]
        if mask is not None:
            a, b = (x.masked_fill(~mask[..., None, None], fill) for x, fill in ((a, 1), (b, 0)))
        h_BCDN, h_BDN = diagonal(a, b, h_BDN, reset, math.isqrt(chunk))
        return 2 * (c_DN * h_BCDN).sum(-1).real, h_BDN

    y_BTD, h_BDN = in_chunks(part, complexes(h_BDN), (u_BTD, reset_BT, mask_BT), chunk)
    return y_BTD, pairs(h_BDN)
