"""Landmark attention: blocks of steps that are found again by a token that stands for each."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from clplat.backbones.attention.segments import SegmentRecurrent, causal, turn
from clplat.backbones.base import State, in_reference_form, require
from clplat.backbones.block import join_heads, make_mlp, split_heads
from clplat.backbones.dropout import Dropout
from clplat.backbones.ops.retrieval import best, retrieval_weights, retrieve, retrieve_loop
from clplat.backbones.seen import Seen


class LandmarkLayer(nn.Module):
    """A pre-norm block whose attention goes by landmarks, (B, C + 1, dim) -> (B, C + 1, dim), the landmark last.

    A query has the scores ``s = q . k / sqrt(K)`` with the steps of its own block up to itself and with the landmarks
    of the blocks that it takes. One softmax over both gives the weights of the steps and the shares of the blocks; a
    block's share is dealt out by a softmax over its steps. No weight is left at a landmark itself.

    Args:
        dim, heads, ratio, dropout: as of the other blocks.
        take: blocks that each query and head takes: those with the best landmarks.
    """

    attends = True

    def __init__(self, dim: int, heads: int, *, ratio: float, dropout: float, take: int) -> None:
        super().__init__()
        require(heads >= 1 and dim % (2 * heads) == 0, f"dim {dim} must be an even multiple of heads {heads}")
        self.heads, self.take = heads, take
        self.attention_norm, self.qkv, self.out = nn.LayerNorm(dim), nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.mlp_norm, self.mlp = nn.LayerNorm(dim), make_mlp("gelu", dim, ratio)
        self.dropout = Dropout(dropout)

    def forward(
        self, h_BSD: Tensor, visible_BSC: Tensor, keys_BNSD: Tensor, values_BNSD: Tensor, live_BN: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Also returns the block's own keys, not turned, and values, (B, C + 1, dim)."""
        (q, k, v, k_BHNCK, v_BHNCK, weights), own = self._weigh(h_BSD, visible_BSC, keys_BNSD, values_BNSD, live_BN)
        C = k.shape[2]
        form = retrieve_loop if in_reference_form() else retrieve
        y = weights[..., :C] @ v + form(q, k_BHNCK, v_BHNCK, weights[..., C:])
        h_BSD = h_BSD + self.dropout(self.out(join_heads(y)))
        return h_BSD + self.dropout(self.mlp(self.mlp_norm(h_BSD))), *own

    def look(self, h_BSD: Tensor, visible_BSC: Tensor, keys_BNSD: Tensor, values_BNSD: Tensor, live_BN: Tensor) -> Seen:
        (q, k, v, k_BHNCK, v_BHNCK, weights), _ = self._weigh(h_BSD, visible_BSC, keys_BNSD, values_BNSD, live_BN)
        C, past = k.shape[2], k_BHNCK.shape[2] * k_BHNCK.shape[3]
        dealt = retrieval_weights(q, k_BHNCK, weights[..., C:]).flatten(3)
        key, value = torch.cat([k_BHNCK.flatten(2, 3), k], 2), torch.cat([v_BHNCK.flatten(2, 3), v], 2)
        steps = torch.arange(-past, C, device=k.device)
        return Seen(h_BSD, key, value, torch.cat([dealt, weights[..., :C]], -1), steps)

    def _weigh(
        self, h_BSD: Tensor, visible_BSC: Tensor, keys_BNSD: Tensor, values_BNSD: Tensor, live_BN: Tensor
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, Tensor]]:
        """Queries; keys and values of the block's steps, then those of the N blocks before; the weights of the former
        and shares of the latter, (B, heads, C + 1, C + N). And the block's own keys, not turned, and values."""
        (_, N, S, _), C = keys_BNSD.shape, h_BSD.shape[1] - 1
        q_BSD, k_BSD, v_BSD = self.qkv(self.attention_norm(h_BSD)).chunk(3, -1)
        q, v = turn(split_heads(q_BSD, self.heads), N * S), split_heads(v_BSD, self.heads)
        k = turn(split_heads(torch.cat([keys_BNSD.flatten(1, 2).to(k_BSD.dtype), k_BSD], 1), self.heads))
        k_BHNSK = k[:, :, : N * S].unflatten(2, (N, S))
        v_BHNSK = split_heads(values_BNSD.flatten(1, 2).to(v.dtype), self.heads).unflatten(2, (N, S))

        own = (q @ k[:, :, N * S : -1].mT).masked_fill(~visible_BSC[:, None], -torch.inf)
        marks = q @ k_BHNSK[:, :, :, C].mT
        marks = marks.masked_fill(~best(marks, live_BN, self.take), -torch.inf)
        weights = (torch.cat([own, marks], -1) / q.shape[-1] ** 0.5).softmax(-1)
        own_k, blocks_k, blocks_v = k[:, :, N * S : -1], k_BHNSK[:, :, :, :C], v_BHNSK[:, :, :, :C]
        return (q, own_k, v[:, :, :C], blocks_k, blocks_v, weights), (k_BSD, v_BSD)


