"""Memories that learn while they read: Titans, TTT, Miras and the Omega rule, a loop and an equal dual form.

The memory is a small network (:mod:`clplat.backbones.ops.fast_net`) whose weights W each sample has for itself. Step t
brings a key k_t, a value v_t, a query q_t and its gates; u_t is the gradient of the loss of the memory's output for k_t
against v_t, times ``weight_t``::

    S_t = inertia_t S_{t-1} - sum_{t-c<i<=t} u_i
    A_t = keep_t A_{t-1} + rate_t S_t                 W_t = link(A_t)
    y_t = M(q_t; W_t)

With c = 1, no link and rate 1 these are equations 10-15 of Titans (Behrouz et al. 2025, arXiv 2501.00663); without
inertia and with keep 1 it is test-time training (Sun et al. 2024, arXiv 2407.04620); with c > 1 the Omega rule (Behrouz
et al. 2025, arXiv 2505.23735); with a link, Miras. Muon's step puts ``orthogonal(S_t)`` for S_t in the second line.

**All gradients are taken at the weights with which the chunk began** (Titans, eq. 16; TTT, section 2.4), so chunks are
part of the model: C is an option that changes what is computed, and C = 1 is the loop that papers write. Chunks are
counted from the start of each sequence, so packing, padding and cutting anywhere are exact.

**Dual form.** For a layer the gradient of step j is the outer product of z_j and d_j (rows of Z and D), and W_t is
linear in them: with ``L^a_tj = keep_{j+1} .. keep_t`` for j <= t, L^e likewise of the inertia, band_ij = 1 where step j
is within the window of step i, and ``m_t = inertia_1 .. inertia_t``::

    G = L^a diag(rate) L^e band       f = L^a diag(rate) m       b_t = keep_1 .. keep_t
    X W = b (X A_0) + f (X S_0) - (X Z' * G) D

so a layer is a masked product of scores and deltas, and no weights are made for single steps. A link, and Muon, need
the matrices themselves: then those of one chunk are made at a time, and made again when gradients are taken.

The state is a dictionary, for each layer in ``memory`` (A), ``frozen`` (W at the chunk's start) and, with inertia,
``momentum`` (S); ``window``, the last c - 1 steps, where c > 1; and ``position``, steps in the chunk so far.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as nnf
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from clplat.backbones.base import State, in_reference_form
from clplat.backbones.ops.fast_net import Norm, Weights, finish, gradients, read
from clplat.backbones.ops.flow import spans
from clplat.backbones.ops.miras import Bias, Link, orthogonal, squares


class Steps(NamedTuple):
    """What S steps bring; all are (B, H, S, ...), and None where the rule has no such thing.

    Attributes:
        q: queries (B, H, S, K).
        k: keys (B, H, S, K).
        v: values (B, H, S, V).
        weight: how much the step's gradient counts, (B, H, S, 1 or V).
        keep: logarithm of what stays of the weights, at most 0, (B, H, S, 1).
        inertia: logarithm of what stays of the momentum, at most 0, (B, H, S, 1).
        rate: how far the step moves along the momentum, (B, H, S, 1).
        limit: what the attentional bias takes as its limit, (B, H, S, 1 or V).
    """

    q: Tensor
    k: Tensor
    v: Tensor
    weight: Tensor
    keep: Tensor | None = None
    inertia: Tensor | None = None
    rate: Tensor | None = None
    limit: Tensor | None = None

    def pack(self) -> tuple[Tensor, list[int]]:
        """All in one tensor (B, H, S, X), and their widths."""
        return torch.cat([x for x in self if x is not None], -1), [0 if x is None else x.shape[-1] for x in self]

    @staticmethod
    def unpack(packed_BHSX: Tensor, widths: list[int]) -> Steps:
        """What :meth:`pack` put together."""
        parts = packed_BHSX.split(widths, -1)
        return Steps(*(part if width else None for part, width in zip(parts, widths, strict=True)))  # type: ignore[arg-type]


@dataclass(frozen=True)
class Rule:
    """How a memory learns.

    Attributes:
        bias: derivative of the loss by the memory's output.
        norm: scale and shift of a layer norm behind the memory, (H, 1, V) each.
        link: makes the weights that are read out of those that are learned; None: they are the same.
        muon: move along the orthogonalised momentum.
        window: c, steps whose gradients each step takes.
        lazy: read with the weights at the chunk's start, so that they change between chunks only.
        forgets: a gradient step also takes away what is stored for its key (``forget`` in ``fast_net.gradients``).
    """

    bias: Bias = squares
    norm: Norm | None = None
    link: Link | None = None
    muon: bool = False
    window: int = 1
    lazy: bool = False
    forgets: bool = False

    def begin(self, weights: Weights, steps: Callable[[], Tensor] | None = None, momentum: bool = False) -> State:
        """The state before the first step with the weights A_0, (B, H, I, O) for each layer.

        Args:
            steps: gives an empty (B, H, c - 1, X) for the window, if there is one.
            momentum: whether there is inertia.
        """
        state: State = {"memory": weights, "frozen": [self.linked(A) for A in weights]}
        if momentum:
            state["momentum"] = [torch.zeros_like(A) for A in weights]
        if steps is not None:
            state["window"] = steps()
        return state

    def linked(self, A: Tensor) -> Tensor:
        return A if self.link is None else self.link(A)

    def close(self, state: State) -> State:
        """At the end of a chunk: the weights there are those at which the next one takes its gradients."""
        return {**state, "frozen": [self.linked(A) for A in state["memory"]]}


def factors(rule: Rule, steps: Steps, frozen: Weights) -> tuple[Weights, Weights]:
    """Z and D of each layer, the steps' weights in D."""

    def slope(y: Tensor) -> Tensor:
        return steps.weight * rule.bias(y, steps.v, steps.limit)

    return gradients(frozen, steps.k, slope, rule.norm, steps.weight if rule.forgets else None)


