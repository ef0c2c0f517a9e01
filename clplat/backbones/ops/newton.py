"""Non-linear recurrences h_t = f(x_t, h_{t-1}) for all steps at once: a loop and an equal form by Newton's method.

Each unit has a few states, S of them, and reads no other unit's, so that the Jacobian of a step is an (S, S) matrix for
each unit. All T equations together are one root-finding problem, whose Newton step is a linear recurrence with these
matrices: a scan. (Danieli et al. 2025, ParaRNN, arXiv 2510.21450, section 3; Lim et al. 2024, arXiv 2309.12252.)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as nnf
from torch import Tensor

# x (..., G, D) and h (..., S, D) -> h' (..., S, D), or its Jacobian by h, (..., S', S, D)
Step = Callable[[Tensor, Tensor], Tensor]


def newton_loop(
    step: Step, x_BTGD: Tensor, h_BSD: Tensor, reset_BT: Tensor | None = None, mask_BT: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """``h_t = step(x_t, h_{t-1})``, one step at a time.

    Args:
        step: f.
        x_BTGD: what each step reads.
        h_BSD: h_0.
        reset_BT: True where h_{t-1} is taken to be zero.
        mask_BT: False where h stays as it was.

    Returns:
        h_1 .. h_T (B, T, S, D), and h_T.
    """
    outputs = []
    for t, x_BGD in enumerate(x_BTGD.unbind(1)):
        if reset_BT is not None:
            h_BSD = h_BSD.masked_fill(reset_BT[:, t, None, None], 0)
        after_BSD = step(x_BGD, h_BSD)
        h_BSD = after_BSD if mask_BT is None else torch.where(mask_BT[:, t, None, None], after_BSD, h_BSD)
        outputs.append(h_BSD)
    return torch.stack(outputs, 1), h_BSD


def newton(
    step: Step,
    jacobian: Step,
    x_BTGD: Tensor,
    h_BSD: Tensor,
    reset_BT: Tensor | None = None,
    mask_BT: Tensor | None = None,
    *,
    bound: float = 1.0,
    chunk: int = 64,
) -> tuple[Tensor, Tensor]:
    """Equal to :func:`newton_loop`, by Newton's method until it has converged.

    From a guess h, with J_t the Jacobian at h_{t-1}, a round solves the linearised equations by a scan::

        d_t = J_t d_{t-1} + f(x_t, h_{t-1}) - h_t        d_0 = 0        h = h + d

    After n rounds the first n steps are right whatever the guess was, so T rounds are enough; where J is well below 1
    it takes three or four. A step is settled one round after it and all before it solve their equations, and then
    keeps its value: so it does not depend on what comes later, nor on other samples, in any digit.

    The gradient is that of the solution by the implicit function theorem, at the price of one more round: in it h_t and
    J_t are constants, d is zero, and the derivative of d is the solution's. A second derivative is refused.

    Args:
        jacobian: the derivative of ``step`` by h.
        bound: no state is larger than this or the largest of h_0; guesses beyond it are cut.
        chunk: steps that are scanned at once.
    """
    B, T = x_BTGD.shape[:2]
    live = None if mask_BT is None else mask_BT[..., None, None]

    def before(h_BTSD: Tensor, first_BSD: Tensor) -> Tensor:
        """h_{t-1} for each t."""
        h_BTSD = torch.cat([first_BSD[:, None], h_BTSD[:, :-1]], 1)
        return h_BTSD if reset_BT is None else h_BTSD.masked_fill(reset_BT[..., None, None], 0)

    def applied(h_BTSD: Tensor) -> Tensor:
        after = step(x_BTGD, h_BTSD)
        return after if live is None else torch.where(live, after, h_BTSD)

    with torch.no_grad():
        constant_BSD = h_BSD.detach()
        bound_B111 = constant_BSD.abs().amax((1, 2), keepdim=True).clamp(min=bound)[:, None]
        tolerance = bound_B111[..., 0, 0] * torch.finfo(h_BSD.dtype).eps ** 0.75  # its square is below what counts
        identity_SSD = torch.eye(h_BSD.shape[1], device=h_BSD.device, dtype=h_BSD.dtype)[..., None]
        h = applied(torch.zeros_like(h_BSD)[:, None].expand(-1, T, -1, -1))
        settled_BT = torch.zeros((B, T), device=h.device, dtype=torch.bool)

        def linearised(h: Tensor) -> Tensor:
            J = jacobian(x_BTGD, before(h, constant_BSD))
            return J if live is None else torch.where(live[..., None], J, identity_SSD)

        for _ in range(T):
            wrong = applied(before(h, constant_BSD)) - h
            d, _ = blocks(linearised(h), wrong, torch.zeros_like(constant_BSD), reset_BT, chunk)
            moved = (h + d).nan_to_num(nan=0.0).clamp(-bound_B111, bound_B111)
            solved_BT = wrong.abs().amax((2, 3)) <= tolerance
            h = torch.where(settled_BT[..., None, None], h, moved)
            settled_BT = solved_BT.int().cummin(1).values.bool() | settled_BT
            if settled_BT.all():
                break
        J = linearised(h)

    wrong = applied(before(h, constant_BSD)) - h
    d, _ = blocks(J, wrong, h_BSD - constant_BSD, reset_BT, chunk)
    h_BTSD: Tensor = _FirstOrder.apply(h + d)
    return h_BTSD, h_BTSD[:, -1]


class _FirstOrder(torch.autograd.Function):
    """The identity, whose gradient cannot be differentiated again: in it h and J are constants, which they are not."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


