"""Hierarchical attention over chunks of the past: first which chunks, then what in them."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from clplat.backbones.attention.segments import Attention, Layer, SegmentRecurrent, causal
from clplat.backbones.base import State, in_reference_form, require
from clplat.backbones.block import join_heads, split_heads
from clplat.backbones.dropout import Dropout
from clplat.backbones.ops.relative_attention import sinusoids
from clplat.backbones.ops.retrieval import best, retrieval_weights, retrieve, retrieve_loop
from clplat.backbones.seen import Seen


class ChunkMemory(nn.Module):
    """Attention to N stored chunks of C steps m, (B, T, D) -> (B, T, D)::

        r_n = W_q x . W_k mean_c(m_nc) / sqrt(D)        w = softmax of the n largest r
        y = sum_n w_n attention(x, [m_nc + position of m_nc])

    with positions as sinusoids of the steps back from the end of the latest chunk. Nothing of the gradient passes into
    the stored steps.

    Args:
        dim: D.
        heads: heads of the attention within chunks.
        take: chunks that each query takes.
    """

    attends = True

    def __init__(self, dim: int, heads: int, take: int) -> None:
        super().__init__()
        self.take, self.heads = take, heads
        self.query, self.key = nn.Linear(dim, dim, bias=False), nn.Linear(dim, dim, bias=False)
        self.attention = Attention(dim, heads)

    def forward(self, x_BTD: Tensor, chunks_BNCD: Tensor, live_BN: Tensor) -> Tensor:
        q, k, v, weights_B1TN = self._project(x_BTD, chunks_BNCD, live_BN)
        form = retrieve_loop if in_reference_form() else retrieve
        y_BTD: Tensor = self.out(join_heads(form(q, k, v, weights_B1TN)))
        return y_BTD

    @property
    def out(self) -> nn.Module:
        """The layer that joins the heads."""
        return self.attention.out

    def look(self, x_BTD: Tensor, chunks_BNCD: Tensor, live_BN: Tensor) -> Seen:
        q, k, v, weights_B1TN = self._project(x_BTD, chunks_BNCD, live_BN)
        k_BHSK, v_BHSK, weights = k.flatten(2, 3), v.flatten(2, 3), retrieval_weights(q, k, weights_B1TN).flatten(3)
        S = k_BHSK.shape[2]
        return Seen(x_BTD, k_BHSK, v_BHSK, weights, torch.arange(-S, 0, device=k.device))

    def _project(self, x_BTD: Tensor, chunks_BNCD: Tensor, live_BN: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Queries, keys and values of the steps of each chunk, and the weights of the chunks."""
        N, C, D = chunks_BNCD.shape[1:]
        chunks_BNCD = chunks_BNCD.detach()
        scores = (self.query(x_BTD) @ self.key(chunks_BNCD.mean(2)).mT)[:, None] / D**0.5
        taken = best(scores, live_BN, self.take)
        lowest = torch.finfo(scores.dtype).min  # not -inf: there may be no chunk at all
        weights_B1TN = scores.masked_fill(~taken, lowest).softmax(-1) * taken

        back_SD = sinusoids(N * C, D, x_BTD.device, chunks_BNCD.dtype).flip(0)
        q = split_heads(self.attention.query(x_BTD), self.heads)
        k, v = (
            split_heads(part, self.heads).unflatten(2, (N, C))
            for part in self.attention.key_value(chunks_BNCD.flatten(1, 2) + back_SD).chunk(2, -1)
        )
        return q, k, v, weights_B1TN.to(q.dtype)


class HierarchicalLayer(nn.Module):
    """A block with attention to stored chunks between its halves: ``x = x + dropout(memory(norm(x), chunks))``.

    Args:
        dim, heads, ratio, dropout: of the block.
        take: chunks that each query takes.
    """

    def __init__(self, dim: int, heads: int, *, ratio: float, dropout: float, take: int) -> None:
        super().__init__()
        self.block = Layer(dim, heads, ratio=ratio, dropout=dropout)
        self.memory_norm, self.memory = nn.LayerNorm(dim), ChunkMemory(dim, heads, take)
        self.dropout = Dropout(dropout)

    def forward(self, x_BCD: Tensor, visible_BCC: Tensor, chunks_BNCD: Tensor, live_BN: Tensor) -> Tensor:
        x_BCD = self.block.mix(x_BCD, visible_BCC)
        x_BCD = x_BCD + self.dropout(self.memory(self.memory_norm(x_BCD), chunks_BNCD, live_BN))
        return self.block.think(x_BCD)


class HCAM(SegmentRecurrent):
    """Hierarchical chunk attention memory (Lampinen et al. 2021, arXiv 2105.14039).

    (B, T, input_size) -> (B, T, dim). Each block attends to the chunk that is under way, causally, and to the last N
    chunks of its own inputs; see :class:`ChunkMemory`. The memory is ``{"chunks": (B, layers, N, C, dim), "live":
    (B, N)}``, the latest last; see :class:`SegmentRecurrent` for the state.

    As the authors' code: summaries are means, queries and keys of chunks have no bias, the softmax is over the chunks
    that are taken, gradients stop at what is stored. Assumed: sizes; the attention within chunks has as many heads as
    the block's own.

    Args:
        slots: chunks that are kept, N.
        retrieve: chunks that each query takes.
    """

    def __init__(
        self,
        input_size: int,
        *,
        slots: int = 16,
        retrieve: int = 4,
        **network: Any,
    ) -> None:
        super().__init__(input_size, partial(HierarchicalLayer, take=retrieve), **network)
        require(slots >= 1 and retrieve >= 1, f"slots {slots} and retrieve {retrieve} must be at least 1")
        self.slots = slots

    def read(self, h_BLD: Tensor, live_BL: Tensor, memory: State) -> tuple[Tensor, State]:
        visible_BLL, left = causal(live_BL), []
        for i, layer in enumerate(self.layers):
            chunks_BNCD = memory["chunks"][:, i]
            left.append(torch.cat([chunks_BNCD[:, 1:], h_BLD[:, None]], 1))
            h_BLD = layer(h_BLD, visible_BLL, chunks_BNCD.to(h_BLD.dtype), memory["live"])
        live_BN = torch.cat([memory["live"][:, 1:], live_BL[:, -1:]], 1)
        return h_BLD, {"chunks": torch.stack(left, 1), "live": live_BN}

    def memory(self, batch: int, *, device: torch.device, dtype: torch.dtype) -> State:
        shape = (batch, len(self.layers), self.slots, self.segment, self.output_size)
        live = torch.zeros((batch, self.slots), device=device, dtype=torch.bool)
        return {"chunks": torch.zeros(shape, device=device, dtype=dtype), "live": live}

    def memory_size(self) -> int:
        return self.slots * (len(self.layers) * self.segment * self.output_size + 1)
