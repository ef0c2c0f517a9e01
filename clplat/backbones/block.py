"""The residual block and the stack of blocks that most mixers live in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from clplat.backbones.attention.ngram import NGramHeads
from clplat.backbones.base import Backbone, Prefix, State, blank, require
from clplat.backbones.conv.short import ShortConv
from clplat.backbones.dropout import Dropout


@dataclass(frozen=True)
class Seen:
    """What a layer of attention saw in one call. With carried keys S is more than T, and the new ones come last.

    Args:
        x: what the layer was given, (B, T, dim).
        key, value: (B, heads, S, K).
        weights: of each key for each step, (B, heads, T, S).
    """

    x: Tensor
    key: Tensor
    value: Tensor
    weights: Tensor

    @property
    def own_weights(self) -> Tensor:
        """The weights of the new steps alone, (B, heads, T, T)."""
        return self.weights[..., -self.x.shape[1] :]


class Mixer(nn.Module):
    """The part of a block that mixes steps: (B, T, dim) -> (B, T, dim), with the contract of a backbone.

    Padding reaches a mixer as zeros, and what it puts out there is blanked at the end of the stack, so it only has to
    leave the state alone.

    Attributes:
        takes_prefix: it can begin with keys and values that are given, see :meth:`prefixed`.
        attends: its output is ``out(weights of steps times values)``, head by head, and :meth:`look` tells the weights.
    """

    takes_prefix: ClassVar[bool] = False
    attends: ClassVar[bool] = False

    def look(
        self, x_BTD: Tensor, state: State = None, *, reset_BT: Tensor | None = None, mask_BT: Tensor | None = None
    ) -> Seen:
        """What :meth:`forward` sees when it is called like this; see :mod:`clplat.backbones.recording`."""
        raise TypeError(f"{type(self).__name__} does not define look")

    def prefixed(self, prefix: Prefix) -> State:
        """The state in which steps to come see keys and values (B, P, dim) that no step has made."""
        raise TypeError(f"{type(self).__name__} does not define prefixed")

    def forward(
        self, x_BTD: Tensor, state: State = None, *, reset_BT: Tensor | None = None, mask_BT: Tensor | None = None
    ) -> tuple[Tensor, State]:
        raise TypeError(f"{type(self).__name__} does not define forward")

    def init_state(self, batch: int, *, device: torch.device, dtype: torch.dtype) -> State:
        """The state before the first step for ``batch`` samples."""
        raise TypeError(f"{type(self).__name__} does not define init_state")

    def state_size(self, T: int) -> int:
        """Number of elements in one sample's state after T steps."""
        raise TypeError(f"{type(self).__name__} does not define state_size")


Norm = Literal["layer", "rms"]
Feedforward = Literal["gelu", "swiglu", "none"]


def make_norm(kind: Norm, dim: int) -> nn.Module:
    """LayerNorm (Ba et al. 2016, arXiv 1607.06450) or RMSNorm (Zhang & Sennrich 2019, arXiv 1910.07467)."""
    return nn.LayerNorm(dim) if kind == "layer" else nn.RMSNorm(dim, eps=1e-5)


