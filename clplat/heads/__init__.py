"""Heads: from what a backbone puts out to logits or values."""

from clplat.heads.linear import StackedLinear

__all__ = ["StackedLinear"]
