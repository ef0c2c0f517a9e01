"""The residual network for small images."""

from __future__ import annotations

from math import gcd, prod
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clplat.backbones.base import Backbone, State, blank, require


def normalize(norm: nn.Module, x_NCHW: Tensor) -> Tensor:
    """Apply a norm. A batch of less than two values per channel has no variance: then batch norm goes by its running
    statistics in training too, so that a rank's last batch of one small image, or of none, is no error."""
    if isinstance(norm, nn.BatchNorm2d) and norm.training and x_NCHW[:, 0].numel() < 2:
        return F.batch_norm(x_NCHW, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)
    return norm(x_NCHW)


class BasicBlock(nn.Module):
    """Residual block of two 3 x 3 convolutions (He et al. 2016, arXiv 1512.03385, figure 5 left)::

        y = relu(norm(conv(relu(norm(conv(x))))) + shortcut(x))

    (N, C, H, W) -> (N, C', H / stride, W / stride), rounded up. The shortcut is the identity, or a 1 x 1 convolution
    and a norm where the shape changes.

    Args:
        enter, leave: C and C'.
        stride: of the first convolution and the shortcut.
        norm: "batch", or "group" with ``groups`` groups.
    """

    def __init__(self, enter: int, leave: int, stride: int, norm: str, groups: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(enter, leave, 3, stride, padding=1, bias=False)
        self.norm1 = make_norm(norm, leave, groups)
        self.conv2 = nn.Conv2d(leave, leave, 3, padding=1, bias=False)
        self.norm2 = make_norm(norm, leave, groups)
        self.shortcut = nn.Conv2d(enter, leave, 1, stride, bias=False) if stride > 1 or enter != leave else None
        self.shortcut_norm = make_norm(norm, leave, groups) if self.shortcut is not None else None

    def forward(self, x_NCHW: Tensor) -> Tensor:
        y_NCHW = normalize(self.norm1, self.conv1(x_NCHW)).relu()
        y_NCHW = normalize(self.norm2, self.conv2(y_NCHW))
        if self.shortcut is not None and self.shortcut_norm is not None:
            x_NCHW = normalize(self.shortcut_norm, self.shortcut(x_NCHW))
        return (y_NCHW + x_NCHW).relu()


def make_norm(norm: str, channels: int, groups: int) -> nn.Module:
    """Batch norm, or group norm with ``groups`` groups."""
    return nn.BatchNorm2d(channels) if norm == "batch" else nn.GroupNorm(groups, channels)


class ResNet18(Backbone):
    """ResNet-18 (He et al. 2016, arXiv 1512.03385) as continual learning uses it for small images.

    It is the reduced one of Lopez-Paz & Ranzato 2017 (arXiv 1706.08840, section 4): 20 filters where the full one has
    64, a 3 x 3 stem without pooling, four stages of two :class:`BasicBlock` with 1, 2, 4 and 8 times as many filters,
    the last three of stride 2, and the mean over all places. Each step by itself, (B, T, C * H * W) ->
    (B, T, 8 * width); with ``--encoder image`` T = 1.

    With batch norm, as published, the samples of a batch influence each other in training: N ranks do not equal one,
    and a sequence cut in two does not equal the whole. Padding takes no part in the statistics. In evaluation, and
    with group norm (Wu & He 2018, arXiv 1803.08494), all of the contract holds. There are 4 groups, or the largest
    number below that divides the width.

    Args:
        shape: of an image, (C, H, W) or (H, W); given by the engine. None: one gray row of input_size pixels.
        width: filters of the first stage.
        norm: what normalises; batch is what published results use.
    """

    sequential = False
    takes_shape = True

    def __init__(
        self,
        input_size: int,
        shape: tuple[int, ...] | None = None,
        *,
        width: int = 20,
        norm: Literal["batch", "group"] = "batch",
    ) -> None:
        super().__init__()
        shape = (1, 1, input_size) if shape is None else tuple(shape)
        require(len(shape) in (2, 3), f"resnet18 needs images (C, H, W) or (H, W), but samples have shape {shape}")
        require(
            prod(shape) == input_size,
            f"resnet18 needs whole images of shape {shape}, but a step has {input_size} values: use the encoder image",
        )
        require(width >= 1, f"width must be at least 1, not {width}")
        self.input_size, self.output_size = input_size, 8 * width
        self.shape = (1, *shape) if len(shape) == 2 else shape
        self.norm, groups = norm, gcd(4, width)
        self.stem = nn.Conv2d(self.shape[0], width, 3, padding=1, bias=False)
        self.stem_norm = make_norm(norm, width, groups)
        sizes = [(1, 1, 1), (1, 1, 1), (1, 2, 2), (2, 2, 1), (2, 4, 2), (4, 4, 1), (4, 8, 2), (8, 8, 1)]
        self.blocks = nn.Sequential(
            *(BasicBlock(enter * width, leave * width, stride, norm, groups) for enter, leave, stride in sizes)
        )

    def forward(
        self,
        x_BTD: Tensor,
        state: State = None,
        *,
        reset_BT: Tensor | None = None,
        mask_BT: Tensor | None = None,
    ) -> tuple[Tensor, State]:
        x_NCHW = blank(x_BTD, mask_BT).reshape(-1, *self.shape)
        if mask_BT is not None and self.training and self.norm == "batch":  # no padding among the statistics
            live_N = mask_BT.flatten()
            y_LF = self.features(x_NCHW[live_N])
            y_NF = y_LF.new_zeros((len(live_N), self.output_size)).index_put((live_N,), y_LF)
        else:
            y_NF = self.features(x_NCHW)
        return blank(y_NF.unflatten(0, x_BTD.shape[:2]), mask_BT), {}

    def features(self, x_NCHW: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, 8 * width)."""
        h_NCHW = normalize(self.stem_norm, self.stem(x_NCHW)).relu()
        return self.blocks(h_NCHW).mean((-2, -1))

    def init_state(self, batch: int, *, device: torch.device | None = None, dtype: torch.dtype | None = None) -> State:
        return {}

    def state_size(self, T: int) -> int:
        return 0
