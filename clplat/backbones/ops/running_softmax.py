"""Softmax averages over all steps so far, in a state of fixed size: a loop and an equal chunked form.

For scores s_t and values v_t (Feng et al. 2024, Attention as an RNN, arXiv 2405.13956, section 3.1)::

    m_t = max(m_{t-1}, s_t)
    c_t = exp(m_{t-1} - m_t) c_{t-1} + exp(s_t - m_t)
    a_t = exp(m_{t-1} - m_t) a_{t-1} + exp(s_t - m_t) v_t
    y_t = a_t / c_t                                         = softmax(s_1 .. s_t) [v_1 .. v_t]

Padding is a step with s = -inf. The state of nothing is (LOW, 0, 0), which a reset brings back before its step.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from clplat.backbones.ops.chunks import cut, each, segments
from clplat.backbones.ops.log_sums import LOW


class Average(NamedTuple):
    """A softmax average of some steps.

    Attributes:
        m: the largest score, (...).
        c: sum of exp(s - m), (...).
        a: sum of exp(s - m) v, (..., V).
    """

    m: Tensor
    c: Tensor
    a: Tensor

    def read(self) -> Tensor:
        """y; zeros for the average of nothing. Otherwise c is at least 1, by the step with the largest score."""
        return self.a / self.c.clamp(min=1)[..., None]

    def where(self, condition: Tensor | None) -> Average:
        """The average of nothing where the condition does not hold."""
        if condition is None:
            return self
        gone = ~condition
        return Average(
            self.m.masked_fill(gone, LOW), self.c.masked_fill(gone, 0), self.a.masked_fill(gone[..., None], 0)
        )


def both(one: Average, other: Average) -> Average:
    """Of the steps of both: an associative operation (section 3.2)."""
    m = torch.maximum(one.m, other.m)
    left, right = (one.m - m).exp(), (other.m - m).exp()
    return Average(m, left * one.c + right * other.c, left[..., None] * one.a + right[..., None] * other.a)


def running_softmax_loop(
    s_BHT: Tensor, v_BHTV: Tensor, before: Average, reset_BT: Tensor | None = None
) -> tuple[Tensor, Average]:
    """The equations above, one step at a time.

    Args:
        s_BHT: scores.
        v_BHTV: values.
        before: of the steps before, m and c of shape (B, H).
        reset_BT: True where a new sequence begins.

    Returns:
        y (B, H, T, V), and the average after the last step.
    """
    outputs = []
    for t in range(s_BHT.shape[2]):
        m, c, a = before.where(None if reset_BT is None else ~reset_BT[:, t, None])
        s, v = s_BHT[:, :, t], v_BHTV[:, :, t]
        new = torch.maximum(m, s)
        old, weight = (m - new).exp(), (s - new).exp()
        before = Average(new, old * c + weight, old[..., None] * a + weight[..., None] * v)
        outputs.append(before.read())
    return torch.stack(outputs, 2), before


def running_softmax_chunk(
    s_BHT: Tensor, v_BHTV: Tensor, before: Average, reset_BT: Tensor | None = None, chunk: int = 64
) -> tuple[Tensor, Average]:
    """Equal to :func:`running_softmax_loop`: in chunks of C steps the averages are masked softmax products, all at
    once; those of the chunks before are joined to them by :func:`both`.

    Args:
        chunk: C, steps in one chunk.
    """
    T = s_BHT.shape[2]
    C = min(chunk, T)
    v = cut(v_BHTV, C)
    pairs = segments(reset_BT, T, C, v.device)
    behind = torch.arange(v.shape[2] * C, device=v.device).unflatten(0, (-1, C)) >= T
    s = cut(s_BHT[..., None], C)[..., 0].masked_fill(behind, -torch.inf)

    s_CC = s[..., None, :].expand(*s.shape, C).masked_fill(~pairs.seen, -torch.inf)
    m = s_CC.amax(-1).clamp(min=LOW)
    weights = (s_CC - m[..., None]).exp()
    own = Average(m, weights.sum(-1), weights @ v)

    starts = []
    lasts = zip(*(part[:, :, :, -1].unbind(2) for part in own), strict=True)
    for last, through in zip(lasts, each(pairs.through, v.shape[2]), strict=True):
        starts.append(before)
        before = both(before.where(None if through is None else through[..., 0, 0]), Average(*last))
    start = Average(*(torch.stack(parts, 2)[:, :, :, None] for parts in zip(*starts, strict=True)))
    if pairs.entering is not None:
        start = Average(*(part.expand(*part.shape[:3], C, *part.shape[4:]) for part in start))
        start = start.where(pairs.entering[..., 0])
    return both(start, own).read().flatten(2, 3)[:, :, :T], before
