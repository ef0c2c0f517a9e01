"""The associative recurrent memory transformer."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from clplat.backbones.attention.segments import Layer, SegmentRecurrent, causal
from clplat.backbones.base import State, in_reference_form, require
from clplat.backbones.ops.associative_memory import dpfp, recall, store, store_loop

NU = 3  # products of DPFP, as in the authors' code


class AssociativeLayer(nn.Module):
    """A block that reads from an associative memory before it works and writes to it afterwards::

        h = h + recall(phi(W_q h))        before, at each place
        h = block(h)
        store(phi(W_k m), W_v m, sigmoid(W_b m))        for each memory token m of h, the last places

    Args:
        dim, heads, ratio, dropout: of the block.
        key_size: width of keys and queries before the feature map phi, DPFP.
        slots: number of memory tokens.
    """

    def __init__(self, dim: int, heads: int, *, ratio: float, dropout: float, key_size: int, slots: int) -> None:
        super().__init__()
        self.slots, self.block = slots, Layer(dim, heads, ratio=ratio, dropout=dropout)
        self.query, self.key = nn.Linear(dim, key_size, bias=False), nn.Linear(dim, key_size, bias=False)
        self.value, self.strength = nn.Linear(dim, dim, bias=False), nn.Linear(dim, 1)
        nn.init.zeros_(self.value.weight)  # begins as a block without memory

    def forward(
        self, h_BSD: Tensor, visible_BSS: Tensor, A_BKD: Tensor, z_BK: Tensor
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        with torch.autocast(h_BSD.device.type, enabled=False):  # quotients of small numbers
            found_BSD = recall(dpfp(self.query(h_BSD).to(A_BKD.dtype), NU), A_BKD, z_BK)
        h_BSD = self.block(h_BSD + found_BSD.to(h_BSD.dtype), visible_BSS)
        m_BMD = h_BSD[:, -self.slots :]
        form = store_loop if in_reference_form() else store
        with torch.autocast(h_BSD.device.type, enabled=False):
            k, v, b = (part(m_BMD).to(A_BKD.dtype) for part in (self.key, self.value, self.strength))
            return h_BSD, form(dpfp(k, NU), v, b[..., 0].sigmoid(), A_BKD, z_BK)


class ARMT(SegmentRecurrent):
    """Associative recurrent memory transformer (Rodkin et al. 2024, arXiv 2407.04841).

    (B, T, input_size) -> (B, T, dim). Each block has an associative memory A, z of its own, which it reads at each
    place of a segment, and to which it writes what the segment's m memory tokens have become in it; see
    :class:`AssociativeLayer` and :mod:`clplat.backbones.ops.associative_memory`. The tokens, learned, stand behind the
    segment and see all of it; they are the same for each segment, so all that is carried on is A and z. The memory is
    ``{"A": (B, layers, K, dim), "z": (B, layers, K)}``, K = 6 key_size, kept in float32 at least; see
    :class:`SegmentRecurrent` for the state.

    As the authors' code: keys have length 1 behind DPFP with nu = 3, the maps to keys and values have no bias, W_v
    starts at zero, one memory head. Assumed: pre-norm blocks with rotary positions.

    Args:
        slots: memory tokens behind each segment, m.
        key_size: width of keys before DPFP.
    """

    def __init__(
        self,
        input_size: int,
        *,
        slots: int = 4,
        key_size: int = 16,
        **network: Any,
    ) -> None:
        super().__init__(input_size, partial(AssociativeLayer, key_size=key_size, slots=slots), **network)
        require(slots >= 1 and key_size >= 1, f"slots {slots} and key_size {key_size} must be at least 1")
        self.slots, self.features = slots, 2 * NU * key_size
        self.tokens = nn.Parameter(torch.randn(slots, self.output_size))

    def read(self, h_BLD: Tensor, live_BL: Tensor, memory: State) -> tuple[Tensor, State]:
        B, L, _ = h_BLD.shape
        h_BSD = torch.cat([h_BLD, self.tokens.to(h_BLD.dtype).expand(B, -1, -1)], 1)
        visible_BSS = torch.zeros((B, *[L + self.slots] * 2), dtype=torch.bool, device=h_BLD.device)
        visible_BSS[:, :L, :L] = causal(live_BL)
        visible_BSS[:, L:, :L] = live_BL[:, None]
        visible_BSS[:, L:, L:] = True
        after = []
        for i, layer in enumerate(self.layers):
            h_BSD, left = layer(h_BSD, visible_BSS, memory["A"][:, i], memory["z"][:, i])
            after.append(left)
        A, z = (torch.stack(parts, 1) for parts in zip(*after, strict=True))
        return h_BSD[:, :L], {"A": A, "z": z}

    def memory(self, batch: int, *, device: torch.device, dtype: torch.dtype) -> State:
        dtype = torch.promote_types(dtype, torch.float32)
        z = torch.zeros((batch, len(self.layers), self.features), device=device, dtype=dtype)
        return {"A": z[..., None].repeat(1, 1, 1, self.output_size), "z": z}

    def memory_size(self) -> int:
        return len(self.layers) * self.features * (self.output_size + 1)