def multiply(A: Tensor, b: Tensor) -> Tensor:
    """(..., S, S', D) times (..., S', D) -> (..., S, D), for each unit."""
    return A[..., 0, :] * b if A.shape[-2] == 1 else (A * b[..., None, :, :]).sum(-2)


def multiply_matrices(A: Tensor, B: Tensor) -> Tensor:
    """(..., S, S', D) times (..., S', R, D) -> (..., S, R, D), for each unit."""
    return A * B if A.shape[-2] == 1 else (A[..., None, :] * B[..., None, :, :, :]).sum(-3)


def blocks_loop(
    A_BTSSD: Tensor, b_BTSD: Tensor, h_BSD: Tensor, reset_BT: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """``h_t = A_t h_{t-1} + b_t`` with a matrix for each unit, one step at a time; resets as in :func:`newton_loop`."""
    outputs = []
    for t in range(b_BTSD.shape[1]):
        if reset_BT is not None:
            h_BSD = h_BSD.masked_fill(reset_BT[:, t, None, None], 0)
        h_BSD = multiply(A_BTSSD[:, t], h_BSD) + b_BTSD[:, t]
        outputs.append(h_BSD)
    return torch.stack(outputs, 1), h_BSD


def blocks(
    A_BTSSD: Tensor, b_BTSD: Tensor, h_BSD: Tensor, reset_BT: Tensor | None = None, chunk: int = 64
) -> tuple[Tensor, Tensor]:
    """Equal to :func:`blocks_loop`: doubling within chunks, as :func:`clplat.backbones.ops.scan.diagonal` does it."""
    T = b_BTSD.shape[1]
    C = min(chunk, T)
    A = A_BTSSD if reset_BT is None else A_BTSSD.masked_fill(reset_BT[..., None, None, None], 0)
    A, b = nnf.pad(A, (0, 0, 0, 0, 0, 0, 0, -T % C)), nnf.pad(b_BTSD, (0, 0, 0, 0, 0, -T % C))
    A, b = A.unflatten(1, (-1, C)), b.unflatten(1, (-1, C))
    span = 1
    while span < C:
        b = torch.cat([b[:, :, :span], b[:, :, span:] + multiply(A[:, :, span:], b[:, :, :-span])], 2)
        A = torch.cat([A[:, :, :span], multiply_matrices(A[:, :, span:], A[:, :, :-span])], 2)
        span *= 2
    starts = [h_BSD]
    for through, added in zip(A[:, :-1, -1].unbind(1), b[:, :-1, -1].unbind(1), strict=True):
        starts.append(multiply(through, starts[-1]) + added)
    h_BTSD = (b + multiply(A, torch.stack(starts, 1)[:, :, None])).flatten(1, 2)[:, :T]
    return h_BTSD, h_BTSD[:, -1]
