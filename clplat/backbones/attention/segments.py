"""Networks that read a sequence in segments and pass a memory from each to the next."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from clplat.backbones.base import Backbone, State, blank, in_reference_form, require, select_rows
from clplat.backbones.block import join_heads, make_mlp, split_heads
from clplat.backbones.dropout import Dropout
from clplat.backbones.ops.attention import attention, attention_loop, attention_weights, latest, rotate
from clplat.backbones.ops.rows import rows
from clplat.backbones.seen import Seen, joined


class SegmentRecurrent(Backbone):
    """A causal network over segments of L steps, (B, T, input_size) -> (B, T, dim)::

        (y of segment n, M_n) = read(segment n, M_{n-1})

    Segments are counted from the start of each sequence, and padding takes no place in them, so where a row of steps is
    cut, packed or padded makes no difference. A segment's outputs come with its steps; its memory counts from the next
    segment on. Gradients pass through the memory; to cut them, cut the row there and detach the state.

    The state is ``memory``, what the last full segment left, and the steps of the segment that is under way, ``steps``
    (B, L - 1, dim) with ``live`` (B, L - 1), the latest last. These are read again together with what comes next: a
    call costs up to L - 1 steps more than it is given. Autocast does not make them
    shorter.

    A subclass defines :meth:`read` and :meth:`memory`.

    Attributes:
        lead: places in front of a segment's steps where its layers attend.

    Args:
        make_layer: gives a layer: called with dim, heads, ratio and dropout.
        dim: width of the residual stream; an even multiple of heads.
        heads: attention heads in each layer.
        layers: number of layers.
        ratio: width of the layers' MLPs in units of dim.
        dropout: probability that a value of a residual branch is dropped in training.
        segment: steps in a segment, L.
    """

    lead: int = 0

    def __init__(
        self,
        input_size: int,
        make_layer: Callable[..., nn.Module],
        *,
        dim: int = 64,
        heads: int = 4,
        layers: int = 2,
        ratio: float = 2.0,
        dropout: float = 0.0,
        segment: int = 16,
    ) -> None:
        super().__init__()
        require(dim >= 1, f"dim must be at least 1, not {dim}")
        require(layers >= 1, f"a stack of blocks needs at least one layer, not {layers}")
        require(segment >= 1, f"a segment has at least one step, not {segment}")
        self.input_size, self.output_size, self.segment = input_size, dim, segment
        self.heads, self.ratio = heads, ratio
        self.embed, self.norm = nn.Linear(input_size, dim), nn.LayerNorm(dim)
        self.layers = nn.ModuleList(make_layer(dim, heads, ratio=ratio, dropout=dropout) for _ in range(layers))

    def read(self, h_BLD: Tensor, live_BL: Tensor, memory: State) -> tuple[Tensor, State]:
        """One segment.

        Args:
            h_BLD: embedded steps, zeros behind the last one.
            live_BL: which are steps: all in a full segment, the first ones in one that is under way.
            memory: what the segment before has left.

        Returns:
            Vectors (B, L, dim), and the memory for the next segment, which is used where this one is full.
        """
        raise TypeError(f"{type(self).__name__} does not define read")

    def memory(self, batch: int, *, device: torch.device, dtype: torch.dtype) -> State:
        """The memory before the first segment; may depend on parameters."""
        raise TypeError(f"{type(self).__name__} does not define memory")

    def forward(
        self,
        x_BTD: Tensor,
        state: State = None,
        *,
        reset_BT: Tensor | None = None,
        mask_BT: Tensor | None = None,
    ) -> tuple[Tensor, State]:
        h_BTD = self.embed(blank(x_BTD, mask_BT))
        h_BTD = h_BTD.to(torch.promote_types(h_BTD.dtype, self.embed.weight.dtype))  # not as autocast leaves them
        (B, T, _), P, device = h_BTD.shape, self.segment - 1, h_BTD.device
        first = self.memory(B, device=device, dtype=h_BTD.dtype)
        if state is None:
            state = self.init_state(B, device=device, dtype=h_BTD.dtype)
        h_BSD = torch.cat([state["steps"].to(h_BTD.dtype), h_BTD], 1)
        step_BT = torch.ones((B, T), dtype=torch.bool, device=device) if mask_BT is None else mask_BT
        live_BS = torch.cat([state["live"], step_BT], 1)
        reset_BS = None if reset_BT is None else nn.functional.pad(reset_BT, (P, 0))
        layout = rows(P + T, self.segment, torch.zeros(B, dtype=torch.long, device=device), reset_BS, live_BS)

        memory, outputs = state["memory"], []
        for h_BLD, live_BL, fresh_B in zip(
            layout.lay(h_BSD).unbind(1), layout.live.unbind(1), layout.fresh.unbind(1), strict=True
        ):
            memory = select_rows(fresh_B, first, memory)
            y_BLD, left = self.read(h_BLD, live_BL, memory)
            memory = select_rows(live_BL[:, -1], left, memory)
            outputs.append(y_BLD)
        memory = select_rows(layout.ended, first, memory)

        index_BP, _ = latest(live_BS, P)
        under_way_BP = torch.arange(P, device=device) >= P - layout.position[:, None]
        steps_BPD = h_BSD.take_along_dim(index_BP[..., None], 1).masked_fill(~under_way_BP[..., None], 0)
        y_BTD = self.norm(layout.collect(torch.stack(outputs, 1))[:, P:])
        return blank(y_BTD, mask_BT), {"memory": memory, "steps": steps_BPD, "live": under_way_BP}

    def init_state(self, batch: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None) -> State:
        weight = self.embed.weight
        device, dtype = device or weight.device, dtype or weight.dtype
        steps = torch.zeros((batch, self.segment - 1, self.output_size), device=device, dtype=dtype)
        live = torch.zeros((batch, self.segment - 1), device=device, dtype=torch.bool)
        return {"memory": self.memory(batch, device=device, dtype=dtype), "steps": steps, "live": live}

    def memory_size(self) -> int:
        """Number of elements in one sample's memory."""
        raise TypeError(f"{type(self).__name__} does not define memory_size")

    def state_size(self, T: int) -> int:
        return self.memory_size() + (self.segment - 1) * (self.output_size + 1)

    def told(
        self,
        calls: list[tuple[nn.Module, Seen]],
        x_BTD: Tensor,
        state: State = None,
        *,
        reset_BT: Tensor | None = None,
        mask_BT: Tensor | None = None,
    ) -> list[Seen]:
        whole = state is None and reset_BT is None and mask_BT is None
        require(whole, "attention within segments is told of whole sequences without padding")
        each = [[seen for layer, seen in calls if layer is own] for own in self.attention_layers]
        return [joined(parts, self.lead, self.segment, x_BTD.shape[1]) for parts in each]

    def hidden(self) -> list[tuple[str, str]]:
        names = [name for name, module in self.named_modules() if isinstance(module, Layer)]
        return [(f"{name}.mlp.0", f"{name}.mlp.2") for name in names]