def one_step(rule: Rule, packed_BH1X: Tensor, widths: list[int], state: State) -> tuple[Tensor, State]:
    """The equations above for one step, as they stand: the specification of :func:`one_chunk`."""
    steps = Steps.unpack(packed_BH1X, widths)
    state, seen = dict(state), packed_BH1X
    if rule.window > 1:
        seen = torch.cat([state["window"], packed_BH1X], 2)
        state["window"] = seen[:, :, 1:]
    inputs, deltas = factors(rule, Steps.unpack(seen, widths), state["frozen"])
    change = [-(z[..., :, None] * d[..., None, :]).sum(-3) for z, d in zip(inputs, deltas, strict=True)]
    if steps.inertia is not None:
        held = steps.inertia.exp()
        change = state["momentum"] = [held * S + s for S, s in zip(state["momentum"], change, strict=True)]
    if rule.muon:
        change = [orthogonal(S) for S in change]
    if steps.rate is not None:
        change = [steps.rate * s for s in change]
    kept = 1 if steps.keep is None else steps.keep.exp()
    state["memory"] = [kept * A + s for A, s in zip(state["memory"], change, strict=True)]
    W = state["frozen"] if rule.lazy else [rule.linked(A) for A in state["memory"]]
    return read(W, steps.q, rule.norm), state


class Shares(NamedTuple):
    """What of each step and of the start is in the weights after each step of a chunk; see the module.

    Attributes:
        momentum: ``L^e band`` (B, H, C, J); J counts the window's steps first.
        weights: G (B, H, C, J).
        moved: ``L^a diag(rate)`` (B, H, C, C).
        held: m (B, H, C, 1); None without inertia.
        entered: f (B, H, C, 1); None without inertia.
        kept: b (B, H, C, 1).
    """

    momentum: Tensor
    weights: Tensor
    moved: Tensor
    held: Tensor | None
    entered: Tensor | None
    kept: Tensor


def decays(log_BHC1: Tensor) -> Tensor:
    """``L_tj``, the product of what lies behind j up to t, for j <= t; 0 for j > t."""
    return spans(log_BHC1)[..., 0].exp().tril()


def shares(steps: Steps, window: int, live_BC: Tensor) -> Shares:
    """The :class:`Shares` of C slots. In an empty slot, logarithms are 0 and nothing is added or moved."""
    C, live = live_BC.shape[1], live_BC[:, None, :, None].to(steps.q.dtype)
    slots, past = torch.arange(C, device=live_BC.device), window - 1
    first_B1 = live_BC.long().argmax(1)[:, None]
    # how many steps before it a slot's step has the others, where the window's come right before the first
    before_BP = first_B1 - past + torch.arange(past, device=live_BC.device)
    order_BJ = torch.cat([before_BP, slots.expand(len(live), C)], 1)
    age_BCJ = slots[:, None] - order_BJ[:, None]
    filled_BJ = torch.cat([live_BC.new_ones((len(live), past)), live_BC], 1)
    band = (((age_BCJ >= 0) & (age_BCJ < window) & filled_BJ[:, None])[:, None] * live).to(steps.q.dtype)
    rate = live if steps.rate is None else live * steps.rate
    La = decays(torch.zeros_like(rate) if steps.keep is None else steps.keep) * rate.mT
    kept = torch.ones_like(rate) if steps.keep is None else steps.keep.cumsum(-2).exp()
    if steps.inertia is None:
        return Shares(band, La @ band, La, None, None, kept)
    momentum, held = decays(steps.inertia) @ band, steps.inertia.cumsum(-2).exp()
    return Shares(momentum, La @ momentum, La, held, La @ held, kept)