class SwiGLU(nn.Module):
    """``W_3 (silu(W_1 x) * W_2 x)`` (Shazeer 2020, arXiv 2002.05202, eq. 6), with biases: (..., dim) -> (..., dim).

    Args:
        dim: width of x.
        wide: width inside.
    """

    def __init__(self, dim: int, wide: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(dim, 2 * wide), nn.Linear(wide, dim)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.up(x).chunk(2, -1)
        y: Tensor = self.down(nnf.silu(gate) * value)
        return y


def make_mlp(kind: Feedforward, dim: int, ratio: float) -> nn.Module:
    """The network of a block that treats each step alone: ``W_2 gelu(W_1 x)`` or :class:`SwiGLU`.

    Args:
        ratio: width inside in units of ``dim``.
    """
    wide = int(ratio * dim)
    require(wide >= 1, f"ratio {ratio} of dim {dim} leaves no width for the MLP")
    return (
        SwiGLU(dim, wide) if kind == "swiglu" else nn.Sequential(nn.Linear(dim, wide), nn.GELU(), nn.Linear(wide, dim))
    )


class Convolved(Mixer):
    """A mixer behind a short causal convolution: ``mixer(silu(convolution(x)))``.

    State: ``convolution``, see :class:`ShortConv`, and ``mixer``.
    """

    def __init__(self, dim: int, width: int, mixer: Mixer) -> None:
        super().__init__()
        self.convolution = ShortConv(dim, width)
        self.mixer = mixer

    def forward(
        self, x_BTD: Tensor, state: State = None, *, reset_BT: Tensor | None = None, mask_BT: Tensor | None = None
    ) -> tuple[Tensor, State]:
        before = state or {"convolution": None, "mixer": None}
        x_BTD, inputs = self.convolution(x_BTD, before["convolution"], reset_BT=reset_BT, mask_BT=mask_BT)
        x_BTD = blank(nnf.silu(x_BTD), mask_BT)
        y_BTD, after = self.mixer(x_BTD, before["mixer"], reset_BT=reset_BT, mask_BT=mask_BT)
        return y_BTD, {"convolution": inputs, "mixer": after}

    def init_state(self, batch: int, *, device: torch.device, dtype: torch.dtype) -> State:
        inputs = self.convolution.init_state(batch, device=device, dtype=dtype)
        return {"convolution": inputs, "mixer": self.mixer.init_state(batch, device=device, dtype=dtype)}

    def state_size(self, T: int) -> int:
        return self.convolution.state_size(T) + self.mixer.state_size(T)


class Block(nn.Module):
    """Pre-norm residual block (Xiong et al. 2020, arXiv 2002.04745, figure 1b)::

        x = x + dropout(mixer(norm(x)))
        x = x + dropout(mlp(norm(x)))

    Args:
        dim: width D of x.
        mixer: maps (B, T, D) and a state to the same.
        ratio: width of the MLP in units of D.
        dropout: probability that a value of a branch is dropped in training.
        norm: kind of both norms.
        mlp: kind of the MLP; none leaves the second line out.
    """

    def __init__(
        self,
        dim: int,
        mixer: Mixer,
        *,
        ratio: float = 2.0,
        dropout: float = 0.0,
        norm: Norm = "layer",
        mlp: Feedforward = "gelu",
    ) -> None:
        super().__init__()
        self.mixer_norm, self.mixer = make_norm(norm, dim), mixer
        if mlp == "none":
            self.mlp_norm = self.mlp = None
        else:
            self.mlp_norm, self.mlp = make_norm(norm, dim), make_mlp(mlp, dim, ratio)
        self.dropout = Dropout(dropout)

    def forward(
        self, x_BTD: Tensor, state: State = None, *, reset_BT: Tensor | None = None, mask_BT: Tensor | None = None
    ) -> tuple[Tensor, State]:
        mixed_BTD, state = self.mixer(self.mixer_norm(x_BTD), state, reset_BT=reset_BT, mask_BT=mask_BT)
        x_BTD = x_BTD + self.dropout(mixed_BTD)
        if self.mlp is not None and self.mlp_norm is not None:
            x_BTD = x_BTD + self.dropout(self.mlp(self.mlp_norm(x_BTD)))
        return x_BTD, state


class Stack(Backbone):
    """Input projection, blocks, final norm: (B, T, input_size) -> (B, T, dim). The state is a list, one per block, and
    that of the n-gram heads behind them where there are any.

    A subclass chooses the mixers, documents its own options and passes the others on.

    Args:
        make_mixer: gives the mixer of a block: called with dim and the number of the block, from 0.
        dim: width of the residual stream.
        layers: number of blocks.
        ratio: width of the blocks' MLPs in units of dim.
        dropout: probability that a value of a residual branch is dropped in training.
        norm: kind of the norms: layer or rms.
        mlp: kind of the blocks' MLPs: gelu, swiglu, or none for blocks of a mixer alone.
        conv: width in steps of a causal depthwise convolution with SiLU in front of each mixer; 0 for none.
        ngrams: largest n of the n-gram heads in front of the first block, for sequences of tokens; 0 for none. See
            :class:`clplat.backbones.attention.ngram.NGramHeads`.
    """

    def __init__(
        self,
        input_size: int,
        make_mixer: Callable[[int, int], Mixer],
        *,
        dim: int = 64,
        layers: int = 2,
        ratio: float = 2.0,
        dropout: float = 0.0,
        norm: Norm = "layer",
        mlp: Feedforward = "gelu",
        conv: int = 0,
        ngrams: int = 0,
    ) -> None:
        super().__init__()
        require(dim >= 1, f"dim must be at least 1, not {dim}")
        require(layers >= 1, f"a stack of blocks needs at least one layer, not {layers}")
        require(conv >= 0, f"conv must be 0 or a width in steps, not {conv}")
        require(ngrams >= 0, f"ngrams must be 0 or the largest n, not {ngrams}")
        self.input_size, self.output_size = input_size, dim
        self.embed = nn.Linear(input_size, dim)
        self.ngram_heads = NGramHeads(input_size, dim, ngrams) if ngrams else None
        mixers = [make_mixer(dim, number) for number in range(layers)]
        if conv:
            mixers = [Convolved(dim, conv, mixer) for mixer in mixers]
        self.blocks = nn.ModuleList(
            Block(dim, mixer, ratio=ratio, dropout=dropout, norm=norm, mlp=mlp) for mixer in mixers
        )
        self.norm = make_norm(norm, dim)

    def forward(
        self,
        x_BTD: Tensor,
        state: State = None,
        *,
        reset_BT: Tensor | None = None,
        mask_BT: Tensor | None = None,
    ) -> tuple[Tensor, State]:
        x_BTD = blank(x_BTD, mask_BT)
        h_BTD, after, looked_up = self.embed(x_BTD), [], []
        if self.ngram_heads is not None:
            before = state[-1] if state is not None else None
            h_BTD, seen = self.ngram_heads(x_BTD, h_BTD, before, reset_BT=reset_BT, mask_BT=mask_BT)
            looked_up = [seen]
        for i, block in enumerate(self.blocks):
            h_BTD, part = block(h_BTD, state[i] if state is not None else None, reset_BT=reset_BT, mask_BT=mask_BT)
            after.append(part)
        return blank(self.norm(h_BTD), mask_BT), after + looked_up

    @property
    def mixers(self) -> list[Mixer]:
        """The mixers in order."""
        return [block.mixer for block in self.blocks]  # type: ignore[misc]

    def init_state(self, batch: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None) -> State:
        weight = self.embed.weight
        device, dtype = device or weight.device, dtype or weight.dtype
        return [part.init_state(batch, device=device, dtype=dtype) for part in self._remembering]

    def state_size(self, T: int) -> int:
        return sum(part.state_size(T) for part in self._remembering)

    @property
    def _remembering(self) -> list[Mixer | NGramHeads]:
        """What has a part of the state, in order."""
        return [*self.mixers, *([] if self.ngram_heads is None else [self.ngram_heads])]

    def hidden(self) -> list[tuple[str, str]]:
        plain = [i for i, block in enumerate(self.blocks) if isinstance(block.mlp, nn.Sequential)]
        return [(f"blocks.{i}.mlp.0", f"blocks.{i}.mlp.2") for i in plain]

    @property
    def attention_layers(self) -> list[nn.Module]:
        bare = [mixer.mixer if isinstance(mixer, Convolved) else mixer for mixer in self.mixers]
        return [mixer for mixer in bare if mixer.attends]

    @property
    def takes_prefix(self) -> bool:
        return all(mixer.takes_prefix for mixer in self.mixers)

    @property
    def layer_count(self) -> int:
        return len(self.blocks)

    @property
    def layer_width(self) -> int:
        return self.output_size

    def enter(self, x_BTD: Tensor) -> Tensor:
        h_BTW: Tensor = self.embed(x_BTD)
        return h_BTW if self.ngram_heads is None else self.ngram_heads(x_BTD, h_BTW)[0]

    def layer(self, number: int, h_BTW: Tensor, prefix: Prefix | None = None) -> Tensor:
        require(prefix is None or self.takes_prefix, f"{type(self).__name__} takes no prefix")
        state = None if prefix is None else self.mixers[number].prefixed(prefix)
        y_BTW: Tensor = self.blocks[number](h_BTW, state)[0]
        return y_BTW

    def leave(self, h_BTW: Tensor) -> Tensor:
        y_BTW: Tensor = self.norm(h_BTW)
        return y_BTW


def split_heads(x_BTD: Tensor, heads: int) -> Tensor:
    """(B, T, H * K) -> (B, H, T, K)."""
    return x_BTD.unflatten(-1, (heads, -1)).transpose(1, 2)


def join_heads(x_BHTK: Tensor) -> Tensor:
    """(B, H, T, K) -> (B, T, H * K)."""
    return x_BHTK.transpose(1, 2).flatten(2)