class LandmarkTransformer(SegmentRecurrent):
    """Landmark attention (Mohtashami & Jaggi 2023, arXiv 2305.16300).

    (B, T, input_size) -> (B, T, dim). A learned landmark token stands behind each block of C steps, and each query
    finds earlier blocks by the keys of their landmarks; see :class:`LandmarkLayer`. The memory holds the last N blocks:
    ``{"keys", "values": (B, layers, N, C + 1, dim), "live": (B, N)}``, the latest last; see :class:`SegmentRecurrent`
    for the state. With N and ``retrieve`` no less than the blocks so far, this is the paper's attention over all, as it
    is trained.

    Rotary positions count steps and landmarks, and are what they are, within the N blocks; the paper's "stingy"
    positions for blocks that lie farther back than any in training are left out, and so is its dropout of shares.

    Args:
        slots: blocks that are kept, N.
        retrieve: blocks that each query takes, by the scores of their landmarks.
    """

    def __init__(
        self,
        input_size: int,
        *,
        slots: int = 8,
        retrieve: int = 4,
        **network: Any,
    ) -> None:
        super().__init__(input_size, partial(LandmarkLayer, take=retrieve), **network)
        require(slots >= 1 and retrieve >= 1, f"slots {slots} and retrieve {retrieve} must be at least 1")
        self.slots = slots
        self.landmark = nn.Parameter(torch.randn(self.output_size))

    def read(self, h_BLD: Tensor, live_BL: Tensor, memory: State) -> tuple[Tensor, State]:
        h_BSD = torch.cat([h_BLD, self.landmark.to(h_BLD.dtype).expand(len(h_BLD), 1, -1)], 1)
        visible_BSC = torch.cat([causal(live_BL), live_BL[:, None]], 1)
        visible_BSC[:, -1, 0] = True  # an empty block's landmark too sees something
        left = []
        for i, layer in enumerate(self.layers):
            kept = [memory[name][:, i] for name in ("keys", "values")]
            h_BSD, *own = layer(h_BSD, visible_BSC, *kept, memory["live"])
            left.append([torch.cat([old[:, 1:], new[:, None]], 1) for old, new in zip(kept, own, strict=True)])
        keys, values = (torch.stack(parts, 1) for parts in zip(*left, strict=True))
        live_BN = torch.cat([memory["live"][:, 1:], live_BL[:, -1:]], 1)
        return h_BSD[:, :-1], {"keys": keys, "values": values, "live": live_BN}

    def memory(self, batch: int, *, device: torch.device, dtype: torch.dtype) -> State:
        shape = (batch, len(self.layers), self.slots, self.segment + 1, self.output_size)
        keys = torch.zeros(shape, device=device, dtype=dtype)
        live = torch.zeros((batch, self.slots), device=device, dtype=torch.bool)
        return {"keys": keys, "values": keys.clone(), "live": live}

    def memory_size(self) -> int:
        return self.slots * (2 * len(self.layers) * (self.segment + 1) * self.output_size + 1)

    def hidden(self) -> list[tuple[str, str]]:
        return [(f"layers.{i}.mlp.0", f"layers.{i}.mlp.2") for i in range(len(self.layers))]
