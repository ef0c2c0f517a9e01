"""The vision transformer, with weights of other libraries if wanted."""

from __future__ import annotations

from math import ceil, prod
from typing import Any, Literal

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from clplat.backbones.attention.pretrained import Source, load
from clplat.backbones.base import Backbone, Prefix, State, blank, require
from clplat.backbones.block import join_heads, split_heads
from clplat.backbones.dropout import Dropout
from clplat.backbones.ops.attention import attention_weights
from clplat.backbones.seen import Seen

# Mean and standard deviation of red, green and blue.
SCALES = {"imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), "half": ((0.5,) * 3, (0.5,) * 3)}


class Layer(nn.Module):
    """Pre-norm block with attention in both directions: (B, T, dim) -> (B, T, dim).

    Args:
        dim, heads: width and attention heads.
        wide: width of the MLP.
        epsilon: of the norms.
        dropout: probability that a value of a branch is dropped in training.
    """

    attends = True

    def __init__(self, dim: int, heads: int, wide: int, epsilon: float, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm, self.mlp_norm = nn.LayerNorm(dim, epsilon), nn.LayerNorm(dim, epsilon)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, wide), nn.GELU(), nn.Linear(wide, dim))
        self.dropout = Dropout(dropout)

    def forward(self, h_BTW: Tensor, prefix: Prefix | None = None, samples: int | None = None) -> Tensor:
        """One layer; the first dimension is that of ``samples`` samples, each of as many images."""

        rows = len(h_BTW) if samples is None else samples
        steps = h_BTW.shape[1] * (len(h_BTW) // rows if rows else 1)

        def drop(x: Tensor) -> Tensor:  # noise is drawn for samples
            dropped: Tensor = self.dropout(x.reshape(rows, steps, x.shape[-1]))
            return dropped.view_as(x)

        mixed = nnf.scaled_dot_product_attention(*self._project(h_BTW, prefix))
        h_BTW = h_BTW + drop(self.out(join_heads(mixed)))
        return h_BTW + drop(self.mlp(self.mlp_norm(h_BTW)))

    def look(self, h_BTW: Tensor, prefix: Prefix | None = None, samples: int | None = None) -> Seen:
        q, k, v = self._project(h_BTW, prefix)
        all_BTS = torch.ones((1, q.shape[2], k.shape[2]), dtype=torch.bool, device=q.device)
        return Seen(h_BTW, k, v, attention_weights(q, k, all_BTS))

    def _project(self, h_BTW: Tensor, prefix: Prefix | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, (B, heads, T, dim / heads), with those of the prefix in front."""
        q, k, v = self.qkv(self.attention_norm(h_BTW)).chunk(3, -1)
        if prefix is not None:
            k, v = torch.cat([prefix[0].to(k), k], 1), torch.cat([prefix[1].to(v), v], 1)
        q, k, v = (split_heads(part, self.heads) for part in (q, k, v))
        return q, k, v


class ViT(Backbone):
    """Vision transformer (Dosovitskiy et al. 2021, arXiv 2010.11929, eq. 1 to 4), class token and learned positions.

    Each step is an image by itself, (B, T, C * H * W) -> (B, T, dim), and its output is the class token's; with
    ``--encoder image`` T = 1. An image is padded with zeros to whole patches.

    With ``model`` it is one of another library, with that library's sizes: ``torchvision:vit_b_16``, ``timm:NAME`` or
    ``transformers:NAME`` (or the folder of a model that was saved). The images are then brought to its size, gray ones
    to three channels. What was loaded is run beside the library's own model once, and refused if they differ.

    Args:
        shape: of an image, (C, H, W) or (H, W); given by the engine. None: one gray row of input_size pixels.
        model: library:name of a model to take; null makes one of the sizes below.
        weights: of that model: default loads the published ones, none leaves them random, else a file that the library
            saved.
        normalize: how values between 0 and 1 are scaled: none; imagenet means and deviations; half to -1 to 1.
        dim: width.
        heads: attention heads.
        layers: number of blocks.
        ratio: width of the blocks' MLPs in units of dim.
        patch: side of a patch in pixels.
        dropout: probability that a value of a residual branch is dropped in training.
    """

    causal = False
    sequential = False
    takes_shape = True

    def __init__(
        self,
        input_size: int,
        shape: tuple[int, ...] | None = None,
        *,
        model: str | None = None,
        weights: str = "default",
        normalize: Literal["none", "imagenet", "half"] = "none",
        dim: int = 64,
        heads: int = 4,
        layers: int = 2,
        ratio: float = 2.0,
        patch: int = 4,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        shape = (1, 1, input_size) if shape is None else tuple(shape)
        require(len(shape) in (2, 3), f"vit needs images (C, H, W) or (H, W), but samples have shape {shape}")
        require(
            prod(shape) == input_size,
            f"vit needs whole images of shape {shape}, but a step has {input_size} values: use the encoder image",
        )
        require(dim >= 1 and heads >= 1 and dim % heads == 0, f"dim {dim} must be a multiple of heads {heads}")
        require(layers >= 1 and patch >= 1 and int(ratio * dim) >= 1, "layers, patch and ratio must be positive")
        self.shape = (1, *shape) if len(shape) == 2 else shape
        C, H, W = self.shape
        source = None if model is None else load(model, weights)
        if source is None:
            size = (ceil(H / patch) * patch, ceil(W / patch) * patch)
            source = Source(C, size, patch, dim, heads, layers, int(ratio * dim), 1e-6)
        self.resize, self.image_size = model is not None, source.size
        self.channels, self.normalize = source.channels, normalize
        require(C in (1, self.channels), f"{model} takes {self.channels} channels, but images have {C}")
        require(normalize == "none" or self.channels == 3, f"normalize={normalize} is for three channels")
        self.input_size, self.output_size = input_size, source.dim
        patches = (source.size[0] // source.patch) * (source.size[1] // source.patch)
        self.patches = nn.Conv2d(source.channels, source.dim, source.patch, source.patch)
        self.token = nn.Parameter(torch.zeros(source.dim))
        self.positions = nn.Parameter(0.02 * torch.randn(patches + 1, source.dim))
        self.layers = nn.ModuleList(
            Layer(source.dim, source.heads, source.wide, source.epsilon, dropout) for _ in range(source.layers)
        )
        self.norm = nn.LayerNorm(source.dim, source.epsilon)
        source.fill(self)

    def forward(
        self,
        x_BTD: Tensor,
        state: State = None,
        *,
        reset_BT: Tensor | None = None,
        mask_BT: Tensor | None = None,
    ) -> tuple[Tensor, State]:
        h_NTW = self._embed(blank(x_BTD, mask_BT).reshape(-1, *self.shape))
        for layer in self.layers:
            h_NTW = layer(h_NTW, samples=len(x_BTD))
        return blank(self.norm(h_NTW[:, 0]).unflatten(0, x_BTD.shape[:2]), mask_BT), {}

    def _embed(self, x_NCHW: Tensor) -> Tensor:
        """Class token and patches with their positions, (N, patches + 1, dim)."""
        x_NCHW = x_NCHW.expand(-1, self.channels, -1, -1)
        if self.normalize != "none":
            mean, std = (x_NCHW.new_tensor(values).view(-1, 1, 1) for values in SCALES[self.normalize])
            x_NCHW = (x_NCHW - mean) / std
        if self.resize:
            x_NCHW = nnf.interpolate(x_NCHW, self.image_size, mode="bilinear", align_corners=False)
        down, right = self.image_size[0] - x_NCHW.shape[2], self.image_size[1] - x_NCHW.shape[3]
        h_NTW = self.patches(nnf.pad(x_NCHW, (0, right, 0, down))).flatten(2).mT
        return torch.cat([self.token.expand(len(h_NTW), 1, -1), h_NTW], 1) + self.positions

    def init_state(self, batch: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None) -> State:
        return {}

    def state_size(self, T: int) -> int:
        return 0

    def told(self, calls: list[tuple[nn.Module, Seen]], x_BTD: Tensor, *rest: Any, **flags: Any) -> list[Seen]:
        """The steps are the class token and the patches of an image."""
        require(x_BTD.shape[1] == 1, "vit tells the attention within one image: use the encoder image")
        return super().told(calls, x_BTD, *rest, **flags)

    @property
    def takes_prompts(self) -> bool:
        return True

    @property
    def takes_prefix(self) -> bool:
        return True

    @property
    def layer_count(self) -> int:
        return len(self.layers)

    @property
    def layer_width(self) -> int:
        return self.output_size

    def enter(self, x_BTD: Tensor) -> Tensor:
        require(x_BTD.shape[1] == 1, "vit can be prompted for one image at a time: use the encoder image")
        return self._embed(x_BTD.reshape(-1, *self.shape))

    def layer(self, number: int, h_BTW: Tensor, prefix: Prefix | None = None) -> Tensor:
        found: Tensor = self.layers[number](h_BTW, prefix)
        return found

    def leave(self, h_BTW: Tensor) -> Tensor:
        """The class token's output."""
        return self.outputs(h_BTW[:, :1])

    def outputs(self, h_BTW: Tensor) -> Tensor:
        found: Tensor = self.norm(h_BTW)
        return found
