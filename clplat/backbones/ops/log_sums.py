"""Running sums of exponentials in the log domain, ``z_t = log(exp(z_{t-1}) + exp(x_t))``: a loop and an equal scan.

The sum over nothing, and what padding adds, is LOW: finite, so that it can stand in a state. A reset makes z LOW before
its step.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

LOW = -1e30


def log_sums_loop(x_BTD: Tensor, z_BD: Tensor, reset_BT: Tensor | None = None) -> Tensor:
    """The equation above, one step at a time.

    Args:
        x_BTD: logarithms of what is added.
        z_BD: z_0.
        reset_BT: True where a new sequence begins.

    Returns:
        z_1 .. z_T, (B, T, D).
    """
    outputs = []
    for t, x_BD in enumerate(x_BTD.unbind(1)):
        if reset_BT is not None:
            z_BD = z_BD.masked_fill(reset_BT[:, t, None], LOW)
        z_BD = torch.logaddexp(z_BD, x_BD)
        outputs.append(z_BD)
    return torch.stack(outputs, 1)


def log_sums(x_BTD: Tensor, z_BD: Tensor, reset_BT: Tensor | None = None) -> Tensor:
    """Equal to :func:`log_sums_loop`, in log2 T rounds of doubling (Hillis & Steele 1986, Data parallel algorithms): in
    each, the sum of the last n steps becomes that of the last 2 n, unless a sequence began within the latter n."""
    z_BSD = torch.cat([z_BD[:, None], x_BTD], 1)  # S = 1 + T
    sequence_BS = None if reset_BT is None else F.pad(reset_BT.long().cumsum(1), (1, 0))
    n = 1
    while n < z_BSD.shape[1]:
        longer = torch.logaddexp(z_BSD[:, n:], z_BSD[:, :-n])
        if sequence_BS is not None:
            same = sequence_BS[:, n:] == sequence_BS[:, :-n]
            longer = torch.where(same[..., None], longer, z_BSD[:, n:])
        z_BSD = torch.cat([z_BSD[:, :n], longer], 1)
        n *= 2
    return z_BSD[:, 1:]
