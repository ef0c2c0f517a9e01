"""Test-time training: a hidden state that is a model, learned by gradient descent while the sequence is read."""

from __future__ import annotations

from typing import Any

from clplat.backbones.block import Stack
from clplat.backbones.fastweights.memory import FastMemory


class TTT(Stack):
    """Test-time training layers (Sun et al. 2024, arXiv 2407.04620).

    (B, T, input_size) -> (B, T, dim). The hidden state is the weights W of a model f, which learns to predict a view v
    of each step from another one k, and is read with a third, q (section 2.3)::

        f(x) = x + layer_norm(f_res(x))      f_res(x) = x W  or  gelu(x W_1) W_2, 4 times as wide inside
        W_t = W_{t-1} - eta(x_t) grad |f(k_t; W_c) - v_t|^2 / 2        eta(x) = rate * sigmoid(w x + b)
        y_t = f(q_t; W_t)

    W_c are the weights at the start of the step's mini-batch of ``chunk`` steps (section 2.4), so chunks are part of
    the model, and the dual form (section 2.5) computes a mini-batch at once. The initial weights are learned (section
    2.7). See :class:`~clplat.backbones.fastweights.memory.FastMemory` for the projections and the state.

    Assumed: q and k have unit length, in place of a step of 1 / K in the authors' code; its factor 1 / i for the i-th
    step of a mini-batch, its biases in f and its rotary positions are left out, and ``rate`` is smaller instead.

    Args:
        depth: layers of f_res: 1 for TTT-Linear, 2 for TTT-MLP.
        heads: models in each block.
        chunk: steps in a mini-batch.
        conv: width of the convolutions behind the projections; 0 for none.
        rate: the largest step.
    """

    def __init__(
        self,
        input_size: int,
        *,
        depth: int = 1,
        heads: int = 4,
        chunk: int = 16,
        conv: int = 4,
        rate: float = 0.1,
        **block: Any,
    ) -> None:

        def mixer(dim: int, number: int) -> FastMemory:
            return FastMemory(dim, heads, chunk, conv=conv, depth=depth, rate=rate, retention="none")

        super().__init__(input_size, mixer, **block)
