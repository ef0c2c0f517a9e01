"""The recurrent memory transformer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from clplat.backbones.attention.segments import Layer, SegmentRecurrent, causal
from clplat.backbones.base import State, require


class RMT(SegmentRecurrent):
    """Recurrent memory transformer (Bulatov et al. 2022, arXiv 2207.06881, section 3), the decoder form.

    (B, T, input_size) -> (B, T, dim). A transformer reads each segment X_n between two copies of m memory vectors, and
    what it makes of the second copy is the memory of the next segment::

        [.  Y_n  M_{n+1}] = transformer([M_n  X_n  M_n])

    Steps see the first copy and, causally, the segment; the vectors of the second copy see everything. M_1 is learned.
    The memory is ``{"tokens": (B, m, dim)}``; see :class:`SegmentRecurrent` for the state.

    Assumed: pre-norm blocks with rotary positions over all 2 m + L places.

    Args:
        slots: memory vectors, m; with 0 each segment is read by itself.
    """

    def __init__(
        self,
        input_size: int,
        *,
        slots: int = 4,
        **network: Any,
    ) -> None:
        super().__init__(input_size, Layer, **network)
        require(slots >= 0, f"slots must not be negative, as {slots}")
        self.slots = self.lead = slots
        self.start = nn.Parameter(torch.randn(slots, self.output_size))

    def read(self, h_BLD: Tensor, live_BL: Tensor, memory: State) -> tuple[Tensor, State]:
        m, L = self.slots, self.segment
        tokens_BMD = memory["tokens"].to(h_BLD.dtype)
        h_BSD = torch.cat([tokens_BMD, h_BLD, tokens_BMD], 1)
        visible_BSS = torch.zeros((len(h_BLD), L + 2 * m, L + 2 * m), dtype=torch.bool, device=h_BLD.device)
        visible_BSS[:, :, :m] = True
        visible_BSS[:, m : m + L, m : m + L] = causal(live_BL)
        visible_BSS[:, m + L :, m : m + L] = live_BL[:, None]
        visible_BSS[:, m + L :, m + L :] = True
        for layer in self.layers:
            h_BSD = layer(h_BSD, visible_BSS)
        return h_BSD[:, m : m + L], {"tokens": h_BSD[:, m + L :]}

    def memory(self, batch: int, *, device: torch.device, dtype: torch.dtype) -> State:
        return {"tokens": self.start.to(device=device, dtype=dtype).expand(batch, -1, -1)}

    def memory_size(self) -> int:
        return self.slots * self.output_size
