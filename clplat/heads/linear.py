"""One linear layer for each task, all in one stacked parameter."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class StackedLinear(nn.Module):
    """``y_n = W[k_n] x_n + b[k_n]``: every sample goes through the layer of its own label ``k_n``.

    The layers of all tasks are one parameter, so a batch of mixed tasks needs no Python branch, no parameter is ever
    unused (plain DDP works), and the module can be compiled, vmapped and stacked over seeds.

    Args:
        tasks: number of layers K; more can be added with :meth:`grow`.
        in_features: size of a sample.
        out_features: size of an output.
        generator: where the initial values are drawn from (None: the default generator).

    Attributes:
        weight: (K, out_features, in_features), each slice initialised as ``nn.Linear`` initialises its own.
        bias: (K, out_features).
    """

    def __init__(
        self,
        tasks: int,
        in_features: int,
        out_features: int,
        *,
        generator: torch.Generator | None = None,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.weight = nn.Parameter(torch.empty(0, out_features, in_features, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(0, out_features, device=device, dtype=dtype))
        self.grow(tasks, generator)

    @property
    def tasks(self) -> int:
        """Number of layers K."""
        return self.weight.shape[0]

    @torch.no_grad()
    def grow(self, tasks: int, generator: torch.Generator | None = None) -> None:
        """Make room for ``tasks`` layers in all. Those that exist keep their values; new ones are initialised.

        Both parameters become new ``nn.Parameter`` objects, so an optimizer made before does not know them.
        """
        if tasks < self.tasks:
            raise ValueError(f"cannot shrink from {self.tasks} to {tasks} tasks")
        if tasks == self.tasks:
            return
        device = self.weight.device
        source = generator.device if generator is not None else device  # draw where the generator lives, then move
        weights, biases = [self.weight.data], [self.bias.data]
        bound = 1 / math.sqrt(self.in_features) if self.in_features else 0.0
        for _ in range(tasks - self.tasks):
            weight = torch.empty(1, self.out_features, self.in_features, device=source, dtype=self.weight.dtype)
            if weight.numel():
                nn.init.kaiming_uniform_(weight[0], a=math.sqrt(5), generator=generator)
            bias = torch.empty(1, self.out_features, device=source, dtype=self.bias.dtype)
            weights.append(weight.to(device))
            biases.append(nn.init.uniform_(bias, -bound, bound, generator=generator).to(device))
        self.weight = nn.Parameter(torch.cat(weights), requires_grad=self.weight.requires_grad)
        self.bias = nn.Parameter(torch.cat(biases), requires_grad=self.bias.requires_grad)

    def forward(self, x_ND: Tensor, index_N: Tensor) -> Tensor:
        """Outputs (N, out_features) of samples (N, in_features), each by the layer its entry of ``index_N`` names."""
        tasks, out, size = self.weight.shape
        if tasks == 1:
            return F.linear(x_ND, self.weight[0], self.bias[0])
        if tasks <= size:  # one product with all layers, then a gather: less memory than a weight for each sample
            every_NKO = F.linear(x_ND, self.weight.flatten(0, 1), self.bias.flatten()).unflatten(-1, (tasks, out))
            return every_NKO.gather(-2, index_N[:, None, None].expand(-1, 1, out)).squeeze(-2)
        weight_NOD, bias_NO = self.weight.index_select(0, index_N), self.bias.index_select(0, index_N)
        return torch.baddbmm(bias_NO.unsqueeze(-1), weight_NOD, x_ND.unsqueeze(-1)).squeeze(-1)

    def extra_repr(self) -> str:
        return f"tasks={self.tasks}, in_features={self.in_features}, out_features={self.out_features}"
