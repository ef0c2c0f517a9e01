"""Heads that look up what followed the last few tokens before."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from clplat.backbones.base import State, in_reference_form, require
from clplat.backbones.ops.attention import visibility
from clplat.backbones.ops.ngrams import after_ngrams, after_ngrams_loop


class NGramHeads(nn.Module):
    """N-gram heads for n = 1, ..., N as one residual layer: (B, T, E) -> (B, T, E)::

        y_t = h_t + W [h_t, a_1(t), ..., a_N(t)] + b

    with a_n(t) the mean of the h that came behind earlier occurrences of the last n inputs, 0 if there is none; see
    :func:`clplat.backbones.ops.ngrams.after_ngrams`. Inputs are compared as they are given to the network, number by
    number, so this is for sequences of tokens: vectors with noise never occur twice, and then only h_t is left.

    Akyürek et al. 2024 (arXiv 2401.12973; authors' code berlino/seq_icl) have a layer ``W_1 a_n + W_0 h`` for each n,
    one behind another between two blocks. Here all n share one layer on the embedded inputs, so that what is averaged
    are vectors of single tokens.

    State, after P steps: ``inputs`` (B, P, D), ``vectors`` (B, P, E), and ``live`` (B, P), False for padding and for
    what lies before a sample's latest reset.

    Args:
        input_size: D.
        dim: E.
        orders: N.
    """

    def __init__(self, input_size: int, dim: int, orders: int) -> None:
        super().__init__()
        require(orders >= 1, f"n-gram heads need an n of at least 1, not {orders}")
        self.input_size, self.dim, self.orders = input_size, dim, orders
        self.out = nn.Linear((1 + orders) * dim, dim)

    def forward(
        self,
        x_BTD: Tensor,
        h_BTE: Tensor,
        state: State = None,
        *,
        reset_BT: Tensor | None = None,
        mask_BT: Tensor | None = None,
    ) -> tuple[Tensor, State]:
        """What the heads make of the embedded steps h of inputs x, which hold zeros where a step is padding."""
        B, T, _ = x_BTD.shape
        if state is None:
            state = self.init_state(B, device=x_BTD.device, dtype=x_BTD.dtype)
        reset_BT = x_BTD.new_zeros((B, T), dtype=torch.bool) if reset_BT is None else reset_BT
        mask_BT = x_BTD.new_ones((B, T), dtype=torch.bool) if mask_BT is None else mask_BT
        x_BSD = torch.cat([state["inputs"].to(x_BTD.dtype), x_BTD], 1)
        h_BSE = torch.cat([state["vectors"].to(h_BTE.dtype), h_BTE], 1)
        look = after_ngrams_loop if in_reference_form() else after_ngrams
        a_BNTE = look(x_BSD, h_BSE, state["live"], reset_BT, mask_BT, self.orders)
        y_BTE = h_BTE + self.out(torch.cat([h_BTE, *a_BNTE.to(h_BTE.dtype).unbind(1)], -1))
        _, live_BS = visibility(state["live"], reset_BT, mask_BT)
        return y_BTE, {"inputs": x_BSD, "vectors": h_BSE, "live": live_BS}

    def init_state(self, batch: int, *, device: torch.device, dtype: torch.dtype) -> State:
        """The state before the first step."""
        return {
            "inputs": torch.zeros((batch, 0, self.input_size), device=device, dtype=dtype),
            "vectors": torch.zeros((batch, 0, self.dim), device=device, dtype=dtype),
            "live": torch.zeros((batch, 0), device=device, dtype=torch.bool),
        }

    def state_size(self, T: int) -> int:
        """Number of elements in one sample's state after T steps."""
        return T * (self.input_size + self.dim + 1)