def one_chunk(
    rule: Rule, packed_BHCX: Tensor, widths: list[int], live_BC: Tensor, state: State
) -> tuple[Tensor, State]:
    """Equal to :func:`one_step` for the C slots of one chunk after each other; the empty ones change nothing."""
    steps = Steps.unpack(packed_BHCX, widths)
    state, seen = dict(state), packed_BHCX
    if rule.window > 1:
        seen = torch.cat([state["window"], packed_BHCX], 2)
        past, first_B1 = rule.window - 1, live_BC.long().argmax(1)[:, None]
        last_BP = torch.arange(past, device=live_BC.device) + live_BC.sum(1)[:, None]
        last_BP = torch.where(last_BP < past, last_BP, last_BP + first_B1)  # empty slots lie between
        state["window"] = seen.take_along_dim(last_BP[:, None, :, None], 2)
    inputs, deltas = factors(rule, Steps.unpack(seen, widths), state["frozen"])
    share = shares(steps, rule.window, live_BC)
    dual = not rule.muon and rule.link is None
    advance = _by_products if dual else _by_matrices
    momentum = state.get("momentum", [None] * len(inputs))
    x, memory, after = steps.q, [], []
    for number, (z, d, A, S) in enumerate(zip(inputs, deltas, state["memory"], momentum, strict=True)):
        x = nnf.gelu(x) if number else x
        if dual or not torch.is_grad_enabled():
            y, A, S = advance(rule, share, x, z, d, A, S)
        else:
            y, A, S = checkpoint(advance, rule, share, x, z, d, A, S, use_reentrant=False, preserve_rng_state=False)
        x = y
        memory.append(A)
        after.append(S)
    y_BHCV = read(state["frozen"], steps.q, rule.norm) if rule.lazy else finish(x, rule.norm)
    state["memory"] = memory
    if steps.inertia is not None:
        state["momentum"] = after
    return y_BHCV, state


def _by_products(
    rule: Rule, share: Shares, x: Tensor, z: Tensor, d: Tensor, A: Tensor, S: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """``x_t W_t`` for each step t of a layer, and A and S after the chunk, by the dual form."""
    y = share.kept * (x @ A) - ((x @ z.mT) * share.weights) @ d
    new = share.kept[..., -1:, :] * A - (z * share.weights[..., -1, :, None]).mT @ d
    if S is not None and share.entered is not None and share.held is not None:
        y = y + share.entered * (x @ S)
        new = new + share.entered[..., -1:, :] * S
        S = share.held[..., -1:, :] * S - (z * share.momentum[..., -1, :, None]).mT @ d
    return y, new, S


def _by_matrices(
    rule: Rule, share: Shares, x: Tensor, z: Tensor, d: Tensor, A: Tensor, S: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The same with the matrices of all steps."""
    S_CIO = -torch.einsum("bhtj,bhji,bhjo->bhtio", share.momentum, z, d)
    if S is not None and share.held is not None:
        S_CIO = S_CIO + share.held[..., None] * S[:, :, None]
    moves = orthogonal(S_CIO) if rule.muon else S_CIO
    A_CIO = share.kept[..., None] * A[:, :, None] + torch.einsum("bhtj,bhjio->bhtio", share.moved, moves)
    y = (x[..., None, :] @ rule.linked(A_CIO)).squeeze(-2)
    return y, A_CIO[:, :, -1], None if S is None else S_CIO[:, :, -1]


def learn(rule: Rule, packed_BHSX: Tensor, widths: list[int], live_BS: Tensor, state: State) -> tuple[Tensor, State]:
    """S slots of one chunk: one step in the reference form, else a whole chunk."""
    if in_reference_form():
        return one_step(rule, packed_BHSX, widths, state)
    return one_chunk(rule, packed_BHSX, widths, live_BS, state)