def causal(live_BL: Tensor) -> Tensor:
    """Which of a segment's steps each of them sees: living ones up to itself, and itself, (B, L, L)."""
    L = live_BL.shape[1]
    one_LL = torch.ones((L, L), dtype=torch.bool, device=live_BL.device)
    return (live_BL[:, None] & one_LL.tril()) | torch.eye(L, dtype=torch.bool, device=live_BL.device)


def turn(x_BHTK: Tensor, start: int = 0) -> Tensor:
    """Queries or keys with rotary positions from ``start`` on."""
    return rotate(x_BHTK, torch.arange(start, start + x_BHTK.shape[2], device=x_BHTK.device)[None])


class Attention(nn.Module):
    """Multi-head attention of T steps to S others, (B, T, dim) -> (B, T, dim).

    Args:
        dim: width of both.
        heads: number of heads; divides dim.
        rotary: whether keys and queries are turned by their positions: keys from 0 on, the last query at the last key.
    """

    def __init__(self, dim: int, heads: int, *, rotary: bool = False) -> None:
        super().__init__()
        even = 2 if rotary else 1
        require(
            heads >= 1 and dim % (even * heads) == 0,
            f"dim {dim} must be {'an even' if rotary else 'a'} multiple of heads {heads}",
        )
        self.heads, self.rotary = heads, rotary
        self.attends = rotary  # what has no positions are no steps
        self.query, self.key_value, self.out = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim), nn.Linear(dim, dim)

    def forward(self, x_BTD: Tensor, seen_BSD: Tensor, visible_BTS: Tensor) -> Tensor:
        form = attention_loop if in_reference_form() else attention
        y_BTD: Tensor = self.out(join_heads(form(*self._project(x_BTD, seen_BSD), visible_BTS)))
        return y_BTD

    def look(self, x_BTD: Tensor, seen_BSD: Tensor, visible_BTS: Tensor) -> Seen:
        q, k, v = self._project(x_BTD, seen_BSD)
        return Seen(x_BTD, k, v, attention_weights(q, k, visible_BTS))

    def _project(self, x_BTD: Tensor, seen_BSD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, (B, heads, T or S, dim / heads)."""
        q = split_heads(self.query(x_BTD), self.heads)
        k, v = (split_heads(part, self.heads) for part in self.key_value(seen_BSD).chunk(2, -1))
        return (turn(q, k.shape[2] - q.shape[2]), turn(k), v) if self.rotary else (q, k, v)


class Layer(nn.Module):
    """A pre-norm block as :class:`clplat.backbones.block.Block`, with attention among the given vectors.

    Args:
        dim: width.
        heads: attention heads.
        ratio: width of the MLP in units of dim.
        dropout: probability that a value of a residual branch is dropped in training.
    """

    def __init__(self, dim: int, heads: int, *, ratio: float, dropout: float) -> None:
        super().__init__()
        self.attention_norm, self.attention = nn.LayerNorm(dim), Attention(dim, heads, rotary=True)
        self.mlp_norm, self.mlp = nn.LayerNorm(dim), make_mlp("gelu", dim, ratio)
        self.dropout = Dropout(dropout)

    def mix(self, x_BTD: Tensor, visible_BTT: Tensor) -> Tensor:
        """The first half: ``x + dropout(attention(norm(x)))``."""
        y_BTD = self.attention_norm(x_BTD)
        mixed: Tensor = x_BTD + self.dropout(self.attention(y_BTD, y_BTD, visible_BTT))
        return mixed

    def think(self, x_BTD: Tensor) -> Tensor:
        """The second half: ``x + dropout(mlp(norm(x)))``."""
        y_BTD: Tensor = x_BTD + self.dropout(self.mlp(self.mlp_norm(x_BTD)))
        return y_BTD

    def forward(self, x_BTD: Tensor, visible_BTT: Tensor) -> Tensor:
        return self.think(self.mix(x_BTD, visible_BTT))
