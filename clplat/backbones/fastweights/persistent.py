"""Attention that also sees persistent memory: keys and values that no step has made."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from clplat.backbones.attention.local import WindowAttention
from clplat.backbones.base import in_reference_form, require
from clplat.backbones.ops.attention import attention, attention_loop, visibility


class Persistent(nn.Module):
    """Keys and values that are learned and the same for all inputs, in front of others (Sukhbaatar et al. 2019, arXiv
    1907.01470; Titans, section 3.3).

    Args:
        heads: of the attention.
        count: how many.
        size: width of a head.
    """

    def __init__(self, heads: int, count: int, size: int) -> None:
        super().__init__()
        require(count >= 0, f"persistent must not be negative, as {count}")
        self.key = nn.Parameter(torch.randn(heads, count, size) / size**0.5)
        self.value = nn.Parameter(torch.randn(heads, count, size) / size**0.5)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, visible_BTS: Tensor) -> Tensor:
        """Attention of q to these and to what it sees of k and v."""
        return (attention_loop if in_reference_form() else attention)(q, *self.in_front(k, v, visible_BTS))

    def in_front(self, k: Tensor, v: Tensor, visible_BTS: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Keys, values and who sees whom, with these in front."""
        B, (_, count, _) = len(k), self.key.shape
        k = torch.cat([self.key.to(k.dtype).expand(B, -1, -1, -1), k], 2)
        v = torch.cat([self.value.to(v.dtype).expand(B, -1, -1, -1), v], 2)
        return k, v, nn.functional.pad(visible_BTS, (count, 0), value=True)


class PersistentWindow(WindowAttention):
    """:class:`WindowAttention` with :class:`Persistent` in sight of all steps. Its scores take T times T numbers.

    Args:
        dim: D.
        heads: number of heads; D / heads must be an even whole number.
        window: steps in sight, itself included; padding does not count.
        persistent: number of persistent keys.
    """

    def __init__(self, dim: int, heads: int, window: int, persistent: int) -> None:
        super().__init__(dim, heads, window)
        self.persistent = Persistent(heads, persistent, dim // heads)

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, live_BP: Tensor, reset_BT: Tensor, mask_BT: Tensor | None
    ) -> Tensor:
        mask_BT = torch.ones_like(reset_BT) if mask_BT is None else mask_BT
        y_BHTK: Tensor = self.persistent(q, k, v, visibility(live_BP, reset_BT, mask_BT, self.window)[0])
        return y_BHTK

    def in_sight(self, k: Tensor, v: Tensor, visible_BTS: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.persistent.in_front(k, v, visible_BTS)
