"""Polynomial features of keys and queries."""

from __future__ import annotations

import math
from itertools import combinations_with_replacement

import torch
from torch import Tensor, nn

from clplat.backbones.base import require


class Monomials(nn.Module):
    """All products of at most p of K numbers, weighted so that ``phi(q) . phi(k) = sum_{i=0}^p c_i^2 (q . k)^i``.

    The c_i are learned and begin at ``1 / sqrt(i!)``, where the sum is the beginning of exp(q . k) (Behrouz et al.
    2025, arXiv 2505.23735, section 3.1).

    Attributes:
        size: number of features, (K + p)! / (K! p!).

    Args:
        size: K.
        degree: p.
    """

    def __init__(self, size: int, degree: int) -> None:
        super().__init__()
        require(1 <= degree <= 4, f"degree {degree} must be from 1 to 4: there are too many products of more")
        self.chosen = [list(combinations_with_replacement(range(size), i)) for i in range(1, degree + 1)]
        self.weight = nn.Parameter(torch.tensor([1 / math.factorial(i) ** 0.5 for i in range(degree + 1)]))
        self.size = 1 + sum(map(len, self.chosen))

    def forward(self, x: Tensor) -> Tensor:
        """(..., K) -> (..., size)."""
        c = self.weight.to(x.dtype)
        features = [c[0].expand(*x.shape[:-1], 1)]
        for i, chosen in enumerate(self.chosen, 1):
            index = torch.tensor(chosen, device=x.device)
            # a product appears so often among the ordered ones of (q . k)^i
            often = [math.factorial(i) / math.prod(math.factorial(one.count(n)) for n in set(one)) for one in chosen]
            features.append(c[i] * x.new_tensor(often).sqrt() * x[..., index].prod(-1))
        return torch.cat(features, -1)
